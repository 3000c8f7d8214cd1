//! Follows one kind of object: a list, then what changes after it; a new list where that cannot be told.
//!
//! Written out rather than left to `kube::runtime::watcher`, which keeps the resource versions of lists and bookmarks to
//! itself: control tells proxies by them how new its state is.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Status;
use kube::{Api, Resource, ResourceExt as _};
use postern_api::ca_client::Backoff;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::complaint::Complaint;
use super::world::{Change, Item, Kind};
use crate::error_chain;
use crate::hub::{Hub, Wanted};
use crate::model::Name;

/// Objects per page, as client-go has it.
const PAGE: u32 = 500;
/// A page takes milliseconds; an API server that has hung is asked again.
const LIST_DEADLINE: Duration = Duration::from_secs(30);
/// One object.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// An API server ends a watch after this and sends a bookmark shortly before: so often control hears that nothing is new.
const WATCH_SECONDS: std::ops::Range<u32> = 30..45;
/// A connection that has died in silence is noticed this long after the watch should have ended.
const WATCH_MARGIN: Duration = Duration::from_secs(5);
/// Between attempts: an API server that is back is noticed within two seconds.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A watch that ends sooner was cut, and is not begun again at once.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);
/// Between two lists that a proxy asked for.
const BREATH: Duration = Duration::from_millis(500);
/// After one that brought less than was said to be there: what the API server itself does not have (it was restored, or the
/// proxy lies) is not to be had, and nobody may have everything listed all the time.
const DISBELIEF: Duration = Duration::from_secs(30);

/// Why a watch is over.
enum End {
    /// As agreed; the next one goes on where it was.
    Again,
    /// What came since is not to be had.
    Expired,
    /// Somebody knows of something newer.
    Behind,
    Failed(kube::Error),
}

/// One kind of object and where its changes go.
pub(super) struct Follower<K, F> {
    pub(super) api: Api<K>,
    pub(super) kind: Kind,
    /// Only those of this selector of fields; empty: all.
    pub(super) fields: &'static str,
    /// What is kept of an object; nothing if it does not count (any more).
    pub(super) keep: F,
    pub(super) hub: Arc<Hub>,
    pub(super) wanted: watch::Receiver<Wanted>,
    pub(super) out: mpsc::Sender<Change>,
    pub(super) complaint: Complaint,
    /// Until when nobody's word is heard that there is something newer.
    pub(super) deaf_until: Instant,
}

/// There is no such kind on this API server.
#[derive(Debug)]
pub(super) struct NoSuchKind;

impl<K, F> Follower<K, F>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    F: Fn(K) -> Option<Item>,
{
    /// Until there is no such kind, or nobody listens.
    pub(super) async fn run(&mut self) -> NoSuchKind {
        let mut backoff = Backoff::up_to(LONGEST_WAIT);
        loop {
            // Whatever is newer than this list is asked for anew.
            let wanted = self.wanted.borrow_and_update().revision;
            let (items, mut at) = match self.list().await {
                Ok(listed) => listed,
                Err(kube::Error::Api(status)) if status.code == 404 => return NoSuchKind,
                Err(error) => {
                    self.say("list", &error).await;
                    tokio::time::sleep(backoff.after_failure(fastrand::f64())).await;
                    continue;
                }
            };
            backoff.reset();
            self.complaint.over();
            let (kind, revision) = (self.kind, number(&at));
            if self.out.send(Change::Listed { kind, items, revision }).await.is_err() {
                return NoSuchKind;
            }
            let pause = if revision < wanted {
                self.hub.not_to_be_had(wanted, revision);
                DISBELIEF
            } else {
                BREATH
            };
            self.deaf_until = Instant::now() + pause;
            loop {
                let begun = Instant::now();
                match self.watch(&mut at).await {
                    End::Again if begun.elapsed() >= SHORTEST_WATCH => backoff.reset(),
                    End::Again => tokio::time::sleep(backoff.after_failure(fastrand::f64())).await,
                    End::Expired | End::Behind => break,
                    End::Failed(error) => {
                        self.say("watch", &error).await;
                        tokio::time::sleep(backoff.after_failure(fastrand::f64())).await;
                    }
                }
            }
        }
    }

