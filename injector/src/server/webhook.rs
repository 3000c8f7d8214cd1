//! The three webhooks, and what each makes of a request.

use std::collections::BTreeMap;
use std::sync::Arc;

use json_patch::Patch;

use super::Cluster;
use crate::annotations::INJECT;
use crate::inject::{self, PodContext, Settings};
use crate::metrics::{Metrics, Outcome};
use crate::namespaces::Facts;
use crate::policies;
use crate::review::{Operation, Request, Verdict};
use crate::verify_pod;

/// Bytes of the token in a path of probes.
const TOKEN: usize = 16;

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Webhook {
    /// Puts sidecars into pods.
    Inject,
    /// Checks pods after everybody else, and debugging containers.
    ValidatePod,
    /// Checks policies.
    ValidatePolicy,
}

impl Webhook {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Inject, Self::ValidatePod, Self::ValidatePolicy];

    /// The path that the chart gives it.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Inject => "/inject",
            Self::ValidatePod => "/validate-pod",
            Self::ValidatePolicy => "/validate-policy",
        }
    }

    /// As a label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inject => "inject",
            Self::ValidatePod => "validate_pod",
            Self::ValidatePolicy => "validate_policy",
        }
    }

    pub(super) fn at(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|webhook| webhook.path() == path)
    }
}

/// What decides.
pub(super) struct Deciding {
    pub(super) cluster: Cluster,
    pub(super) settings: Settings,
    pub(super) metrics: Metrics,
}

/// How a pod of a namespace in some state comes off.
struct Decided {
    verdict: Verdict,
    outcome: Outcome,
    skipped: Option<&'static str>,
}

impl Deciding {
    /// `Err`: this webhook is not for such requests, which is a fault of its configuration.
    pub(super) async fn decide(&self, webhook: Webhook, request: Request) -> Result<(Verdict, Outcome), String> {
        let allowed = || (Verdict::allowed(), Outcome::Allowed);
        let gone = matches!(request.operation, Operation::Delete | Operation::Connect);
        if webhook == Webhook::ValidatePolicy
            && let Some(kind) = policies::Kind::of(&request)
        {
            if gone {
                return Ok(allowed());
            }
            let namespace = request.namespace.as_deref().unwrap_or_default();
            let verdict = policies::verdict(kind, request.object, namespace);
            let outcome = match &verdict {
                Verdict::Allowed { .. } => Outcome::Allowed,
                Verdict::Refused { .. } => Outcome::Refused,
                Verdict::Later { .. } => Outcome::Later,
            };
            return Ok((verdict, outcome));
        }
        match webhook {
            Webhook::Inject if request.is("", "pods", None) => match request.operation {
                Operation::Create => Ok(self.pod(webhook, &request).await),
                // A pod is in the mesh from its beginning or not at all.
                Operation::Update | Operation::Delete | Operation::Connect => Ok(allowed()),
            },
            Webhook::ValidatePod if request.is("", "pods", None) => match request.operation {
                Operation::Create => Ok(self.pod(webhook, &request).await),
                // What could be changed of the sidecar is immutable.
                Operation::Update | Operation::Delete | Operation::Connect => Ok(allowed()),
            },
            Webhook::ValidatePod if request.is("", "pods", Some("ephemeralcontainers")) => match gone {
                true => Ok(allowed()),
                false => Ok(self.pod(webhook, &request).await),
            },
            Webhook::Inject | Webhook::ValidatePod | Webhook::ValidatePolicy => Err(format!(
                "{} is not for {} of group `{}`",
                webhook.path(),
                request.resource.resource,
                request.resource.group
            )),
        }
    }

