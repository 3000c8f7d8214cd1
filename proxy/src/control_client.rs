//! The stream with control: what it says is put in force and acknowledged; what is in force stays when it is away.
//!
//! ```text
//! workers --Ask--> Client --Resolve--> control --Destination--> Destinations.publish --> workers
//!                         <--WorkloadConfig, PolicySet, BundleSet, Quarantine, Federation, Ranges-- versions (older?) -> apply -> Shared
//!                         --Acknowledge, FlowReport each second-->
//! ```
//!
//! One task owns everything here. Streams are replaced, never repaired: after each renewal of our SVID the new one is open
//! before the old one is dropped.

mod apply;
mod convert;
mod destinations;
mod session;
mod versions;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use postern_api::ca_client::Backoff;
use postern_api::control::v1 as wire;
use postern_api::policy_wire::features_to_wire;
use postern_identity::TrustDomain;
use postern_policy::{FeatureSet, turns};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tonic::Status as GrpcStatus;
use wire::control_message::Message as FromControl;
use wire::proxy_message::Message as ToControl;

use self::apply::{InForce, Users};
use self::destinations::Asked;
use self::session::{OpenError, Opener, Session};
use self::versions::{Update, Versions};
use crate::config::Capture;
use crate::federation::Relationships;
use crate::flows::Reporter;
use crate::metrics::Metrics;
use crate::snapshot::{Ask, Shared};
use crate::status::{Level, Status, Topic, error_chain};

/// Between flow reports.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Control's own clients spread out by jitter; a proxy without control should not be so for long.
const LONGEST_AWAY: Duration = Duration::from_secs(5);
/// A stream that stood this long was good: when it ends its control has gone, and another replica behind the same name may
/// take us at once.
const STOOD: Duration = Duration::from_secs(1);
/// Over this the proxies that one replica leaves behind spread out.
const AT_ONCE: Duration = Duration::from_millis(100);
/// Between two questions about keys, whatever tokens come.
const MISSED_KEYS_TOGETHER: Duration = Duration::from_millis(100);
/// Niceness: beside a worker that is busy it still has a tenth of a core, enough to compile ten thousand rules within a second.
const GIVES_WAY: i32 = 10;
/// A name server that does not answer holds a lookup of control's name for most of a minute.
const LOOKUP_THREADS: usize = 4;
/// TLS handshakes with post-quantum keys are the deepest call chains; they need under 200 KiB.
const STACK: usize = 1024 * 1024;
/// A last report at shutdown is a courtesy.
const LAST_REPORT: Duration = Duration::from_millis(500);

/// What the client is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Control's address.
    pub(crate) address: String,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) capture: Capture,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) status: Arc<Status>,
    pub(crate) reporter: Reporter,
    /// Questions of workers.
    pub(crate) asks: mpsc::Receiver<Ask>,
    /// Told of the issuer epoch.
    pub(crate) epoch: watch::Sender<u64>,
    /// At shutdown: report once more, then answer.
    pub(crate) last: mpsc::Receiver<oneshot::Sender<()>>,
}

type Opening = Pin<Box<dyn Future<Output = Result<Session, OpenError>> + Send>>;

/// The task's state.
struct Client {
    opener: Opener,
    capture: Capture,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    reporter: Reporter,
    in_force: InForce,
    versions: Versions,
    asked: Asked,
    session: Option<Session>,
    opening: Option<Opening>,
    backoff: Backoff,
    /// Not before then.
    retry: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Control said: not before a restart.
    turned_away: bool,
    ever_connected: bool,
}

/// Runs the client for the life of the process, on a thread of its own that gives way to workers: reading and compiling ten
/// thousand rules takes tens of milliseconds, in which the main thread could not accept connections.
pub(crate) fn start(parts: Parts) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_unpark(postern_telemetry::rested)
        .max_blocking_threads(LOOKUP_THREADS)
        .build()?;
    let client = move || {
        // Of this thread alone. Where it is not possible requests wait longer while policy changes, and nothing else.
        let _ = rustix::process::setpriority_process(None, GIVES_WAY);
        turns::call(postern_telemetry::give_way);
        let _ends = EndsTheProcess;
        match runtime.block_on(run(parts)) {}
    };
    let thread = std::thread::Builder::new().name("control-client".to_owned());
    thread.stack_size(STACK).spawn(client).map(drop)
}

