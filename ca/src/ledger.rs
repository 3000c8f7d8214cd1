//! The ledger: what this CA has issued and refused, in a chain that shows each change to it.
//!
//! ```text
//! issuance --record--.                          .--> DIR/ledger.redb: synced, many in one step   (a directory's CA)
//! refusal  --note----+--> one thread: sealed ---+
//! own SVID --note----'    under the chain's key '--> standard output: a JSON line each          (replicas over a Secret)
//! ```
//!
//! A certificate leaves only after its record is where it belongs. So the ledger may name one that nobody got (the CA was
//! killed in between, the caller had gone), and never lacks one that somebody has. What one replica does is one chain,
//! named by authority and replica: `chain.rs` says what its records are bound to.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use postern_api::refusal::RefusalReason;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::store::{Kind, Store, StoreError};

pub(crate) mod chain;
pub(crate) mod command;
pub(crate) mod entry;
pub(crate) mod kept;
mod refusals;
#[cfg(test)]
mod tests;
pub(crate) mod verify;
mod writer;

use chain::{Chain, Key, KeyRecord, Mark, authority_name, parse_hash};
use entry::{Entry, Event};
use kept::{CHECKED_AT_START, FILE, Kept, KeptError};
use refusals::Told;
use writer::{Place, Work, Writer};

/// Records that wait for the disk; requests in work are fewer.
const WAITING: usize = 1_024;
/// The shortest time that records are kept.
pub(crate) const MIN_RETENTION: Duration = Duration::from_secs(3600);
/// How long records are kept, unless somebody says otherwise: longer than any certificate lives.
pub const DEFAULT_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
/// However long that is: 30 days of 10,000 workloads with certificates of 4 h. About 2.5 GB.
pub const MAX_RECORDS: u64 = 4_000_000;

/// How the ledger is kept.
#[derive(Debug, Clone)]
pub struct LedgerConfig {
    /// Older records are taken out (of a directory; whoever collects standard output sees to it there).
    pub retention: Duration,
    /// More are taken out, the oldest first.
    pub max_records: u64,
    /// Where records go as lines, if there is no directory.
    pub lines: Lines,
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self {
            retention: DEFAULT_RETENTION,
            max_records: MAX_RECORDS,
            lines: Lines::stdout(),
        }
    }
}

type TakeLine = dyn Fn(&str) -> std::io::Result<()> + Send + Sync;

/// Takes lines; an error: this one was not taken.
#[derive(Clone)]
pub struct Lines(Arc<TakeLine>);