    /// All of them, page by page; nobody sees a part of it.
    async fn list(&self) -> kube::Result<(Vec<(Name, Item)>, String)> {
        let (mut items, mut token) = (Vec::new(), None);
        loop {
            let params = ListParams {
                limit: Some(PAGE),
                continue_token: token,
                field_selector: self.field_selector(),
                ..ListParams::default()
            };
            let page = within(LIST_DEADLINE, self.api.list(&params)).await?;
            items.extend(page.items.into_iter().filter_map(|object| self.kept(object)));
            token = page.metadata.continue_.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok((items, page.metadata.resource_version.unwrap_or_default()));
            }
        }
    }

    fn field_selector(&self) -> Option<String> {
        (!self.fields.is_empty()).then(|| self.fields.to_owned())
    }

    fn kept(&self, object: K) -> Option<(Name, Item)> {
        let name = name_of(&object);
        Some((name, (self.keep)(object)?))
    }

    /// Hands on what changes after `at`, and moves `at` along.
    async fn watch(&mut self, at: &mut String) -> End {
        let seconds = fastrand::u32(WATCH_SECONDS);
        let params = WatchParams {
            timeout: Some(seconds),
            field_selector: self.field_selector(),
            ..WatchParams::default()
        };
        let silence = Duration::from_secs(seconds.into()) + WATCH_MARGIN;
        let begun = tokio::time::timeout(silence, self.api.watch(&params, at)).await;
        let mut events = match begun {
            Ok(Ok(events)) => events.boxed(),
            // No such kind (any more): the list will say so.
            Ok(Err(kube::Error::Api(status))) if gone(&status) || status.code == 404 => return End::Expired,
            Ok(Err(error)) => return End::Failed(error),
            Err(_) => return End::Again,
        };
        loop {
            let event = tokio::select! {
                event = tokio::time::timeout(silence, events.try_next()) => event,
                behind = behind(&mut self.wanted, number(at), self.deaf_until) => match behind {
                    true => return End::Behind,
                    // Nobody is left who could say so.
                    false => std::future::pending().await,
                },
            };
            let change = match event {
                Err(_) | Ok(Ok(None)) => return End::Again,
                Ok(Err(kube::Error::Api(status))) if gone(&status) => return End::Expired,
                Ok(Err(error)) => return End::Failed(error),
                Ok(Ok(Some(WatchEvent::Error(status)))) if gone(&status) => return End::Expired,
                Ok(Ok(Some(WatchEvent::Error(status)))) => return End::Failed(kube::Error::Api(status)),
                Ok(Ok(Some(WatchEvent::Bookmark(bookmark)))) => {
                    *at = bookmark.metadata.resource_version;
                    Change::Confirmed {
                        kind: self.kind,
                        revision: number(at),
                    }
                }
                Ok(Ok(Some(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                    let (kind, name) = (self.kind, name_of(&object));
                    *at = object.resource_version().unwrap_or_default();
                    let (item, revision) = ((self.keep)(object), number(at));
                    Change::Set {
                        kind,
                        name,
                        item,
                        revision,
                    }
                }
                Ok(Ok(Some(WatchEvent::Deleted(object)))) => {
                    let (kind, name) = (self.kind, name_of(&object));
                    *at = object.resource_version().unwrap_or_default();
                    Change::Set {
                        kind,
                        name,
                        item: None,
                        revision: number(at),
                    }
                }
            };
            if self.out.send(change).await.is_err() {
                // Nobody listens any more: the process is going down.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn say(&mut self, what: &str, error: &kube::Error) {
        let why = format!("{} {what}: {}", self.kind.word(), why(error));
        self.complaint.say(&why);
        let _ = self.out.send(Change::Failed { kind: self.kind, why }).await;
    }
}

/// No answer within the deadline is an error like others.
pub(super) async fn within<T>(deadline: Duration, call: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let answer = tokio::time::timeout(deadline, call).await;
    answer.unwrap_or_else(|elapsed| Err(kube::Error::Service(elapsed.into())))
}

/// In one line.
pub(super) fn why(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => error_chain(other),
    }
}

/// Waits until somebody wants something newer than `at`. False: nobody can any more.
async fn behind(wanted: &mut watch::Receiver<Wanted>, at: u64, deaf_until: Instant) -> bool {
    tokio::time::sleep_until(deaf_until).await;
    loop {
        if wanted.changed().await.is_err() {
            return false;
        }
        if wanted.borrow_and_update().revision > at {
            return true;
        }
    }
}

/// "Expired" within a watch, "Gone" at its start: the API server does not have the past any more.
fn gone(status: &Status) -> bool {
    status.code == 410
}

fn name_of<K: Resource>(object: &K) -> Name {
    let metadata = object.meta();
    let namespace = metadata.namespace.clone().unwrap_or_default();
    (namespace, metadata.name.clone().unwrap_or_default())
}

/// Since Kubernetes 1.35 resource versions are promised to be numbers that grow (KEP-5504); API servers on etcd have always
/// had them so. 0 if this one is none: then nothing can be said about its age.
pub(super) fn number(resource_version: &str) -> u64 {
    resource_version.parse().unwrap_or(0)
}
