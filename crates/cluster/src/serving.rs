//! A serving certificate that replicas share, and the CA bundle by which the API server believes it.
//!
//! ```text
//! every few seconds, in each replica:
//!   targets (their caBundle) -> Secret -> rotation (what to do next: at most one thing) -> Secret, if something is new
//!     -> what is served -> targets whose caBundle is not as it should be
//! rotation: current + next in the bundle -> settled -> next is served, the old CA stays in the bundle -> withdrawn
//! ```
//!
//! Nobody leads. Every write has the precondition that what was read is still there, and the targets are read before the
//! Secret: so a replica that is late overwrites nothing that is newer. Spans of a rotation are measured by each replica's
//! own steady clock, so that wrong wall clocks cannot hurry it. The key of a CA is thrown away once it has signed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use postern_telemetry::error_chain;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::time::{sleep, timeout};

mod contents;
mod pair;
mod rotation;
mod target;
#[cfg(test)]
mod tests;

use contents::Contents;
pub use pair::PairError;
use rotation::{Found, Now, Replica};
pub use target::Target;

/// The annotation of the Secret that asks for a rotation now, by any value that it did not have before.
pub const ROTATE: &str = "postern.dev/rotate";
/// Reading and writing a handful of small objects; past this a replica knows too little to write.
const ROUND_DEADLINE: Duration = Duration::from_secs(10);
/// After a lost race, and until the first publication.
const SOON: Duration = Duration::from_millis(500);

/// How long certificates and the steps of their rotation last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a certificate is good; it is replaced when two thirds are over.
    pub life: Duration,
    /// How often a replica looks.
    pub poll: Duration,
    /// From the publication of a new CA until its certificate is served: API servers must have seen the bundle.
    pub settle: Duration,
    /// From then on until the old CA is withdrawn: every replica must serve the new one.
    pub withdraw: Duration,
}

impl Timing {
    /// All spans for certificates of this life. With 30 days: every 5 s, after 30 s, after an hour.
    #[must_use]
    pub fn of(life: Duration) -> Self {
        let life = life.max(Duration::from_secs(10));
        Self {
            life,
            poll: (life / 60).clamp(Duration::from_millis(500), Duration::from_secs(5)),
            settle: (life / 10).min(Duration::from_secs(30)),
            withdraw: (life / 6).min(Duration::from_secs(60 * 60)),
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::of(Duration::from_secs(30 * 24 * 60 * 60))
    }
}

/// What is kept, and for whom.
#[derive(Debug, Clone)]
pub struct Keeping {
    /// Where the Secret is.
    pub namespace: String,
    /// Its name; the chart makes it, empty.
    pub secret: String,
    /// What the API server calls us: `postern-injector.postern-system.svc`.
    pub dns_names: Vec<String>,
    /// Whose `caBundle` is ours.
    pub targets: Vec<Target>,
    /// How long everything lasts.
    pub timing: Timing,
}

/// How it stands with the certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// When what is served expires, in seconds since 1970; `None`: nothing is served.
    pub not_after: Option<u64>,
    /// Does every target's bundle have its CA?
    pub published: bool,
    /// Are two CAs published, since one takes over from the other?
    pub rotating: bool,
}

/// What is served; clones share it.
#[derive(Debug, Clone, Default)]
pub struct ServingCertificate {
    served: Arc<Served>,
}

#[derive(Debug, Default)]
struct Served {
    key: ArcSwapOption<CertifiedKey>,
    status: ArcSwap<Status>,
}

impl ServingCertificate {
    /// Serves the newest certificate at each handshake; without one, the handshake fails.
    #[must_use]
    pub fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::clone(&self.served) as Arc<dyn ResolvesServerCert>
    }

    /// How it stands now.
    #[must_use]
    pub fn status(&self) -> Status {
        **self.served.status.load()
    }

    /// Serves this from now on: for tests, and for who keeps certificates otherwise.
    pub fn serve(&self, key: Arc<CertifiedKey>, status: Status) {
        self.served.key.store(Some(key));
        self.served.status.store(Arc::new(status));
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.key.load_full()
    }
}

