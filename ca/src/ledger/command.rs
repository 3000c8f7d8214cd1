//! `ledger list` and `ledger verify`: of a running CA by its admin socket, of a stopped one in its directory, of replicas
//! in the lines that were collected.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use postern_api::ca::v1 as pb;
use tonic::Code;

use super::book::Of;
use super::chain::{Chain, Hash, Key, KeyRecord, Line, parse_hash};
use super::entry::{Entry, Event};
use super::kept::Kept;
use super::verify::{Broken, How, Lines, Whole, file};
use crate::args::Output;
use crate::args::ledger::{LedgerCommand, ListArgs, Since, Sources, VerifyArgs};
use crate::operator::{dial, said};
use crate::seal::{KekConfig, Sealer};
use crate::serve::stopped;
use crate::store::{Kind, Seals, read_record};
use crate::tokens::hex;

/// How a file of the ledger's library begins.
const MAGIC: &[u8] = b"redb\x1a\x0a";

/// 0: whole. 1: a link is broken. 2: it could not be looked at.
pub(crate) fn code(error: &Broken) -> ExitCode {
    ExitCode::from(match error {
        Broken::Link { .. } => 1,
        Broken::Unreadable { .. } => 2,
    })
}

pub(crate) async fn run(command: LedgerCommand) -> Result<(), Broken> {
    match command {
        LedgerCommand::List(args) => list(args).await,
        LedgerCommand::Verify(args) => verify(args).await,
    }
}

async fn list(args: ListArgs) -> Result<(), Broken> {
    let ListArgs {
        sources,
        identity,
        since,
        output,
    } = args;
    let now = crate::clock::system()();
    let since = match since {
        None => 0,
        Some(Since::Ago(ago)) => now.as_secs().saturating_sub(ago.as_secs()),
        Some(Since::At(at)) => at,
    };
    let mut out = std::io::stdout().lock();
    let mut failed = None;
    let mut show = |chain: &str, number: u64, entry: &Entry| {
        let wanted = entry.time >= since && identity.as_deref().is_none_or(|identity| entry.concerns(identity));
        if wanted && failed.is_none() {
            failed = writeln!(out, "{}", shown(chain, number, entry, output)).err();
        }
    };
    let mut key_of = Keys::of(&sources);
    for ledger in &sources.ledgers {
        let keys = key_of.keys(ledger).await?;
        if keys.is_empty() {
            return Err(unreadable(
                ledger,
                "its records are sealed: name its key with --key-record",
            ));
        }
        look(ledger, &keys, How { partial: true }, |chain, number, _, entry| {
            if let Some(entry) = entry {
                show(&chain.to_string(), number, &entry);
            }
        })?;
    }
    if let Some(socket) = &sources.admin_socket {
        let request = pb::ReadLedgerRequest {
            identity: identity.clone().unwrap_or_default(),
            since_unix: i64::try_from(since).unwrap_or(i64::MAX),
            sealed: false,
        };
        asked(socket, request, |record| {
            let told: Told = serde_json::from_str(&record.entry).map_err(|error| error.to_string())?;
            show(&told.chain, told.number, &told.entry);
            Ok(())
        })
        .await?;
    }
    match failed {
        // Whoever reads has seen enough.
        Some(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(unreadable(Path::new("standard output"), error))
        }
        Some(_) | None => Ok(()),
    }
}

async fn verify(args: VerifyArgs) -> Result<(), Broken> {
    let VerifyArgs {
        sources,
        order_only,
        partial,
        heads,
    } = args;
    let how = How { partial };
    let mut missing: Vec<Hash> = Vec::new();
    for head in &heads {
        let hash = parse_hash(head).ok_or_else(|| unreadable(Path::new(head), "a head is 64 hex digits"))?;
        missing.push(hash);
    }
    let mut key_of = Keys::of(&sources);
    let mut seen = |_: &Chain, _: u64, hash: &Hash, _: Option<Entry>| missing.retain(|head| head != hash);
    for ledger in &sources.ledgers {
        let keys = match order_only {
            true => Vec::new(),
            false => key_of.keys(ledger).await?,
        };
        if keys.is_empty() && !order_only {
            let why =
                "its records are sealed: name its key with --key-record, or check their order alone with --order-only";
            return Err(unreadable(ledger, why));
        }
        for whole in look(ledger, &keys, how, &mut seen)? {
            println!("{}", whole.shown());
        }
    }
    if let Some(socket) = &sources.admin_socket {
        let place = socket.display().to_string();
        let mut lines = Lines::new(None, how);
        let request = pb::ReadLedgerRequest {
            sealed: true,
            ..pb::ReadLedgerRequest::default()
        };
        asked(socket, request, |record| {
            if !record.trouble.is_empty() {
                return Err(record.trouble);
            }
            lines.take(&Line::parse(&record.line)?, &mut seen)
        })
        .await?;
        for mut whole in lines.whole() {
            // By the CA, which has the key.
            whole.opened = true;
            println!("{place}: {}", whole.shown());
        }
    }
    match missing.first() {
        None => Ok(()),
        Some(head) => Err(Broken::Link {
            place: "all ledgers together".to_owned(),
            why: format!("no record has the hash {}: the newest ones are missing", hex(head)),
        }),
    }
}

