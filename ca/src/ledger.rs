//! The ledger: what this CA has issued and refused, in a chain that shows each change to it.
//!
//! ```text
//! issuance --record--.                          .--> DIR/ledger*.redb: synced, many in one step  (a directory's CA)
//! refusal  --note----+--> a thread: sealed -----+
//! own SVID --note----'    under the chain's key '--> standard output: a JSON line each          (replicas over a Secret)
//! ```
//!
//! A certificate leaves only after its record is where it belongs. So the ledger may name one that nobody got (the CA was
//! killed in between, the caller had gone), and never lacks one that somebody has. What one replica does is one chain,
//! named by authority and replica: `chain.rs` says what its records are bound to. In a directory JWT-SVIDs have a ledger of their
//! own (`book.rs`), with a bound of its own: there are many of them, and each is good for minutes.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::store::{Store, StoreError};

pub(crate) mod book;
pub(crate) mod chain;
pub(crate) mod command;
pub(crate) mod entry;
pub(crate) mod kept;
mod refusals;
#[cfg(test)]
mod tests;
pub(crate) mod verify;
mod writer;

use book::{Book, Of};
use chain::{Key, KeyRecord};
use entry::Event;
use kept::Kept;

/// Records that wait for the disk; requests in work are fewer.
const WAITING: usize = 1_024;
/// The shortest time that records are kept.
pub(crate) const MIN_RETENTION: Duration = Duration::from_secs(3600);
/// How long records are kept, unless somebody says otherwise: longer than any certificate lives.
pub const DEFAULT_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
/// However long that is: 30 days of 10,000 workloads with certificates of 4 h. About 2.5 GB.
pub const MAX_RECORDS: u64 = 4_000_000;
/// Of JWT-SVIDs, which have a ledger of their own. About 0.6 GB where each has one short audience.
pub const MAX_JWT_RECORDS: u64 = 1_000_000;

/// How the ledger is kept.
#[derive(Debug, Clone)]
pub struct LedgerConfig {
    /// Older records are taken out (of a directory; whoever collects standard output sees to it there).
    pub retention: Duration,
    /// More are taken out, the oldest first.
    pub max_records: u64,
    /// The same of JWT-SVIDs, which count by themselves.
    pub max_jwt_records: u64,
    /// Where records go as lines, if there is no directory.
    pub lines: Lines,
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self {
            retention: DEFAULT_RETENTION,
            max_records: MAX_RECORDS,
            max_jwt_records: MAX_JWT_RECORDS,
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

/// The ledgers of a running CA.
pub(crate) struct Ledger {
    certificates: Book,
    /// `None`: of lines there is one, which has no bound here.
    tokens: Option<Book>,
}

impl Ledger {
    /// Opens or begins the chains of a directory's store; every record that is checked has held when this returns.
    pub(crate) fn open(
        store: &Arc<Store>,
        // Of the root that the CA was founded with.
        root_sha256: [u8; 32],
        config: &LedgerConfig,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Self, StoreError> {
        let book = |of| Book::open(of, store, root_sha256, config, Arc::clone(&clock), metrics.clone());
        Ok(Self {
            certificates: book(Of::Certificates)?,
            tokens: Some(book(Of::Tokens)?),
        })
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
        Ok(Self {
            certificates: Book::as_lines(record, root_sha256, replica, config, clock, metrics)?,
            tokens: None,
        })
    }

    /// Returns when it is durable, or an error: then the certificate must not leave.
    pub(crate) async fn record(&self, event: Event) -> Result<(), Refusal> {
        let book = match (&self.tokens, &event) {
            (Some(tokens), Event::IssuedJwt(_)) => tokens,
            (_, _) => &self.certificates,
        };
        book.record(event).await
    }

    /// Will be recorded; nobody waits for it.
    pub(crate) fn note(&self, event: Event) {
        self.certificates.note(event);
    }

    /// A refusal, which may be counted with others that are like it.
    pub(crate) fn refused(&self, refusal: &Refusal, attestation: &'static str, caller: IpAddr) {
        self.certificates.refused(refusal, attestation, caller);
    }

    /// For readers, once everything until now is written, that of certificates last; none where records go elsewhere.
    pub(crate) async fn kept(&self) -> Vec<(Arc<Kept>, Key)> {
        let mut all = Vec::new();
        for book in self.tokens.iter().chain([&self.certificates]) {
            all.extend(book.kept().await);
        }
        all
    }
}
