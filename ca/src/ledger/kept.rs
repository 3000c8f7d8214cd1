//! A chain in a file of the store's directory.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use redb::backends::FileBackend;
use redb::{
    Builder, Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError,
};

use super::chain::{Anchor, Chain, Hash, Key, NOTHING, Sealed};
use super::entry::Entry;
use crate::tokens::hex;

/// Records by their numbers, from 1.
const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
/// `chain` and `anchor`, in JSON.
const ABOUT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("about");
/// Pages in memory. One writes at the end, and reads once in a while.
const CACHE: usize = 4 * 1024 * 1024;
/// How many of the newest records are checked when a CA starts: half a second's work. `ledger verify` checks all.
pub(crate) const CHECKED_AT_START: u64 = 100_000;
/// Records taken out in one step; others wait meanwhile.
const PRUNED_AT_ONCE: usize = 2_000;

/// Why a file of records cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeptError {
    /// Not what was written.
    #[error("{0}")]
    Damaged(String),
    /// The operating system refuses.
    #[error("{0}")]
    Io(String),
}

/// Where the chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) number: u64,
    pub(crate) hash: Hash,
}

pub(crate) const EMPTY: Head = Head {
    number: 0,
    hash: NOTHING,
};

/// A file that was opened. After an error of the disk it is opened anew by whoever wants it next.
pub(crate) struct Kept {
    path: PathBuf,
    db: Mutex<Option<Arc<Database>>>,
}

/// Everything that a walk over the chain meets.
pub(crate) struct Walk<'a> {
    pub(crate) chain: &'a Chain,
    pub(crate) number: u64,
    pub(crate) before: Hash,
    pub(crate) sealed: &'a Sealed,
}

