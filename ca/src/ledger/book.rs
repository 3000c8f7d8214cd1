//! One of a CA's ledgers: opened, checked, and written by a thread of its own.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use postern_api::refusal::RefusalReason;
use tokio::sync::oneshot;

use super::chain::{self, Chain, Key, KeyRecord, Mark, authority_name, parse_hash};
use super::entry::{Entry, Event};
use super::kept::{self, CHECKED_AT_START, Kept, KeptError};
use super::refusals::Told;
use super::writer::{Place, Work, Writer};
use super::{LedgerConfig, WAITING};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::store::{Kind, Store, StoreError};

/// What a ledger has records of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// Certificates, refusals, and whatever else happens.
    Certificates,
    /// JWT-SVIDs, which are many: in a ledger of their own they push out no record but theirs.
    Tokens,
}

impl Of {
    pub(crate) const ALL: [Self; 2] = [Self::Tokens, Self::Certificates];

    /// The record of its key.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Certificates => Kind::Ledger,
            Self::Tokens => Kind::JwtLedger,
        }
    }
    /// In the store's directory, beside that record.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Certificates => "ledger.redb",
            Self::Tokens => "ledger-jwt.redb",
        }
    }
    /// Until it is whole.
    fn unfinished(self) -> &'static str {
        match self {
            Self::Certificates => ".ledger.redb.tmp",
            Self::Tokens => ".ledger-jwt.redb.tmp",
        }
    }
    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Certificates => "the ledger",
            Self::Tokens => "the ledger of JWT-SVIDs",
        }
    }
    /// What there is not while it cannot be written.
    pub(super) fn withheld(self) -> &'static str {
        match self {
            Self::Certificates => "nothing is issued",
            Self::Tokens => "no JWT-SVID is issued",
        }
    }
    /// In the name of its chain.
    fn replica(self) -> String {
        match self {
            Self::Certificates => replica(),
            Self::Tokens => format!("{}-jwt", replica()),
        }
    }
    pub(super) fn max_records(self, config: &LedgerConfig) -> u64 {
        match self {
            Self::Certificates => config.max_records,
            Self::Tokens => config.max_jwt_records,
        }
    }
}

/// A ledger that is written.
pub(super) struct Book {
    work: Option<SyncSender<Work>>,
    thread: Option<std::thread::JoinHandle<()>>,
    clock: Clock,
    metrics: Metrics,
    /// In a directory, for readers.
    kept: Option<(Arc<Kept>, Key)>,
}

impl Book {
    /// Opens or begins the chain of a directory's store; every record that is checked has held when this returns.
    pub(super) fn open(
        of: Of,
        store: &Arc<Store>,
        // Of the root that the CA was founded with.
        root_sha256: [u8; 32],
        config: &LedgerConfig,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Self, StoreError> {
        let damaged = |why: String| StoreError::Damaged {
            path: store.beside(of.file()),
            kind: of.kind(),
            why,
        };
        let (record, kept) = match (store.read::<KeyRecord>(of.kind())?, store.beside(of.file()).exists()) {
            (None, true) => {
                let why = format!("it is missing, and {} is there", of.file());
                return Err(store.damaged(of.kind(), why));
            }
            (Some(KeyRecord { mark: Some(mark), .. }), false) => {
                let number = mark.number;
                return Err(damaged(format!("it is missing, and {number} records were written")));
            }
            (Some(record), true) => (record, Kept::at(&store.beside(of.file()))),
            // Nothing yet, or killed just after its first step.
            (record, false) => begun(of, store, record, root_sha256)?,
        };
        let key = record.key().map_err(|why| store.damaged(of.kind(), why))?;
        let told = |error: KeptError| match error {
            KeptError::Damaged(why) => damaged(why),
            KeptError::Io(why) => StoreError::Io {
                what: "open",
                path: store.beside(of.file()),
                source: std::io::Error::other(why),
            },
        };
        let chain = kept.chain().map_err(told)?;
        if chain.key != key.id() {
            return Err(damaged(format!(
                "it is sealed under key {}, and {} has {}",
                chain.key,
                of.kind().file(),
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
            of,
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
    pub(super) fn as_lines(
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
            Of::Certificates,
            (chain, key, kept::EMPTY),
            place,
            config,
            clock,
            metrics,
            None,
        ))
    }

    fn running(
        of: Of,
        (chain, key, head): (Chain, Key, kept::Head),
        place: Place,
        config: &LedgerConfig,
        clock: Clock,
        metrics: Metrics,
        kept: Option<(Arc<Kept>, Key)>,
    ) -> Self {
        let (work, todo) = sync_channel(WAITING);
        let writer = Writer::new(
            of,
            (chain, key, head),
            place,
            config,
            Arc::clone(&clock),
            metrics.clone(),
        );
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
    pub(super) async fn record(&self, event: Event) -> Result<(), Refusal> {
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
    pub(super) fn note(&self, event: Event) {
        let entry = Entry::at((self.clock)(), event);
        self.send_or_count(Work::Note(entry));
    }

    /// A refusal, which may be counted with others that are like it.
    pub(super) fn refused(&self, refusal: &Refusal, attestation: &'static str, caller: IpAddr) {
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
    pub(super) async fn kept(&self) -> Option<(Arc<Kept>, Key)> {
        let kept = self.kept.clone()?;
        let (done, told) = oneshot::channel();
        if self.send(Work::Flush(done)).is_ok() {
            // An error is a thread that has ended: there is nothing to wait for.
            let _ = told.await;
        }
        Some(kept)
    }
}

impl Drop for Book {
    /// What was sent is written, and the store is given up.
    fn drop(&mut self) {
        drop(self.work.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The key first, then the file: killed in between, the key is used next time.
fn begun(
    of: Of,
    store: &Store,
    record: Option<KeyRecord>,
    root_sha256: [u8; 32],
) -> Result<(KeyRecord, Kept), StoreError> {
    let path = store.beside(of.file());
    let kek = |source| StoreError::Kek {
        path: path.clone(),
        source,
    };
    let record = match record {
        Some(record) => record,
        None => {
            let record = KeyRecord::create().map_err(kek)?;
            store.write(of.kind(), &record)?;
            record
        }
    };
    let key = record.key().map_err(|why| store.damaged(of.kind(), why))?;
    let chain = Chain::begin(root_sha256, &of.replica(), &key).map_err(kek)?;
    // Under another name until it is whole: what a kill leaves half made is no ledger.
    let making = store.beside(of.unfinished());
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
fn replica() -> String {
    std::env::var("POD_NAME").unwrap_or_else(|_| {
        let machine = rustix::system::uname();
        machine.nodename().to_string_lossy().into_owned()
    })
}