/// Looks at one ledger, whatever it is, or at those of a store.
fn look(
    ledger: &Path,
    keys: &[Key],
    how: How,
    mut visit: impl FnMut(&Chain, u64, &Hash, Option<Entry>),
) -> Result<Vec<Whole>, Broken> {
    let files = files_of(ledger)?;
    if !files.is_empty() {
        let whole = |redb: &PathBuf| {
            let kept = Kept::at(redb);
            // Which one it is; a chain that cannot be read is told of below.
            let its = |key: &&Key| kept.chain().is_ok_and(|chain| chain.key == key.id());
            let key = keys.iter().find(its).or(keys.first());
            file(redb, &kept, key, &mut visit)
        };
        return files.iter().map(whole).collect();
    }
    // Whoever writes lines has one key.
    let mut lines = Lines::new(keys.first(), how);
    let place = ledger.display().to_string();
    lines.read(&place, reader(ledger)?, visit)?;
    let whole: Vec<Whole> = lines.whole().collect();
    if whole.is_empty() {
        return Err(unreadable(ledger, "it holds no record of a ledger"));
    }
    Ok(whole)
}

fn reader(ledger: &Path) -> Result<Box<dyn BufRead>, Broken> {
    if ledger == Path::new("-") {
        return Ok(Box::new(BufReader::new(std::io::stdin())));
    }
    let opened = File::open(ledger).map_err(|error| unreadable(ledger, error))?;
    Ok(Box::new(BufReader::new(opened)))
}

/// The files of records: those in a directory, or itself.
fn files_of(ledger: &Path) -> Result<Vec<PathBuf>, Broken> {
    if ledger == Path::new("-") {
        return Ok(Vec::new());
    }
    if ledger.is_dir() {
        let certificates = ledger.join(Of::Certificates.file());
        if !certificates.exists() {
            return Err(unreadable(ledger, "there is no ledger.redb in it"));
        }
        // A version without it made none.
        let inside = Of::ALL.map(|of| ledger.join(of.file()));
        return Ok(inside.into_iter().filter(|file| file.exists()).collect());
    }
    let mut begin = [0; MAGIC.len()];
    let opened = File::open(ledger).and_then(|mut file| file.read(&mut begin));
    let read = opened.map_err(|error| unreadable(ledger, error))?;
    let named = ledger.extension().is_some_and(|extension| extension == "redb");
    let is_one = named || begin.get(..read) == Some(MAGIC);
    Ok(is_one.then(|| ledger.to_owned()).into_iter().collect())
}

/// The keys of ledgers.
struct Keys<'a> {
    sources: &'a Sources,
    named: Vec<Key>,
}

impl<'a> Keys<'a> {
    fn of(sources: &'a Sources) -> Self {
        Self {
            sources,
            named: Vec::new(),
        }
    }

    /// Any of them may be that of a file.
    async fn keys(&mut self, ledger: &Path) -> Result<Vec<Key>, Broken> {
        let kek = self.sources.kek();
        if !self.sources.key_record.is_empty() {
            if self.named.is_empty() {
                for path in &self.sources.key_record {
                    self.named.push(key_of_record(path, kek.as_ref()).await?);
                }
            }
            return Ok(self.named.clone());
        }
        if !ledger.is_dir() {
            return Ok(Vec::new());
        }
        // Only of a CA that does not run: what is being written cannot be checked here.
        let why = |why: String| unreadable(ledger, format!("{why} (a CA that runs is asked by --admin-socket)"));
        let store = stopped(ledger, kek.as_ref(), false).await;
        let store = store.map_err(|error| why(crate::error_chain(&error)))?;
        let mut keys = Vec::new();
        for of in Of::ALL {
            let record: Option<KeyRecord> = store.read(of.kind()).map_err(|error| why(crate::error_chain(&error)))?;
            match record {
                Some(KeyRecord { mark: Some(mark), .. }) if !ledger.join(of.file()).exists() => {
                    let (missing, number) = (of.file(), mark.number);
                    let why = format!("there is no {missing} in it, and {number} records were written");
                    return Err(unreadable(ledger, why));
                }
                Some(record) => keys.push(record.key().map_err(|why| unreadable(ledger, why))?),
                // Of a version that had one ledger for all.
                None if of == Of::Tokens && !ledger.join(of.file()).exists() => {}
                None => {
                    let missing = of.kind().file();
                    return Err(unreadable(ledger, format!("there is no {missing} in it")));
                }
            }
        }
        Ok(keys)
    }
}

