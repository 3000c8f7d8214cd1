//! One relationship's bundle, kept fresh.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_api::ca_client::Backoff;
use postern_identity::federation::{DEFAULT_REFRESH, Document};
use postern_identity::{BundleSet, SpiffeId, Trust, TrustBundle};
use rustls::pki_types::UnixTime;
use tokio::time::{sleep, timeout};

use super::cache::Cache;
use super::endpoint::{FetchError, Fetcher, Prover};
use super::relationship::{Endpoint, Profile, Relationship, carried};
use crate::error_chain;
use crate::hub::Hub;
use crate::state::unix_ms;

/// An endpoint that asks to be asked all the time is asked this often: whatever it changes goes to every proxy.
const SHORTEST_POLL: Duration = Duration::from_secs(30);
/// While there is no bundle at all its peers are refused.
const LONGEST_WITHOUT: Duration = Duration::from_secs(30);
/// Redirects included.
const FETCH_DEADLINE: Duration = Duration::from_secs(30);
/// So that replicas do not ask in step: a share of the wait.
const JITTER: f64 = 0.1;

pub(super) struct Keeper {
    pub(super) hub: Arc<Hub>,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) cache: Cache,
    pub(super) longest_poll: Duration,
    pub(super) relationship: Relationship,
}

/// What became of a fetch.
enum Outcome {
    /// In force, and when to look again.
    Taken(Duration),
    /// Older than what is held (SPIFFE Trust Domain and Bundle section 4.1.1).
    Older(Duration),
}

/// What is in force.
struct Held {
    bundle: Arc<TrustBundle>,
    /// Only given, to verify the first fetch by. Whoever holds a bundle that was fetched keeps that.
    bootstrap: bool,
}

impl Keeper {
    pub(super) async fn run(self) -> Infallible {
        let (cache, relationship) = (self.cache.clone(), self.relationship.clone());
        let from_before = tokio::task::spawn_blocking(move || cache.load(&relationship)).await;
        // Later ones are followed from the last that was fetched: the one that is given may be long out of use.
        let (bundle, bootstrap) = match from_before.ok().flatten() {
            Some(bundle) => (Some(bundle), false),
            None => (self.relationship.given_bundle(), self.relationship.endpoint.is_some()),
        };
        let mut held = bundle.map(Arc::new).map(|bundle| Held { bundle, bootstrap });
        if let Some(held) = &held {
            self.put(held);
        }
        let Some(endpoint) = self.relationship.endpoint.clone() else {
            return std::future::pending().await;
        };
        let (mut backoff, mut complained) = (Backoff::up_to(LONGEST_WITHOUT), String::new());
        let mut interval = self.bounded(DEFAULT_REFRESH);
        loop {
            let wait = match self.fetch(&endpoint, &mut held).await {
                Ok(outcome) => {
                    if !complained.is_empty() {
                        tracing::info!(trust_domain = %self.relationship.trust_domain, "its bundle is fetched again");
                        complained.clear();
                    }
                    let (Outcome::Taken(next) | Outcome::Older(next)) = outcome;
                    self.hub.metrics.federation_fetched(match outcome {
                        Outcome::Taken(_) => "done",
                        Outcome::Older(_) => "older",
                    });
                    interval = next;
                    backoff.reset();
                    interval
                }
                Err(why) => {
                    self.hub.metrics.federation_fetched("failed");
                    self.complain(why, &mut complained);
                    // The old bundle stays, and the endpoint is asked when it would have been (section 5.3).
                    match held {
                        Some(_) => interval,
                        None => backoff.after_failure(fastrand::f64()).min(interval),
                    }
                }
            };
            sleep(wait.mul_f64(1.0 - JITTER * fastrand::f64())).await;
        }
    }

    fn complain(&self, why: String, complained: &mut String) {
        if why == *complained {
            return;
        }
        let name = &self.relationship.trust_domain;
        tracing::warn!(reason = "federation", trust_domain = %name, "cannot fetch its bundle: {why}");
        let text = format!("the bundle of {name} cannot be fetched, the last one stays: {why}");
        self.hub.event("warning", text);
        *complained = why;
    }