/// Without what hears of policy and quarantine a proxy would go on with what it has for ever: whoever started it starts it anew.
struct EndsTheProcess;

impl Drop for EndsTheProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the client of control has panicked; the proxy ends");
            std::process::exit(101);
        }
    }
}

async fn run(parts: Parts) -> Infallible {
    let Parts { mut asks, mut last, .. } = parts;
    let mut client = Client {
        opener: Opener {
            address: parts.address,
            trust_domain: parts.trust_domain.clone(),
            shared: Arc::clone(&parts.shared),
        },
        capture: parts.capture,
        reporter: parts.reporter,
        in_force: InForce {
            shared: Arc::clone(&parts.shared),
            metrics: Arc::clone(&parts.metrics),
            trust_domain: parts.trust_domain,
            epoch: parts.epoch,
            workload: None,
            compiled: None,
            peers: Arc::default(),
            providers: Arc::default(),
            rules: 0,
            users: Users::default(),
            federation: Relationships::new(),
            retired: Vec::new(),
        },
        versions: Versions::default(),
        asked: Asked::new(Arc::clone(&parts.shared)),
        session: None,
        opening: None,
        backoff: Backoff::up_to(LONGEST_AWAY),
        retry: None,
        turned_away: false,
        ever_connected: false,
        shared: parts.shared,
        metrics: parts.metrics,
        status: parts.status,
    };
    let mut changes = client.shared.changes.subscribe();
    let mut missed = client.shared.missed_keys.subscribe();
    let mut quiet_until = tokio::time::Instant::now();
    let mut tick = interval(REPORT_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        client.open_if_due();
        // Every branch is cancel-safe: a message, an ask or a tick is taken only when its branch is chosen, and an
        // opening stream stays where it is.
        tokio::select! {
            message = next(&mut client.session) => client.heard(message),
            opened = opening(&mut client.opening) => client.opened(opened),
            Some(ask) = asks.recv() => client.ask(ask),
            () = due(&mut client.retry) => client.retry = None,
            // A new identity: the next turn of the loop opens a stream with it.
            _ = changes.changed() => {}
            _ = tick.tick() => client.tick(),
            // What is missed meanwhile is found at the next turn: the tick comes each second.
            _ = missed.changed(), if quiet_until <= tokio::time::Instant::now() => {
                quiet_until = tokio::time::Instant::now() + MISSED_KEYS_TOGETHER;
                client.ask_for_keys();
            }
            Some(done) = last.recv() => {
                client.last_report().await;
                let _ = done.send(());
            }
        }
    }
}

/// The wait after the end of a stream that had stood so long; `None`: it was no good, patience. `jitter` is in 0..1.
fn at_once(stood: Option<Duration>, jitter: f64) -> Option<Duration> {
    (stood? >= STOOD).then(|| AT_ONCE.mul_f64(jitter))
}

/// Not before control's word, and not all at the same moment after it; `None`: not before a restart. `jitter` is in 0..1.
fn comes_back(retry_after_seconds: u32, jitter: f64) -> Option<Duration> {
    let told = Duration::from_secs(retry_after_seconds.into());
    (!told.is_zero()).then(|| told.mul_f64(1.0 + 0.1 * jitter))
}

async fn next(session: &mut Option<Session>) -> Option<Result<wire::ControlMessage, GrpcStatus>> {
    match session {
        Some(session) => session.incoming.next().await,
        None => std::future::pending().await,
    }
}

async fn opening(opening: &mut Option<Opening>) -> Result<Session, OpenError> {
    match opening {
        Some(opening) => opening.await,
        None => std::future::pending().await,
    }
}

async fn due(retry: &mut Option<Pin<Box<tokio::time::Sleep>>>) {
    match retry {
        Some(retry) => retry.await,
        None => std::future::pending().await,
    }
}

impl Client {
    /// Opens a stream where there is none, or where ours was opened with an SVID that has been renewed since.
    fn open_if_due(&mut self) {
        if self.opening.is_some() || self.retry.is_some() || self.turned_away {
            return;
        }
        let Some(identity) = self.shared.identity.load_full() else {
            return;
        };
        if self
            .session
            .as_ref()
            .is_some_and(|s| s.generation >= identity.generation)
        {
            return;
        }
        let hello = wire::Hello {
            version: postern_api::VERSION.to_owned(),
            features: features_to_wire(FeatureSet::all()),
            held: self.versions.held(),
            capture: self.capture.to_wire() as i32,
            federation: true,
        };
        self.opening = Some(Box::pin(self.opener.clone().open(identity, hello)));
    }