/// Why a round came to nothing; the next one tries again, and what is served stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServingError {
    /// The API server refused, or did not answer.
    #[error("cannot {what}")]
    Api {
        /// What was attempted.
        what: String,
        /// Why not.
        #[source]
        source: kube::Error,
    },
    /// The chart makes it.
    #[error("there is no Secret {0}: the chart makes it, and we may only fill it")]
    NoSecret(String),
    /// No certificate could be made.
    #[error("cannot make a certificate")]
    Pair(#[from] PairError),
    /// Too slow.
    #[error("the API server did not answer within {} s", ROUND_DEADLINE.as_secs())]
    Slow,
}

/// Keeps `certificate`, the Secret and the targets current, until dropped.
pub async fn keep(client: Client, keeping: Keeping, certificate: ServingCertificate) -> Infallible {
    let mut keeper = Keeper::new(client, keeping, certificate);
    let mut last = String::new();
    loop {
        let round = timeout(ROUND_DEADLINE, keeper.round()).await;
        let pause = match round.unwrap_or(Err(ServingError::Slow)) {
            Ok(Round::Settled) => {
                last.clear();
                keeper.keeping.timing.poll
            }
            Ok(Round::Again) => SOON,
            Err(error) => {
                let message = error_chain(&error);
                // Once per reason, not once per round.
                if message != last {
                    tracing::error!(reason = "serving_certificate", secret = %keeper.keeping.secret, "{message}");
                }
                last = message;
                SOON.max(keeper.keeping.timing.poll / 4)
            }
        };
        // Replicas that start together do not stay together.
        sleep(pause.mul_f64(0.8 + 0.2 * fastrand::f64())).await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    Settled,
    /// Somebody else was faster, or the next step is due at once.
    Again,
}

struct Keeper {
    client: Client,
    keeping: Keeping,
    certificate: ServingCertificate,
    replica: Replica,
    begun: Instant,
}

impl Keeper {
    fn new(client: Client, keeping: Keeping, certificate: ServingCertificate) -> Self {
        let replica = Replica::new(keeping.dns_names.clone(), keeping.timing);
        Self {
            client,
            keeping,
            certificate,
            replica,
            begun: Instant::now(),
        }
    }

    async fn round(&mut self) -> Result<Round, ServingError> {
        // First the targets: whoever changed one since then makes our patch fail, and had read a Secret no older than ours.
        let mut targets = Vec::with_capacity(self.keeping.targets.len());
        for target in &self.keeping.targets {
            targets.push(target.read(&self.client).await?);
        }
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.keeping.namespace);
        let name = &self.keeping.secret;
        let found = secrets.get_opt(name).await;
        let found = found.map_err(|source| api(format!("read the Secret {name}"), source))?;
        let mut secret = found.ok_or_else(|| ServingError::NoSecret(name.clone()))?;
        let contents = Contents::read(&secret.data.take().unwrap_or_default()).unwrap_or_else(|why| {
            tracing::warn!(reason = "damaged", secret = %name, "what is in it is replaced: {why}");
            None
        });
        let rotate = secret.metadata.annotations.as_ref().and_then(|all| all.get(ROTATE));
        let step = self.replica.step(
            Found {
                contents,
                rotate: rotate.cloned(),
                bundles: targets.iter().flat_map(target::State::bundles).collect(),
            },
            self.now(),
        )?;
        if let Some(done) = step.done {
            secret.data = Some(step.contents.data());
            match secrets.replace(name, &PostParams::default(), &secret).await {
                Ok(_) => tracing::info!(secret = %name, step = %done, "the serving certificate"),
                Err(kube::Error::Api(status)) if status.is_conflict() => return Ok(Round::Again),
                Err(source) => return Err(api(format!("update the Secret {name}"), source)),
            }
        }
        let again = step.done.is_some();
        let bundle = step.contents.bundle();
        let mut status = Status {
            not_after: Some(step.contents.current.not_after),
            published: false,
            rotating: step.contents.next.is_some(),
        };
        let key = Arc::clone(&step.contents.current.key);
        self.replica.adopt(step.contents);
        // Our own publication so far is no reason to say that there is none.
        status.published = self.certificate.status().published;
        self.certificate.serve(Arc::clone(&key), status);
        for state in &targets {
            if !state.publish(&self.client, &bundle).await? {
                return Ok(Round::Again);
            }
        }
        status.published = true;
        self.certificate.serve(key, status);
        Ok(if again { Round::Again } else { Round::Settled })
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Now {
            wall: wall.map_or(0, |since| since.as_secs()),
            steady: self.begun.elapsed(),
        }
    }
}

fn api(what: String, source: kube::Error) -> ServingError {
    ServingError::Api { what, source }
}