impl Kept {
    pub(crate) fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            db: Mutex::new(None),
        }
    }

    /// Begins a chain in a new file.
    pub(crate) fn create(path: &Path, chain: &Chain) -> Result<Self, KeptError> {
        let kept = Self::at(path);
        guarded(|| {
            let file = std::os::unix::fs::OpenOptionsExt::mode(
                std::fs::OpenOptions::new().read(true).write(true).create_new(true),
                0o600,
            )
            .open(path)
            .map_err(|error| KeptError::Io(error.to_string()))?;
            let db = builder().create_with_backend(FileBackend::new(file)?)?;
            let transaction = db.begin_write()?;
            {
                #[allow(clippy::expect_used)] // A chain without a name is none.
                let name = serde_json::to_vec(chain).expect("text always becomes JSON");
                transaction.open_table(ABOUT)?.insert("chain", &*name)?;
                transaction.open_table(RECORDS)?;
            }
            transaction.commit()?;
            *kept.lock() = Some(Arc::new(db));
            Ok(())
        })?;
        Ok(kept)
    }

    pub(crate) fn chain(&self) -> Result<Chain, KeptError> {
        self.reading(|read| read.about("chain")?.ok_or_else(|| damaged("it names no chain")))
    }

    pub(crate) fn anchor(&self) -> Result<Option<Anchor>, KeptError> {
        self.reading(|read| read.about("anchor"))
    }

    pub(crate) fn head(&self) -> Result<Head, KeptError> {
        self.reading(Read::head)
    }

    /// How many records there are.
    pub(crate) fn count(&self) -> Result<u64, KeptError> {
        self.reading(|read| Ok(redb::ReadableTableMetadata::len(&read.records)?))
    }

    /// The hash of this record; none if it is not there.
    pub(crate) fn hash_of(&self, number: u64) -> Result<Option<Hash>, KeptError> {
        self.reading(|read| Ok(read.get(number)?.map(|sealed| sealed.hash)))
    }

    /// Visits the newest `most` records in order, each after its link was checked; first of all `begin` hears where the
    /// chain begins.
    pub(crate) fn walk(
        &self,
        most: u64,
        begin: impl FnOnce(&Chain, Option<&Anchor>) -> Result<(), KeptError>,
        mut visit: impl FnMut(Walk<'_>) -> Result<(), KeptError>,
    ) -> Result<Head, KeptError> {
        self.reading(|read| {
            let chain: Chain = read.about("chain")?.ok_or_else(|| damaged("it names no chain"))?;
            let anchor: Option<Anchor> = read.about("anchor")?;
            let end = read.head()?;
            begin(&chain, anchor.as_ref())?;
            let begin = anchor.as_ref().map_or(EMPTY, |anchor| Head {
                number: anchor.number,
                hash: anchor.hash.0,
            });
            let skipped = end.number.saturating_sub(most).max(begin.number);
            let mut last = match skipped == begin.number {
                true => begin,
                false => Head {
                    number: skipped,
                    hash: read
                        .get(skipped)?
                        .ok_or_else(|| damaged(format!("record {skipped} is missing")))?
                        .hash,
                },
            };
            for found in read.records.range(last.number + 1..)? {
                let (number, bytes) = found?;
                let number = number.value();
                let wanted = last.number + 1;
                if number != wanted {
                    return Err(damaged(format!("record {wanted} is missing")));
                }
                let sealed =
                    Sealed::from_bytes(bytes.value()).ok_or_else(|| damaged(format!("record {number} is cut")))?;
                if chain.hash(number, &last.hash, &sealed) != sealed.hash {
                    return Err(damaged(format!(
                        "record {number} was changed, or does not follow the one before it"
                    )));
                }
                visit(Walk {
                    chain: &chain,
                    number,
                    before: last.hash,
                    sealed: &sealed,
                })?;
                last = Head {
                    number,
                    hash: sealed.hash,
                };
            }
            Ok(last)
        })
    }

    /// Puts records at the end; on disk when this returns.
    pub(crate) fn append(&self, chain: &Chain, key: &Key, head: Head, entries: &[&Entry]) -> Result<Head, KeptError> {
        self.writing(|db| {
            let transaction = db.begin_write()?;
            ends_at(&transaction, head)?;
            let end = put(&transaction, chain, key, head, entries)?;
            transaction.commit()?;
            Ok(end)
        })
    }

    /// Takes the oldest records out while `old` says so of them; `last` gets the anchor's number and how many they are, and
    /// its answer is put at the end.
    pub(crate) fn prune(
        &self,
        chain: &Chain,
        key: &Key,
        head: Head,
        mut old: impl FnMut(&Entry, u64) -> bool,
        told: impl FnOnce(u64, u64) -> Entry,
    ) -> Result<Option<(Head, u64)>, KeptError> {
        self.writing(|db| {
            let transaction = db.begin_write()?;
            ends_at(&transaction, head)?;
            let (anchor, gone) = {
                let mut about = transaction.open_table(ABOUT)?;
                let anchor = about.get("anchor")?.map(|found| from_json::<Anchor>(found.value()));
                let mut last = anchor.transpose()?.map_or(EMPTY, |anchor| Head {
                    number: anchor.number,
                    hash: anchor.hash.0,
                });
                let mut records = transaction.open_table(RECORDS)?;
                let mut gone = 0;
                while gone < PRUNED_AT_ONCE {
                    let (number, sealed) = match records.first()? {
                        Some((number, bytes)) => (number.value(), Sealed::from_bytes(bytes.value())),
                        None => break,
                    };
                    let sealed = sealed.ok_or_else(|| damaged(format!("record {number} is cut")))?;
                    let entry = chain
                        .open(key, number, &last.hash, &sealed)
                        .map_err(|why| damaged(format!("record {number}: {why}")))?;
                    if !old(&entry, number) {
                        break;
                    }
                    records.pop_first()?;
                    last = Head {
                        number,
                        hash: sealed.hash,
                    };
                    gone += 1;
                }
                if gone > 0 {
                    let anchor = chain.seal_anchor(key, last.number, &last.hash);
                    let anchor = anchor.map_err(|error| KeptError::Io(error.to_string()))?;
                    let json = serde_json::to_vec(&anchor).map_err(|error| KeptError::Io(error.to_string()))?;
                    about.insert("anchor", &*json)?;
                }
                (last, gone as u64)
            };
            if gone == 0 {
                transaction.abort()?;
                return Ok(None);
            }
            let end = put(&transaction, chain, key, head, &[&told(anchor.number, gone)])?;
            transaction.commit()?;
            Ok(Some((end, gone)))
        })
    }

    /// After an error it is closed: what stands in memory of it is not to be believed any more.
    fn writing<T>(&self, work: impl FnOnce(&Database) -> Result<T, KeptError>) -> Result<T, KeptError> {
        let done = guarded(|| work(&*self.opened()?));
        if done.is_err() {
            self.close();
        }
        done
    }

    fn reading<T>(&self, work: impl FnOnce(&Read) -> Result<T, KeptError>) -> Result<T, KeptError> {
        guarded(|| {
            let db = self.opened()?;
            let transaction = db.begin_read()?;
            let read = Read {
                records: match transaction.open_table(RECORDS) {
                    Ok(table) => table,
                    Err(TableError::TableDoesNotExist(_)) => return Err(damaged("it holds no records")),
                    Err(error) => return Err(error.into()),
                },
                transaction,
            };
            work(&read)
        })
    }

    fn opened(&self) -> Result<Arc<Database>, KeptError> {
        let mut db = self.lock();
        if let Some(db) = &*db {
            return Ok(Arc::clone(db));
        }
        let opened = Arc::new(builder().open(&self.path)?);
        *db = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// It writes what it has in memory, and may panic over that as well.
    fn close(&self) {
        let db = self.lock().take();
        let _ = guarded(|| {
            drop(db);
            Ok(())
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Database>>> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.close();
    }
}

struct Read {
    records: redb::ReadOnlyTable<u64, &'static [u8]>,
    transaction: ReadTransaction,
}

impl Read {
    fn about<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, KeptError> {
        let table = self.transaction.open_table(ABOUT)?;
        let found = table.get(name)?;
        found.map(|found| from_json(found.value())).transpose()
    }

    fn get(&self, number: u64) -> Result<Option<Sealed>, KeptError> {
        let Some(bytes) = self.records.get(number)? else {
            return Ok(None);
        };
        let sealed = Sealed::from_bytes(bytes.value());
        sealed
            .map(Some)
            .ok_or_else(|| damaged(format!("record {number} is cut")))
    }

    fn head(&self) -> Result<Head, KeptError> {
        let Some((number, bytes)) = self.records.last()? else {
            return Ok(EMPTY);
        };
        let number = number.value();
        let sealed = Sealed::from_bytes(bytes.value()).ok_or_else(|| damaged(format!("record {number} is cut")))?;
        Ok(Head {
            number,
            hash: sealed.hash,
        })
    }
}

/// What is put there follows what this process has in memory.
fn ends_at(transaction: &redb::WriteTransaction, head: Head) -> Result<(), KeptError> {
    let records = transaction.open_table(RECORDS)?;
    let stored = records.last()?.map_or(0, |(number, _)| number.value());
    match stored == head.number {
        true => Ok(()),
        false => Err(damaged(format!(
            "it ends at record {stored}, and not at {}",
            head.number
        ))),
    }
}

fn put(
    transaction: &redb::WriteTransaction,
    chain: &Chain,
    key: &Key,
    mut head: Head,
    entries: &[&Entry],
) -> Result<Head, KeptError> {
    let mut records = transaction.open_table(RECORDS)?;
    for entry in entries {
        let number = head.number + 1;
        let sealed = chain.seal(key, number, &head.hash, entry);
        let sealed = sealed.map_err(|error| KeptError::Io(error.to_string()))?;
        records.insert(number, &*sealed.to_bytes())?;
        head = Head {
            number,
            hash: sealed.hash,
        };
    }
    Ok(head)
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    builder
}

fn damaged(why: impl Into<String>) -> KeptError {
    KeptError::Damaged(why.into())
}

fn from_json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, KeptError> {
    serde_json::from_slice(bytes).map_err(|error| damaged(format!("what it says of itself is not readable: {error}")))
}

/// The file's library may panic over pages that were damaged; that is no reason for ours to.
fn guarded<T>(work: impl FnOnce() -> Result<T, KeptError>) -> Result<T, KeptError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(damaged("its pages make no sense")))
}

impl KeptError {
    fn of(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(error) => Self::Io(error.to_string()),
            redb::Error::PreviousIo | redb::Error::DatabaseAlreadyOpen => Self::Io(error.to_string()),
            other => Self::Damaged(other.to_string()),
        }
    }
}

macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for KeptError {
            fn from(error: redb::$error) -> Self {
                Self::of(error.into())
            }
        }
    )*};
}
from_redb!(DatabaseError, TransactionError, TableError, StorageError, CommitError);

/// For people.
pub(crate) fn shown(head: Head) -> String {
    format!("record {}, {}", head.number, hex(&head.hash))
}
