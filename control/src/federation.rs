//! Other trust domains whose identities are believed here, each under its own bundle (SPIFFE Federation).
//!
//! ```text
//! file of relationships (looked at twice a second) -> one keeper each:  bundle given, or kept from before
//!                                                 -> fetch from its endpoint, as often as it hints -> Told -> sessions -> proxies
//! ```
//!
//! Invariants: nothing here is ever for our own name, nor for another name of it; what cannot be read or fetched leaves what
//! was there before; a relationship that is taken out of the file takes its bundle with it, and so does a control without a
//! file with all of them; control itself believes nobody of another trust domain (its own TLS goes by our bundle alone).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use postern_identity::{TrustBundle, TrustDomain};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::hub::Hub;
use crate::state::next_version;

mod cache;
mod endpoint;
mod keeper;
mod relationship;

use cache::Cache;
pub(crate) use endpoint::Fetcher;
pub use endpoint::RootsError;
use keeper::Keeper;
use relationship::{Looked, Relationship};

/// Between two looks at the file: a relationship that ends is over within a second. ConfigMaps and editors replace the file.
const LOOK: Duration = Duration::from_millis(500);
/// The longest that an endpoint may have us wait, unless the command line says less: a root that was withdrawn is believed for so long.
const LONGEST_POLL: Duration = Duration::from_secs(60 * 60);
/// A document past this is not carried to proxies: a bundle of twenty roots is half of it.
const MAX_CARRIED: usize = 64 * 1024;

/// With whom there are relationships, and how their bundles are fetched.
#[derive(Debug, Clone)]
pub struct FederationConfig {
    /// `ClusterFederatedTrustDomain` documents; `None`: there is no other trust domain.
    pub file: Option<PathBuf>,
    /// Where the last good bundles are kept over a restart.
    pub cache: Option<PathBuf>,
    /// Roots (PEM) of endpoints of profile https_web; `None`: Mozilla's.
    pub roots: Option<PathBuf>,
    /// An endpoint is asked at least this often, whatever it hints; default 1 hour.
    pub longest_poll: Duration,
}

impl Default for FederationConfig {
    fn default() -> Self {
        Self {
            file: None,
            cache: None,
            roots: None,
            longest_poll: LONGEST_POLL,
        }
    }
}

/// A file that control does not start with: what proxies hold from before would go on to be believed beside it.
#[derive(Debug, thiserror::Error)]
#[error("{file} is refused, and proxies may believe others as us by what they hold from before: {why}")]
pub struct RefusedAtStart {
    file: String,
    why: String,
}

/// What proxies are told.
#[derive(Debug, Default, Clone)]
pub(crate) struct Told {
    /// 0: the file was refused since we started, and proxies keep what they have.
    pub(crate) version: u64,
    pub(crate) bundles: BTreeMap<TrustDomain, Foreign>,
}

/// One relationship, and its bundle if there is one.
#[derive(Debug, Clone)]
pub(crate) struct Foreign {
    /// Names it, as it is configured.
    pub(crate) relationship: String,
    pub(crate) bundle: Option<Arc<TrustBundle>>,
    /// The bundle is what the first fetch is verified by: a proxy may hold a later one.
    pub(crate) bootstrap: bool,
}

/// See the module; part of the hub.
#[derive(Debug, Default)]
pub(crate) struct Federation {
    told: watch::Sender<Arc<Told>>,
    /// The file and why it is refused now.
    refused: Mutex<Option<(String, Vec<String>)>>,
}