    async fn pod(&self, webhook: Webhook, request: &Request) -> (Verdict, Outcome) {
        let name = request.namespace.as_deref().unwrap_or_default();
        let namespaces = &self.cluster.namespaces;
        let seen = namespaces.seen(name);
        // A validation lets pods outside of the mesh pass, and it is asked for none but those that some label leads to it.
        let outside = |facts: &Facts| facts.labels.get(INJECT).is_none_or(|value| value != "enabled");
        let doubtful = webhook == Webhook::ValidatePod && seen.as_deref().is_some_and(outside);
        let decided = match seen.as_ref().map(|facts| self.judge(webhook, request, name, facts)) {
            Some(decided) if decided.outcome == Outcome::Injected => decided,
            Some(decided) if decided.outcome == Outcome::Allowed && !doubtful => decided,
            // What keeps a pod out of the mesh or refuses it is not decided by labels of a moment ago.
            first => match namespaces.read(name).await {
                Ok(now) => match first {
                    Some(first) if seen.as_ref() == Some(&now) => first,
                    _ => self.judge(webhook, request, name, &now),
                },
                Err(why) => Decided {
                    verdict: Verdict::Later {
                        message: format!(
                            "postern cannot read the labels of namespace {name} ({why}); this is tried again by \
                             controllers, or by you in a few seconds"
                        ),
                    },
                    outcome: Outcome::Later,
                    skipped: None,
                },
            },
        };
        if let Some(reason) = decided.skipped {
            self.metrics.skipped(reason);
        }
        (decided.verdict, decided.outcome)
    }

    fn judge(&self, webhook: Webhook, request: &Request, namespace: &str, facts: &Arc<Facts>) -> Decided {
        let roots = self.cluster.roots.now();
        let Some(token) = token() else {
            return decided(Outcome::Later, "the system gives no random numbers".to_owned());
        };
        let Facts { labels, annotations } = &**facts;
        let context = context(namespace, labels, annotations, &roots, &token);
        // Without roots a refusal may be about them, and is worth trying again.
        let refused = |message: String| match roots.is_empty() {
            true => decided(Outcome::Later, message),
            false => decided(Outcome::Refused, message),
        };
        let (verified, ephemeral) = match webhook {
            Webhook::Inject => {
                return match inject::inject(&request.object, &context, &self.settings) {
                    inject::Outcome::Injected { patch, warnings } => Decided {
                        outcome: match patch.0.is_empty() {
                            true => Outcome::Allowed,
                            false => Outcome::Injected,
                        },
                        verdict: Verdict::Allowed { patch, warnings },
                        skipped: None,
                    },
                    inject::Outcome::Skipped {
                        reason,
                        patch,
                        warnings,
                    } => Decided {
                        verdict: Verdict::Allowed { patch, warnings },
                        outcome: Outcome::Skipped,
                        skipped: Some(reason),
                    },
                    inject::Outcome::Refused { message } => refused(message),
                };
            }
            Webhook::ValidatePod | Webhook::ValidatePolicy => {
                let ephemeral = request.sub_resource.as_deref() == Some("ephemeralcontainers");
                let check = if ephemeral {
                    verify_pod::verify_ephemeral
                } else {
                    verify_pod::verify
                };
                (check(&request.object, &context, &self.settings), ephemeral)
            }
        };
        match verified {
            Ok(warnings) => Decided {
                verdict: Verdict::Allowed {
                    patch: Patch(Vec::new()),
                    warnings,
                },
                outcome: Outcome::Allowed,
                skipped: None,
            },
            Err(message) if ephemeral => decided(Outcome::Refused, message),
            Err(message) => refused(message),
        }
    }
}

fn decided(outcome: Outcome, message: String) -> Decided {
    let verdict = match outcome {
        Outcome::Later => Verdict::Later { message },
        Outcome::Injected | Outcome::Allowed | Outcome::Skipped | Outcome::Refused | Outcome::Malformed => {
            Verdict::Refused { message }
        }
    };
    Decided {
        verdict,
        outcome,
        skipped: None,
    }
}

fn context<'a>(
    namespace: &'a str,
    labels: &'a BTreeMap<String, String>,
    annotations: &'a BTreeMap<String, String>,
    roots_sha256: &'a [String],
    token: &'a str,
) -> PodContext<'a> {
    PodContext {
        namespace,
        labels,
        annotations,
        roots_sha256,
        token,
    }
}

/// 32 lower-case hexadecimal digits that nobody can guess.
fn token() -> Option<String> {
    let mut bytes = [0; TOKEN];
    postern_identity::tls::provider().secure_random.fill(&mut bytes).ok()?;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