    fn opened(&mut self, opened: Result<Session, OpenError>) {
        self.opening = None;
        match opened {
            Ok(mut session) => {
                let whole = self.asked.targets().iter().all(|target| session.resolve(target));
                // The old stream, if there is one, ends here: the new one stands.
                let replaced = self.session.replace(session).is_some();
                self.metrics.process.control_connected.store(1, Ordering::Relaxed);
                self.status.solved(Topic::Control);
                if !replaced {
                    self.status.event(Level::Info, "connected to control");
                }
                self.ever_connected = true;
                if !whole {
                    self.lost("it does not take what we ask");
                }
            }
            Err(error) => {
                let text = format!("control: {}", error_chain(&error));
                // With a stream that still stands this is about its successor only.
                self.status.problem(Topic::Control, Level::Warning, text);
                if self.session.is_none() {
                    self.asked.control_is_away();
                }
                self.wait_before_retry();
            }
        }
    }

    fn heard(&mut self, message: Option<Result<wire::ControlMessage, GrpcStatus>>) {
        // Only a stream that says something counts as a success.
        match message {
            Some(Ok(message)) => {
                self.backoff.reset();
                self.take(message);
            }
            Some(Err(status)) => self.lost(&format!("it broke: {}", status.message())),
            None => self.lost("it ended"),
        }
    }

    fn lost(&mut self, why: &str) {
        let stood = self.session.take().map(|session| session.since.elapsed());
        self.versions.stream_ended();
        self.metrics.process.control_connected.store(0, Ordering::Relaxed);
        let text = format!("the stream with control is gone ({why}); what is in force stays");
        self.status.problem(Topic::Control, Level::Warning, text);
        self.asked.control_is_away();
        match at_once(stood, fastrand::f64()) {
            Some(wait) => self.retry = Some(Box::pin(sleep(wait))),
            None => self.wait_before_retry(),
        }
    }

    fn wait_before_retry(&mut self) {
        let wait = self.backoff.after_failure(fastrand::f64());
        self.retry = Some(Box::pin(sleep(wait)));
    }

    /// While control is away nobody is asked, and whoever waits gives up by its own deadline.
    fn ask_for_keys(&mut self) {
        let mut asks = BTreeMap::new();
        // Only our own look: nobody need hear of it.
        self.shared.missed_keys.send_if_modified(|missed| {
            asks = missed.take();
            false
        });
        for (provider, ask) in asks {
            if let Some(session) = &self.session {
                session.send(ToControl::WantKeys(wire::WantKeys { provider, ask }));
            }
        }
    }

    fn take(&mut self, message: wire::ControlMessage) {
        let update = match message.message {
            Some(FromControl::Workload(m)) => Update::Workload(m),
            Some(FromControl::Policies(m)) => Update::Policies(m),
            Some(FromControl::Bundle(m)) => Update::Bundle(m),
            Some(FromControl::Quarantine(m)) => Update::Quarantine(m),
            Some(FromControl::Federation(m)) => Update::Federation(m),
            Some(FromControl::Ranges(m)) => Update::Ranges(m),
            Some(FromControl::PeerLabels(m)) => Update::PeerLabels(m),
            Some(FromControl::Destination(m)) => {
                // One that was released while its update was under way.
                let Some(target) = self.session.as_ref().and_then(|s| s.target(m.id)).cloned() else {
                    return;
                };
                Update::Destination(target, m)
            }
            // Their age is their version.
            Some(FromControl::Keys(set)) => {
                if let Err(error) = self.in_force.keys(&set) {
                    self.count_refusal(&error);
                }
                return;
            }
            Some(FromControl::Refused(refused)) => return self.refused(&refused),
            // A newer control's message, which it may only send to those who announced that they know it.
            None => return self.count_refusal("a message that is not understood"),
        };
        let (kind, version) = (update.kind(), update.version());
        let refused = match self.versions.admit(&update, Instant::now()) {
            Ok(()) => self.put_in_force(update),
            Err(older) => {
                self.count_refusal(&format!("{}: {older}", kind.as_str_name()));
                older
            }
        };
        self.acknowledge(kind, version, refused);
    }