impl Lines {
    /// To whatever takes a line.
    pub fn to(take: impl Fn(&str) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Standard output, one line in one write.
    #[must_use]
    pub fn stdout() -> Self {
        Self::to(|line| {
            use std::io::Write as _;
            let mut out = std::io::stdout().lock();
            out.write_all(format!("{line}\n").as_bytes())?;
            out.flush()
        })
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lines")
    }
}

/// The ledger of a running CA.
pub(crate) struct Ledger {
    work: Option<SyncSender<Work>>,
    thread: Option<std::thread::JoinHandle<()>>,
    clock: Clock,
    metrics: Metrics,
    /// In a directory, for readers.
    kept: Option<(Arc<Kept>, Key)>,
}

impl Ledger {
    /// Opens or begins the chain of a directory's store; every record that is checked has held when this returns.
    pub(crate) fn open(
        store: &Arc<Store>,
        // Of the root that the CA was founded with.
        root_sha256: [u8; 32],
        config: &LedgerConfig,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Self, StoreError> {
        let damaged = |why: String| StoreError::Damaged {
            path: store.beside(FILE),
            kind: Kind::Ledger,
            why,
        };
        let (record, kept) = match (store.read::<KeyRecord>(Kind::Ledger)?, store.beside(FILE).exists()) {
            (None, true) => return Err(store.damaged(Kind::Ledger, "it is missing, and ledger.redb is there")),
            (Some(KeyRecord { mark: Some(mark), .. }), false) => {
                let number = mark.number;
                return Err(damaged(format!("it is missing, and {number} records were written")));
            }
            (Some(record), true) => (record, Kept::at(&store.beside(FILE))),
            // Nothing yet, or killed just after its first step.
            (record, false) => begun(store, record, root_sha256)?,
        };
        let key = record.key().map_err(|why| store.damaged(Kind::Ledger, why))?;
        let told = |error: KeptError| match error {
            KeptError::Damaged(why) => damaged(why),
            KeptError::Io(why) => StoreError::Io {
                what: "open",
                path: store.beside(FILE),
                source: std::io::Error::other(why),
            },
        };
        let chain = kept.chain().map_err(told)?;
        if chain.key != key.id() {
            return Err(damaged(format!(
                "it is sealed under key {}, and ledger.json has {}",
                chain.key,
                key.id()
            )));
        }
        if chain.authority != authority_name(root_sha256) {
            return Err(damaged(format!("it is the ledger of another CA, {}", chain.authority)));
        }
        let head = checked(&kept, &key, record.mark.as_ref()).map_err(told)?;
        tracing::info!(chain = %chain, records = head.number, head = crate::tokens::hex(&head.hash), "ledger");
        let kept = Arc::new(kept);
        let place = Place::Directory {
            kept: Arc::clone(&kept),
            store: Arc::clone(store),
            record,
        };
        let readers = Some((kept, key.clone()));
        Ok(Self::running(
            (chain, key, head),
            place,
            config,
            clock,
            metrics,
            readers,
        ))
    }

    /// A chain of lines; it begins with this process.
    #[cfg_attr(not(feature = "kubernetes"), allow(dead_code))] // Only replicas over a Secret have no directory.
    pub(crate) fn as_lines(
        record: &KeyRecord,
        root_sha256: [u8; 32],
        replica: &str,
        config: &LedgerConfig,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Self, String> {
        let key = record.key()?;
        let chain = Chain::begin(root_sha256, replica, &key).map_err(|error| error.to_string())?;
        let place = Place::Lines(config.lines.clone());
        Ok(Self::running(
            (chain, key, kept::EMPTY),
            place,
            config,
            clock,
            metrics,
            None,
        ))
    }

    fn running(
        (chain, key, head): (Chain, Key, kept::Head),
        place: Place,
        config: &LedgerConfig,
        clock: Clock,
        metrics: Metrics,
        kept: Option<(Arc<Kept>, Key)>,
    ) -> Self {
        let (work, todo) = sync_channel(WAITING);
        let writer = Writer::new((chain, key, head), place, config, Arc::clone(&clock), metrics.clone());
        let thread = std::thread::Builder::new().name("ledger".to_owned());
        let thread = thread.spawn(move || writer.run(&todo));
        Self {
            work: Some(work),
            thread: thread
                .inspect_err(|error| tracing::error!(%error, "the ledger has no thread"))
                .ok(),
            clock,
            metrics,
            kept,
        }
    }

    /// Returns when it is durable, or an error: then the certificate must not leave.
    pub(crate) async fn record(&self, event: Event) -> Result<(), Refusal> {
        let refused = |why: &str| Refusal::new(RefusalReason::Ledger, format!("{why}; try again shortly"));
        let (done, told) = oneshot::channel();
        let entry = Entry::at((self.clock)(), event);
        self.send(Work::Record { entry, done }).map_err(refused)?;
        match told.await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(refused(
                "the CA cannot write its ledger, and issues nothing unrecorded; its log says why",
            )),
        }
    }

    /// Will be recorded; nobody waits for it.
    pub(crate) fn note(&self, event: Event) {
        let entry = Entry::at((self.clock)(), event);
        self.send_or_count(Work::Note(entry));
    }

    /// A refusal, which may be counted with others that are like it.
    pub(crate) fn refused(&self, refusal: &Refusal, attestation: &'static str, caller: IpAddr) {
        self.send_or_count(Work::Refused(Told {
            reason: refusal.reason(),
            attestation,
            caller,
            message: refusal.to_string(),
        }));
    }

    fn send_or_count(&self, work: Work) {
        if self.send(work).is_err() {
            self.metrics.ledger_lost(1);
        }
    }

    fn send(&self, work: Work) -> Result<(), &'static str> {
        let sender = self.work.as_ref().ok_or("the ledger is closed")?;
        match sender.try_send(work) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err("too many records wait for the ledger's disk"),
            Err(TrySendError::Disconnected(_)) => Err("the ledger is closed"),
        }
    }