impl Federation {
    pub(crate) fn told(&self) -> Arc<Told> {
        Arc::clone(&self.told.borrow())
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Told>> {
        self.told.subscribe()
    }

    /// For pictures.
    pub(crate) fn refused(&self) -> Option<(String, Vec<String>)> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_refused(&self, refused: Option<(String, Vec<String>)>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
    }

    /// These relationships and no others; what is held of those that stay stays. Where there is an endpoint, its keeper says
    /// what to begin with.
    fn relate(&self, relationships: &BTreeMap<TrustDomain, Relationship>) {
        self.told.send_modify(|told| {
            let mut bundles = BTreeMap::new();
            for (name, relationship) in relationships {
                let held = told.bundles.get(name);
                let held = held.filter(|held| held.relationship == relationship.name());
                let given = || match relationship.endpoint {
                    None => relationship.given_bundle().map(Arc::new),
                    Some(_) => None,
                };
                bundles.insert(
                    name.clone(),
                    Foreign {
                        relationship: relationship.name(),
                        bundle: held.and_then(|held| held.bundle.clone()).or_else(given),
                        bootstrap: held.is_some_and(|held| held.bootstrap),
                    },
                );
            }
            *told = Arc::new(Told {
                version: next_version(told.version, SystemTime::now()),
                bundles,
            });
        });
    }

    /// A bundle of a relationship, unless that has ended meanwhile.
    fn put(&self, relationship: &Relationship, bundle: &Arc<TrustBundle>, bootstrap: bool) {
        self.told.send_if_modified(|told| {
            let held = told.bundles.get(&relationship.trust_domain);
            if held.is_none_or(|held| held.relationship != relationship.name()) {
                return false;
            }
            let mut next = Told::clone(told);
            if let Some(held) = next.bundles.get_mut(&relationship.trust_domain) {
                held.bundle = Some(Arc::clone(bundle));
                held.bootstrap = bootstrap;
            }
            next.version = next_version(next.version, SystemTime::now());
            *told = Arc::new(next);
            true
        });
    }
}

struct Kept {
    relationship: Relationship,
    task: AbortHandle,
}

/// Keeps the file and the bundles of all that it names.
pub(crate) struct Follower {
    hub: Arc<Hub>,
    file: PathBuf,
    longest_poll: Duration,
    fetcher: Arc<Fetcher>,
    cache: Cache,
    /// Ends with this.
    tasks: JoinSet<Infallible>,
    kept: BTreeMap<TrustDomain, Kept>,
    last: Option<Arc<Looked>>,
}

/// Looks for the first time: before the first proxy is served, it is known whom to believe. `None`: nobody else, and that is
/// told.
pub(crate) async fn begin(
    hub: &Arc<Hub>,
    config: FederationConfig,
    fetcher: Fetcher,
) -> Result<Option<Follower>, RefusedAtStart> {
    let Some(file) = config.file else {
        hub.federation.relate(&BTreeMap::new());
        return Ok(None);
    };
    let mut follower = Follower {
        hub: Arc::clone(hub),
        file,
        longest_poll: config.longest_poll,
        fetcher: Arc::new(fetcher),
        cache: Cache::at(config.cache),
        tasks: JoinSet::new(),
        kept: BTreeMap::new(),
        last: None,
    };
    follower.look().await;
    let looked = follower.last.as_ref().map(|looked| &looked.found);
    // Of what cannot be read at all nobody knows whether it names us. With another name of ours that may matter: proxies that
    // hold a bundle for it would take its owner's workloads for ours.
    let aliased = !hub.mesh.trust_domain_alias.is_empty();
    match looked {
        Some(Err(refused)) if refused.names_us || aliased => Err(RefusedAtStart {
            file: follower.file.display().to_string(),
            why: refused.errors.join("; "),
        }),
        Some(_) | None => Ok(Some(follower)),
    }
}

impl Follower {
    /// For ever.
    pub(crate) async fn run(mut self) -> Infallible {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let (path, mesh, last) = (self.file.clone(), self.hub.mesh.clone(), self.last.clone());
        let look = move || relationship::look(&path, &mesh, last.as_deref());
        // A look that panics is one that found nothing new.
        let Ok(Some(looked)) = tokio::task::spawn_blocking(look).await else {
            return;
        };
        if self.last.as_ref().map(|last| &last.found) != Some(&looked.found) {
            match &looked.found {
                Ok(relationships) => self.accept(relationships).await,
                Err(refused) => self.refuse(&refused.errors),
            }
            self.hub.look();
        }
        self.last = Some(Arc::new(looked));
    }

    /// Ends the relationships that are not there any more, or are not what they were, and begins the others.
    async fn accept(&mut self, relationships: &BTreeMap<TrustDomain, Relationship>) {
        let hub = &self.hub;
        hub.federation.set_refused(None);
        let mut over = Vec::new();
        self.kept.retain(|name, kept| {
            let stays = relationships.get(name) == Some(&kept.relationship);
            if !stays {
                kept.task.abort();
            }
            if !relationships.contains_key(name) {
                over.push(name.clone());
            }
            stays
        });
        hub.federation.relate(relationships);
        for name in &over {
            hub.metrics.not_federated_any_more(name);
            tracing::info!(trust_domain = %name, "the relationship has ended");
            hub.event("warning", format!("identities of {name} are not believed any more"));
        }
        let cache = self.cache.clone();
        // What stays behind is of use to the very same relationship alone.
        let _ = tokio::task::spawn_blocking(move || over.iter().for_each(|name| cache.forget(name))).await;
        for (name, relationship) in relationships {
            if !self.kept.contains_key(name) {
                self.start(relationship);
            }
        }
    }

    fn start(&mut self, relationship: &Relationship) {
        let (hub, name) = (&self.hub, &relationship.trust_domain);
        hub.event("info", format!("identities of {name} are believed under its bundle"));
        if relationship.endpoint.is_some() {
            hub.metrics.federating(name);
        }
        if relationship.proves_itself() && !self.cache.is_there() {
            let what = "its bundle is not kept over a restart (--federation-cache): after two rotations of its roots it cannot \
                        be followed from `trustDomainBundle` any more";
            tracing::warn!(reason = "federation_cache", trust_domain = %name, "{what}");
            hub.event("warning", format!("{name}: {what}"));
        }
        let keeper = Keeper {
            hub: Arc::clone(hub),
            fetcher: Arc::clone(&self.fetcher),
            cache: self.cache.clone(),
            longest_poll: self.longest_poll,
            relationship: relationship.clone(),
        };
        let task = self.tasks.spawn(keeper.run());
        let relationship = relationship.clone();
        self.kept
            .insert(relationship.trust_domain.clone(), Kept { relationship, task });
    }

    fn refuse(&self, errors: &[String]) {
        let file = self.file.display().to_string();
        for error in errors {
            tracing::error!(reason = "bad_file", file, "{error}");
        }
        let first = errors.first().map_or("", String::as_str);
        self.hub.event(
            "error",
            format!("{file} is refused, relationships stay as they are: {first}"),
        );
        self.hub.federation.set_refused(Some((file, errors.to_vec())));
    }
}