    /// Empty, or why it was refused.
    fn put_in_force(&mut self, update: Update) -> String {
        let (key, version) = (update.key(), update.version());
        let applied = match update {
            Update::Destination(target, answer) => match convert::destination(&answer) {
                Ok(destination) => {
                    if let Some(released) = self.asked.answered(&target, destination) {
                        self.versions.forget(&versions::Key::Destination(released.clone()));
                        self.session.as_mut().map(|session| session.release(&released));
                    }
                    Ok(())
                }
                Err(error) => {
                    self.asked.refused(&target);
                    Err(error)
                }
            },
            other => self.in_force.apply(other),
        };
        match applied {
            Ok(()) => {
                self.versions.applied(key, version);
                String::new()
            }
            Err(error) => {
                self.count_refusal(&format!("{}: {error}", versions::kind(&key).as_str_name()));
                error
            }
        }
    }

    fn count_refusal(&self, what: &str) {
        self.metrics.process.control_refusals.fetch_add(1, Ordering::Relaxed);
        self.status.event(
            Level::Error,
            format!("refused what control sent, the last good state stays: {what}"),
        );
    }

    fn acknowledge(&mut self, kind: wire::Kind, version: u64, refused: String) {
        let acknowledge = wire::Acknowledge {
            kind: kind as i32,
            version,
            refused,
        };
        if let Some(session) = &self.session
            && !session.send(ToControl::Acknowledge(acknowledge))
        {
            self.lost("it does not take our acknowledgements");
        }
    }

    fn refused(&mut self, refused: &wire::Refused) {
        self.lost(&format!("control will not serve us: {}", refused.reason));
        match comes_back(refused.retry_after_seconds, fastrand::f64()) {
            Some(wait) => self.retry = Some(Box::pin(sleep(wait))),
            None => {
                self.turned_away = true;
                let reason = &refused.reason;
                self.status.event(
                    Level::Error,
                    format!("control turns this proxy away until it is restarted: {reason}"),
                );
            }
        }
    }

    fn ask(&mut self, ask: Ask) {
        let Some(target) = self.asked.ask(ask) else { return };
        match &mut self.session {
            Some(session) => {
                // Asked before and never answered: the new question replaces the old one.
                let whole = session.release(&target) && session.resolve(&target);
                if !whole {
                    self.lost("it does not take what we ask");
                }
            }
            // The first stream is about to stand; opened() asks for whatever waits.
            None if self.opening.is_some() && !self.ever_connected => {}
            None => self.asked.control_is_away(),
        }
    }

    fn tick(&mut self) {
        for update in self.versions.due(Instant::now()) {
            let (kind, version) = (update.kind(), update.version());
            self.status.event(
                Level::Warning,
                format!(
                    "took an older version after all ({} {version}): control has kept saying it",
                    kind.as_str_name()
                ),
            );
            let refused = self.put_in_force(update);
            self.acknowledge(kind, version, refused);
        }
        self.in_force.free_retired();
        self.report();
    }

    fn report(&mut self) {
        if let Some(session) = &self.session {
            self.reporter.report(|report| session.send(ToControl::Flows(report)));
        }
    }

    async fn last_report(&mut self) {
        self.report();
        if let Some(session) = &mut self.session {
            session.finish();
            // Control ends its side when it has read ours.
            let _ = timeout(LAST_REPORT, async { while session.incoming.next().await.is_some() {} }).await;
        }
        self.turned_away = true;
        self.session = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_had_stood_is_replaced_at_once_and_one_that_had_not_after_a_wait() {
        assert_eq!(at_once(Some(STOOD), 0.0), Some(Duration::ZERO));
        assert_eq!(at_once(Some(Duration::from_secs(3_600)), 1.0), Some(AT_ONCE));
        assert_eq!(
            at_once(Some(STOOD - Duration::from_millis(1)), 0.0),
            None,
            "a loop would spin"
        );
        assert_eq!(at_once(None, 0.0), None, "there was none");
    }

    #[test]
    fn a_proxy_comes_back_when_control_said_and_only_without_a_time_never() {
        assert_eq!(comes_back(0, 0.5), None);
        let told = Duration::from_secs(45);
        assert_eq!(comes_back(45, 0.0), Some(told));
        let latest = comes_back(45, 1.0).unwrap_or_default();
        assert!(latest > told && latest < told + Duration::from_secs(5), "{latest:?}");
    }
}