    /// For readers, once everything until now is written; none where records go elsewhere.
    pub(crate) async fn kept(&self) -> Option<(Arc<Kept>, Key)> {
        let kept = self.kept.clone()?;
        let (done, told) = oneshot::channel();
        if self.send(Work::Flush(done)).is_ok() {
            // An error is a thread that has ended: there is nothing to wait for.
            let _ = told.await;
        }
        Some(kept)
    }
}

impl Drop for Ledger {
    /// What was sent is written, and the store is given up.
    fn drop(&mut self) {
        drop(self.work.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The key first, then the file: killed in between, the key is used next time.
fn begun(store: &Store, record: Option<KeyRecord>, root_sha256: [u8; 32]) -> Result<(KeyRecord, Kept), StoreError> {
    let path = store.beside(FILE);
    let kek = |source| StoreError::Kek {
        path: path.clone(),
        source,
    };
    let record = match record {
        Some(record) => record,
        None => {
            let record = KeyRecord::create().map_err(kek)?;
            store.write(Kind::Ledger, &record)?;
            record
        }
    };
    let key = record.key().map_err(|why| store.damaged(Kind::Ledger, why))?;
    let chain = Chain::begin(root_sha256, &replica(), &key).map_err(kek)?;
    // Under another name until it is whole: what a kill leaves half made is no ledger.
    let making = store.beside(".ledger.redb.tmp");
    let failed = |source: std::io::Error| StoreError::Io {
        what: "create",
        path: path.clone(),
        source,
    };
    match std::fs::remove_file(&making) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let made = Kept::create(&making, &chain).and_then(|kept| {
        let event = Event::Begun {
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        kept.append(
            &chain,
            &key,
            kept::EMPTY,
            &[&Entry::at(rustls_pki_types::UnixTime::now(), event)],
        )
    });
    made.map_err(|error| failed(std::io::Error::other(error.to_string())))?;
    std::fs::rename(&making, &path).map_err(failed)?;
    let parent = path.parent().unwrap_or(std::path::Path::new("."));
    std::fs::File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(failed)?;
    Ok((record, Kept::at(&path)))
}

/// The newest records follow each other, the last one is ours, and it is not behind what was there once.
fn checked(kept: &Kept, key: &Key, mark: Option<&Mark>) -> Result<kept::Head, KeptError> {
    let mut newest = Ok(());
    let begin = |chain: &Chain, anchor: Option<&chain::Anchor>| match anchor {
        Some(anchor) if !chain.anchor_holds(key, anchor) => Err(KeptError::Damaged(
            "what it says of records that were taken out was not sealed by this CA".to_owned(),
        )),
        Some(_) | None => Ok(()),
    };
    let head = kept.walk(CHECKED_AT_START, begin, |record| {
        // Only the last is worth a look: the others' hashes stand in it.
        newest = record
            .chain
            .open(key, record.number, &record.before, record.sealed)
            .map(drop)
            .map_err(|why| KeptError::Damaged(format!("record {}: {why}", record.number)));
        Ok(())
    })?;
    newest?;
    let anchor = kept.anchor()?;
    let Some(mark) = mark else { return Ok(head) };
    if mark.number > head.number {
        return Err(KeptError::Damaged(format!(
            "it ends at record {}, and record {} was written: an older one was put back",
            head.number, mark.number
        )));
    }
    let held = match anchor {
        // Taken out since.
        Some(anchor) if mark.number < anchor.number => return Ok(head),
        Some(anchor) if mark.number == anchor.number => Some(anchor.hash.0),
        Some(_) | None => kept.hash_of(mark.number)?,
    };
    match held == parse_hash(&mark.hash) {
        true => Ok(head),
        false => Err(KeptError::Damaged(format!(
            "record {} is not the one that was written",
            mark.number
        ))),
    }
}

/// This process among its replicas: the pod, or the machine.
pub(crate) fn replica() -> String {
    std::env::var("POD_NAME").unwrap_or_else(|_| {
        let machine = rustix::system::uname();
        machine.nodename().to_string_lossy().into_owned()
    })
}