    async fn fetch(&self, endpoint: &Endpoint, held: &mut Option<Held>) -> Result<Outcome, String> {
        let prover = match &endpoint.profile {
            Profile::Web => Prover::Web,
            Profile::Spiffe(id) => Prover::Spiffe(id.clone(), Arc::new(self.trust_for(id, held.as_ref()))),
        };
        let document = match timeout(FETCH_DEADLINE, self.fetcher.fetch(&endpoint.url, &prover)).await {
            Ok(fetched) => fetched.map_err(|error| self.why(&error))?,
            Err(_) => return Err(format!("no answer within {FETCH_DEADLINE:?}")),
        };
        self.take(document, held).await
    }

    /// One answer too few, or one with the wrong roots, and nobody can be followed any more: not by asking again.
    fn why(&self, error: &FetchError) -> String {
        let why = error_chain(error);
        if !self.relationship.proves_itself() || !error.is_of_proof() {
            return why;
        }
        format!(
            "{why}; if its roots were replaced, or its last answer held none that it proves itself by, it cannot be followed \
             from what is held: give the relationship a fresh `trustDomainBundle`, brought here by a way that you trust"
        )
    }

    async fn take(&self, document: Document, held: &mut Option<Held>) -> Result<Outcome, String> {
        let next = self.bounded(document.refresh_hint().unwrap_or(DEFAULT_REFRESH));
        let bundle = document.into_bundle(self.relationship.trust_domain.clone(), UnixTime::now());
        carried(&bundle)?;
        if held
            .as_ref()
            .is_some_and(|held| bundle.sequence() < held.bundle.sequence())
        {
            return Ok(Outcome::Older(next));
        }
        let same = held
            .as_ref()
            .is_some_and(|held| !held.bootstrap && held.bundle.to_document() == bundle.to_document());
        if !same {
            let bundle = Arc::new(bundle);
            let fetched = Held {
                bundle: Arc::clone(&bundle),
                bootstrap: false,
            };
            self.put(&fetched);
            *held = Some(fetched);
            let (name, sequence, roots) = (bundle.trust_domain(), bundle.sequence(), bundle.roots().len());
            tracing::info!(trust_domain = %name, sequence, roots, "bundle of another trust domain");
            self.hub.event(
                "info",
                format!("bundle {sequence} of {name} is in force: {roots} roots"),
            );
            let (cache, relationship, stored) = (self.cache.clone(), self.relationship.clone(), bundle);
            // One at a time. A write that outlives this task is of use to this very relationship alone.
            let _ = tokio::task::spawn_blocking(move || cache.store(&relationship, &stored)).await;
        }
        self.hub
            .metrics
            .federated(&self.relationship.trust_domain, unix_ms(SystemTime::now()));
        Ok(Outcome::Taken(next))
    }

    fn put(&self, held: &Held) {
        self.hub
            .federation
            .put(&self.relationship, &held.bundle, held.bootstrap);
    }

    /// The latest bundle of the trust domain that the endpoint is of, and no other; whoever is cut off is so here, too.
    fn trust_for(&self, id: &SpiffeId, held: Option<&Held>) -> Trust {
        let name = id.trust_domain();
        let bundle = if name == self.relationship.trust_domain.as_str() {
            held.map(|held| TrustBundle::clone(&held.bundle))
        } else if name == self.hub.mesh.trust_domain.as_str() {
            let trust = self.hub.trust.load();
            trust.bundles.get(name).map(|bundle| TrustBundle::clone(bundle))
        } else {
            let told = self.hub.federation.told();
            let of = told.bundles.iter().find(|(known, _)| known.as_str() == name);
            of.and_then(|(_, foreign)| foreign.bundle.as_deref().cloned())
        };
        Trust {
            bundles: bundle.into_iter().fold(BundleSet::default(), BundleSet::with),
            ..self.hub.quarantine().trust()
        }
    }

    fn bounded(&self, hint: Duration) -> Duration {
        hint.max(SHORTEST_POLL).min(self.longest_poll)
    }
}

#[cfg(test)]
mod tests;
