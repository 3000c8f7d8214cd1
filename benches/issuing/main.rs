//! What a CA issues, end to end: how quickly, to a thousand that come at once, and to fifty while one caller floods it.
//!
//! ```text
//! this process: callers, each from an address of its own --TLS--> a CA in a process of its own (this program again)
//! ```
//!
//! The CA is what users run: its store in a directory, sealed, every certificate recorded before it leaves. Its CPU time and
//! memory are what the kernel says of its process. README.md has the figures.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use postern_api::ca::v1 as pb;
use postern_api::ca::v1::admin_client::AdminClient;
use postern_api::ca_client::JoinToken;
use postern_api::transport;
use postern_benches::callers::{Address, Caller, Failure, address_of};
use postern_identity::TrustDomain;
use tokio::task::JoinSet;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What the CA is called with.
const AS_CA: &str = "as-ca";
/// What /proc counts in, on every Linux that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;
/// Between two attempts of a caller that was told to come again.
const AGAIN: Duration = Duration::from_millis(500);

/// Measures a CA.
#[derive(Debug, Parser)]
struct Args {
    /// Where its store is made: on the kind of disk that is to be measured
    #[arg(long, value_name = "DIR", default_value = "target")]
    dir: PathBuf,
    /// Identities of the cold start
    #[arg(long, default_value_t = 1_000)]
    identities: usize,
    /// How long each other part takes
    #[arg(long, default_value_t = 15)]
    seconds: u64,
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(AS_CA) {
        let cli = postern_ca::Cli::parse_from(std::env::args().skip(1));
        return postern_ca::run(cli.args);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let measured = runtime
        .map_err(Error::from)
        .and_then(|runtime| runtime.block_on(measure(Args::parse())));
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("issuing: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A CA in a process of its own.
struct Ca {
    child: Child,
    dir: tempfile::TempDir,
    address: Address,
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ca {
    fn start(at: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(at)?;
        let dir = tempfile::tempdir_in(at)?;
        let of = |name: &str| dir.path().join(name).display().to_string();
        let (store, ready) = (of("ca"), of("ready.json"));
        let me = std::env::current_exe()?;
        let made = Command::new(&me).args([AS_CA, "init", "--store", &store]).output()?;
        let root = String::from_utf8(made.stdout)?;
        let child = Command::new(&me)
            .args([AS_CA, "serve", "--store", &store, "--listen", "127.0.0.1:0"])
            .args(["--metrics-listen", "127.0.0.1:0", "--admin-socket", &of("admin.sock")])
            .args(["--ready-file", &ready])
            .env("POSTERN_LOG", "error")
            .spawn()?;
        let began = Instant::now();
        let ready = loop {
            match std::fs::read(&ready) {
                Ok(ready) => break ready,
                Err(error) if began.elapsed() > Duration::from_secs(20) => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let ready: serde_json::Value = serde_json::from_slice(&ready)?;
        let listen: SocketAddr = ready["listen"].as_str().unwrap_or_default().parse()?;
        let address = Address::new(listen, sha256_of(&root)?, &TrustDomain::parse("cluster.local")?)?;
        Ok(Self { child, dir, address })
    }

    async fn tokens(&self, many: usize) -> Result<Vec<JoinToken>, Error> {
        let channel = transport::connect_unix(&self.dir.path().join("admin.sock")).await?;
        let mut admin = AdminClient::new(channel);
        let mut tokens = Vec::new();
        for n in 0..many {
            let request = pb::CreateJoinTokenRequest {
                spiffe_id: format!("spiffe://cluster.local/ns/shop/sa/web-{n}"),
                instance: format!("web-{n}-0"),
                life_seconds: 3600,
            };
            let made = admin.create_join_token(request).await?.into_inner();
            tokens.push(JoinToken::parse(&made.token)?);
        }
        Ok(tokens)
    }

    /// CPU seconds since its start, of threads that have ended as well.
    fn cpu(&self) -> Result<f64, Error> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // After the name, which may hold anything: user and system time are the 12th and 13th from there.
        let (_, after) = text.rsplit_once(") ").ok_or("no such process")?;
        let mut ticks = 0.0;
        for field in after.split(' ').skip(11).take(2) {
            ticks += field.parse::<f64>()?;
        }
        Ok(ticks / TICKS_PER_SECOND)
    }

    /// MiB, now and at most.
    fn memory(&self) -> Result<String, Error> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let of = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let kib = line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse::<f64>().ok());
            kib.unwrap_or_default() / 1024.0
        };
        Ok(format!("RSS {:.1} MiB (at most {:.1})", of("VmRSS"), of("VmHWM")))
    }
}

async fn measure(args: Args) -> Result<(), Error> {
    let seconds = Duration::from_secs(args.seconds);
    let ca = Ca::start(&args.dir)?;
    println!("store in {}; {}", args.dir.display(), ca.memory()?);
    let callers = cold_start(&ca, args.identities).await?;
    let callers = kept(&ca, callers, seconds).await?;
    let (flooder, others) = {
        let mut callers = callers.into_iter();
        let flooder = callers.next().ok_or("no caller")?;
        (Arc::new(flooder), callers.take(50).collect::<Vec<_>>())
    };
    let others = besides(&ca, "nobody else", others, seconds, None).await?;
    let others = besides(
        &ca,
        "a flood over kept connections",
        others,
        seconds,
        Some((&flooder, true)),
    )
    .await?;
    besides(
        &ca,
        "a flood of new connections",
        others,
        seconds,
        Some((&flooder, false)),
    )
    .await?;
    let size = std::fs::metadata(ca.dir.path().join("ca/ledger.redb"))?.len();
    println!("ledger {:.1} MiB", mib(size));
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // For people.
fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

/// All at once, each with a connection of its own, coming again when told to.
async fn cold_start(ca: &Ca, identities: usize) -> Result<Vec<Caller>, Error> {
    let tokens = ca.tokens(identities).await?;
    let (began, cpu) = (Instant::now(), ca.cpu()?);
    let again = Arc::new(AtomicU64::new(0));
    let mut starting = JoinSet::new();
    for (n, token) in tokens.into_iter().enumerate() {
        let (address, again) = (ca.address.clone(), Arc::clone(&again));
        starting.spawn(async move {
            loop {
                let joined = async { Caller::join(address.dial(address_of(n)).await?, &token).await };
                match joined.await {
                    Ok(caller) => return Ok((caller, began.elapsed())),
                    Err(error @ Failure::Refused(_)) if !error.reason().starts_with("busy") => return Err(error),
                    Err(_) => {
                        again.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
        });
    }
    let (mut callers, mut waits) = (Vec::new(), Vec::new());
    while let Some(started) = starting.join_next().await {
        let (caller, wait) = started??;
        callers.push(caller);
        waits.push(wait);
    }
    let again = again.load(Ordering::Relaxed);
    report("cold start", ca, &mut waits, began.elapsed(), ca.cpu()? - cpu)?;
    println!("    {again} attempts were told to come again, or met a full backlog");
    Ok(callers)
}

/// Renewals over connections that are kept, as many as one core's callers make.
async fn kept(ca: &Ca, callers: Vec<Caller>, seconds: Duration) -> Result<Vec<Caller>, Error> {
    const CONNECTIONS: usize = 32;
    let (began, cpu) = (Instant::now(), ca.cpu()?);
    let mut lanes: Vec<Vec<Caller>> = (0..CONNECTIONS).map(|_| Vec::new()).collect();
    for (n, caller) in callers.into_iter().enumerate() {
        lanes[n % CONNECTIONS].push(caller);
    }
    let mut working = JoinSet::new();
    for (n, mut lane) in lanes.into_iter().enumerate() {
        let address = ca.address.clone();
        working.spawn(async move {
            let client = address.dial(address_of(n)).await?;
            let mut waits = Vec::new();
            'all: loop {
                for caller in &mut lane {
                    if began.elapsed() > seconds {
                        break 'all;
                    }
                    let asked = Instant::now();
                    caller.renew(client.clone()).await?;
                    waits.push(asked.elapsed());
                }
            }
            Ok::<_, Failure>((lane, waits))
        });
    }
    let (mut callers, mut waits) = (Vec::new(), Vec::new());
    while let Some(worked) = working.join_next().await {
        let (lane, lane_waits) = worked??;
        callers.extend(lane);
        waits.extend(lane_waits);
    }
    report(
        "renewals over 32 kept connections",
        ca,
        &mut waits,
        began.elapsed(),
        ca.cpu()? - cpu,
    )?;
    Ok(callers)
}

/// Fifty that renew about once a second, each with a new connection, while somebody else does as he likes.
async fn besides(
    ca: &Ca,
    what: &str,
    others: Vec<Caller>,
    seconds: Duration,
    flood: Option<(&Arc<Caller>, bool)>,
) -> Result<Vec<Caller>, Error> {
    let over = Arc::new(AtomicBool::new(false));
    let answers = Arc::new(AtomicU64::new(0));
    let mut flooding = JoinSet::new();
    if let Some((flooder, keeps)) = flood {
        // As many as are let in, and more.
        for _ in 0..if keeps { 16 } else { 128 } {
            let (request, _) = flooder.next()?;
            let (address, over, answers) = (ca.address.clone(), Arc::clone(&over), Arc::clone(&answers));
            flooding.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let Ok(client) = address.dial(flood_from()).await else {
                        continue;
                    };
                    if !keeps {
                        let _ = client.clone().issue(request.clone()).await;
                        answers.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    let mut streams = JoinSet::new();
                    for _ in 0..16 {
                        let (mut client, request) = (client.clone(), request.clone());
                        let (over, answers) = (Arc::clone(&over), Arc::clone(&answers));
                        streams.spawn(async move {
                            while !over.load(Ordering::Relaxed) {
                                let _ = client.issue(request.clone()).await;
                                answers.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                    }
                    while streams.join_next().await.is_some() {}
                }
            });
        }
    }
    let (began, cpu) = (Instant::now(), ca.cpu()?);
    let mut renewing = JoinSet::new();
    for (n, mut caller) in others.into_iter().enumerate() {
        let address = ca.address.clone();
        renewing.spawn(async move {
            let mut waits = Vec::new();
            tokio::time::sleep(Duration::from_millis(20 * n as u64)).await;
            while began.elapsed() < seconds {
                let asked = Instant::now();
                caller.renew(address.dial(address_of(n)).await?).await?;
                waits.push(asked.elapsed());
                tokio::time::sleep(Duration::from_secs(1).saturating_sub(asked.elapsed())).await;
            }
            Ok::<_, Failure>((caller, waits))
        });
    }
    let (mut others, mut waits) = (Vec::new(), Vec::new());
    while let Some(renewed) = renewing.join_next().await {
        let (caller, caller_waits) = renewed??;
        others.push(caller);
        waits.extend(caller_waits);
    }
    let took = began.elapsed();
    over.store(true, Ordering::Relaxed);
    report(
        &format!("50 others beside {what}"),
        ca,
        &mut waits,
        took,
        ca.cpu()? - cpu,
    )?;
    if flood.is_some() {
        println!(
            "    the flood: {:.0} requests/s answered",
            per_second(answers.load(Ordering::Relaxed), took)
        );
    }
    flooding.shutdown().await;
    Ok(others)
}

fn flood_from() -> IpAddr {
    Ipv4Addr::new(127, 0, 0, 2).into()
}

#[allow(clippy::cast_precision_loss)] // For people.
fn per_second(many: u64, took: Duration) -> f64 {
    many as f64 / took.as_secs_f64()
}

fn report(what: &str, ca: &Ca, waits: &mut [Duration], took: Duration, cpu: f64) -> Result<(), Error> {
    waits.sort_unstable();
    let at = |share: usize| waits.get((waits.len() * share / 1000).min(waits.len().saturating_sub(1)));
    let ms = |share| at(share).map_or(0.0, |wait| wait.as_secs_f64() * 1e3);
    let many = waits.len() as u64;
    println!(
        "{what}: {many} certificates in {:.2} s, {:.0}/s; p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms; CA {:.2} s of CPU, \
         {:.0} per core and second; {}",
        took.as_secs_f64(),
        per_second(many, took),
        ms(500),
        ms(990),
        ms(1000),
        cpu,
        per_second(many, Duration::from_secs_f64(cpu.max(1.0 / TICKS_PER_SECOND))),
        ca.memory()?,
    );
    Ok(())
}

fn sha256_of(hex: &str) -> Result<[u8; 32], Error> {
    let mut sum = [0; 32];
    let hex = hex.trim();
    if hex.len() != 64 {
        return Err(format!("init printed {hex:?}").into());
    }
    for (at, byte) in sum.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2).unwrap_or_default(), 16)?;
    }
    Ok(sum)
}