async fn key_of_record(path: &Path, kek: Option<&KekConfig>) -> Result<Key, Broken> {
    let bytes = std::fs::read(path).map_err(|error| unreadable(path, error))?;
    let seals = match kek {
        None => Seals::Clear,
        Some(kek) => {
            let sealer = Sealer::unseal(kek)
                .await
                .map_err(|error| unreadable(path, crate::error_chain(&error)))?;
            Seals::by(sealer, true)
        }
    };
    let learned = seals.learn(&[&bytes]).await;
    learned.map_err(|error| unreadable(path, crate::error_chain(&error)))?;
    let of_either = |kind| read_record::<KeyRecord>(&seals, kind, &bytes);
    let record = of_either(Kind::Ledger).or_else(|why| of_either(Kind::JwtLedger).map_err(|_| why));
    let record = record.map_err(|why| unreadable(path, why))?;
    record.key().map_err(|why| unreadable(path, why))
}

/// Every record that a running CA tells.
async fn asked(
    socket: &Path,
    request: pb::ReadLedgerRequest,
    mut take: impl FnMut(pb::LedgerRecord) -> Result<(), String>,
) -> Result<(), Broken> {
    let place = socket.display().to_string();
    let failed = |status: tonic::Status| match status.code() {
        Code::DataLoss => Broken::Link {
            place: place.clone(),
            why: said(status),
        },
        _ => Broken::Unreadable {
            place: place.clone(),
            why: said(status),
        },
    };
    let mut client = dial(socket).await.map_err(|why| unreadable(socket, why))?;
    let mut records = client.read_ledger(request).await.map_err(failed)?.into_inner();
    while let Some(record) = records.message().await.map_err(failed)? {
        take(record).map_err(|why| Broken::Link {
            place: place.clone(),
            why,
        })?;
    }
    Ok(())
}

fn unreadable(place: &Path, why: impl std::fmt::Display) -> Broken {
    Broken::Unreadable {
        place: place.display().to_string(),
        why: why.to_string(),
    }
}

/// A record as the admin socket tells it.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Told {
    pub(crate) chain: String,
    pub(crate) number: u64,
    #[serde(flatten)]
    pub(crate) entry: Entry,
}

fn shown(chain: &str, number: u64, entry: &Entry, output: Output) -> String {
    match output {
        Output::Json => json(chain, number, entry),
        Output::Text => format!("{}  {number:>8}  {}", time_of(entry.time), line(&entry.event)),
    }
}

fn json(chain: &str, number: u64, entry: &Entry) -> String {
    let told = Told {
        chain: chain.to_owned(),
        number,
        entry: entry.clone(),
    };
    let mut value = serde_json::to_value(&told).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        for name in ["time", "not_before", "not_after", "first", "last"] {
            if let Some(seconds) = fields.get(name).and_then(serde_json::Value::as_u64) {
                fields.insert(name.to_owned(), time_of(seconds).into());
            }
        }
    }
    value.to_string()
}

fn line(event: &Event) -> String {
    match event {
        Event::Begun { version } => format!("begun      by version {version}"),
        Event::Issued(issued) => format!(
            "issued     {} {} serial {} until {} by {} ({}) from {}",
            issued.identity,
            issued.instance.as_deref().unwrap_or("-"),
            issued.serial,
            time_of(issued.not_after),
            issued.attestation,
            issued.evidence,
            issued.caller.as_deref().unwrap_or("-"),
        ),
        Event::IssuedJwt(issued) => format!(
            "issued_jwt {} {} for {} until {} shown serial {} from {}",
            issued.identity,
            issued.instance.as_deref().unwrap_or("-"),
            // One line for one record, whatever a caller had put into it.
            issued
                .audience
                .iter()
                .map(|one| one.escape_debug().to_string())
                .collect::<Vec<_>>()
                .join(","),
            time_of(issued.not_after),
            issued.shown,
            issued.caller,
        ),
        Event::Withdrawn { serial, reason } => format!("withdrawn  serial {serial}: {reason}"),
        Event::Refused(refused) => format!(
            "refused    {} x{} {} from {}: {}",
            refused.reason,
            refused.count,
            refused.attestation,
            refused.caller.as_deref().unwrap_or("several callers"),
            // One line for one record, whatever a caller had put into it.
            refused.message.escape_debug(),
        ),
        Event::Pruned { through, records } => format!("pruned     {records} records, up to {through}"),
    }
}

fn time_of(unix: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(unix);
    humantime::format_rfc3339_seconds(time).to_string()
}
