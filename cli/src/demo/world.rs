//! The demo's processes: started in the order in which each needs the one before, ended with this value.
//!
//! ```text
//! private directory -> CA -> control (with its documents) -> five proxies -> five services
//! ```

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use super::authority::{Authority, AuthorityError};
use super::child::{Child, ChildError};
use super::directory::Directory;
use super::documents::{self, POLICY_FILE, Serving, TRUST_DOMAIN, WORKLOADS, WORLD_FILE, spiffe_id};
use super::ports;

/// Calls a second of each kind.
const RATE: u32 = 10;

/// What kind of world.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// How long certificates live.
    pub(super) life: Duration,
    /// What proxies write a line for. (Who watches for days would fill the memory with all denials.)
    pub(super) access_log: &'static str,
    /// The directory stays when the world ends.
    pub(super) keep: bool,
    /// cart's door only records.
    pub(super) discover_cart: bool,
    /// web calls cart past both proxies.
    pub(super) bypass_cart: bool,
}

/// Why there is no world.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorldError {
    #[error("cannot {what}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error("{name}'s ready file lacks `{field}`")]
    ReadyFile { name: String, field: &'static str },
}

/// How far the start has come, for whoever watches: what is ready, in order.
pub(super) type Progress = watch::Sender<Vec<String>>;

/// A proxy and where to find it.
#[derive(Debug)]
pub(super) struct Proxy {
    process: Child,
    /// Where its app would call it.
    pub(super) explicit: SocketAddr,
    /// Its metrics.
    pub(super) metrics: SocketAddr,
    /// Its access log: every denial and failure.
    pub(super) access_log: PathBuf,
}

/// A service and where it tells what reached it.
#[derive(Debug)]
struct Service {
    process: Child,
    status: PathBuf,
}

/// All of it. Field order is drop order: who calls ends before who is called.
#[derive(Debug)]
pub(super) struct World {
    services: Vec<(&'static str, Service)>,
    proxies: Vec<(&'static str, Proxy)>,
    control: Child,
    /// The CA.
    pub(super) authority: Authority,
    serving: [Serving; 3],
    directory: Directory,
}

impl World {
    /// Starts everything.
    pub(super) async fn start(plan: Plan, progress: &Progress) -> Result<Self, WorldError> {
        let directory = Directory::make(plan.keep).map_err(failed("make a private directory"))?;
        let at = directory.path();
        let serving = serving()?;
        fs::create_dir(at.join("documents")).map_err(failed("create the directory of documents"))?;
        let write = |file: &str, text: String| {
            let what = format!("write {file}");
            fs::write(at.join("documents").join(file), text).map_err(failed(&what))
        };
        write(WORLD_FILE, documents::world(&serving, plan.discover_cart))?;
        write(POLICY_FILE, documents::policy())?;

        let authority = Authority::start(at, plan.life).await?;
        tell(progress, "the CA");
        let (control, control_address) = start_control(at, &authority).await?;
        tell(progress, "control");
        let proxies = start_proxies(at, &authority, &control_address, plan, progress).await?;
        let mut world = Self {
            services: Vec::new(),
            proxies,
            control,
            authority,
            serving,
            directory,
        };
        // Those that are called stand before those that call.
        for workload in WORKLOADS
            .iter()
            .rev()
            .filter(|workload| **workload != "mallory")
            .chain(&["mallory"])
        {
            let service = world.start_service(workload, plan).await?;
            world.services.push((workload, service));
            tell(progress, &format!("{workload}'s app"));
        }
        Ok(world)
    }

    async fn start_service(&self, workload: &'static str, plan: Plan) -> Result<Service, WorldError> {
        let status = self.directory.path().join(format!("{workload}.status"));
        let mut arguments = ["shop", workload, "--status"].map(str::to_owned).to_vec();
        arguments.push(text(&status));
        arguments.extend(["--rate".to_owned(), RATE.to_string()]);
        if let Some(proxy) = self.proxy(workload) {
            arguments.extend(["--proxy".to_owned(), proxy.explicit.to_string()]);
        }
        let own = self.serving(workload);
        if let Some(own) = own {
            arguments.extend(["--listen".to_owned(), format!("127.0.0.1:{}", own.app)]);
        }
        if workload == "web" {
            let cart = format!("127.0.0.1:{}", self.cart().app);
            arguments.extend(["--direct-cart".to_owned(), cart.clone()]);
            if plan.bypass_cart {
                arguments.extend(["--insecure-bypass-cart".to_owned(), cart]);
            }
        }
        let mut process = Child::start(self.directory.path(), workload, &arguments)?;
        process
            .until(|| (status.exists() && own.is_none_or(|own| listens(own.app))).then_some(()))
            .await?;
        Ok(Service { process, status })
    }

    /// Where a workload serves, if it does.
    pub(super) fn serving(&self, workload: &str) -> Option<&Serving> {
        self.serving.iter().find(|serving| serving.workload == workload)
    }

    /// Where cart, which the attacks are on, is found.
    pub(super) fn cart(&self) -> Serving {
        self.serving[0]
    }

    /// A workload's proxy.
    pub(super) fn proxy(&self, workload: &str) -> Option<&Proxy> {
        self.proxies
            .iter()
            .find(|(name, _)| *name == workload)
            .map(|(_, proxy)| proxy)
    }

    /// All proxies.
    pub(super) fn proxies(&self) -> impl Iterator<Item = (&'static str, &Proxy)> {
        self.proxies.iter().map(|(name, proxy)| (*name, proxy))
    }

    /// Where each service tells what reached it.
    pub(super) fn status_sockets(&self) -> Vec<(&'static str, PathBuf)> {
        self.services
            .iter()
            .map(|(name, service)| (*name, service.status.clone()))
            .collect()
    }

    /// Control's socket for viewers.
    pub(super) fn view_socket(&self) -> PathBuf {
        self.directory.path().join("view.sock")
    }

    /// Where everything is.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The file to edit.
    pub(super) fn policy_file(&self) -> PathBuf {
        self.directory.path().join("documents").join(POLICY_FILE)
    }

    /// Fails if a process has ended that should run.
    pub(super) fn check(&mut self) -> Result<(), WorldError> {
        self.authority.check()?;
        self.control.check()?;
        for (_, proxy) in &mut self.proxies {
            proxy.process.check()?;
        }
        for (_, service) in &mut self.services {
            service.process.check()?;
        }
        Ok(())
    }
}

fn serving() -> Result<[Serving; 3], WorldError> {
    let ports: [u16; 6] = ports::free().map_err(failed("find free loopback ports"))?;
    let [cart_mesh, cart, payments_mesh, payments, ledger_mesh, ledger] = ports;
    let one = |workload, number, protocol, mesh, app| Serving {
        workload,
        number,
        protocol,
        mesh,
        app,
    };
    Ok([
        one("cart", 80, "HTTP", cart_mesh, cart),
        one("payments", 50_051, "GRPC", payments_mesh, payments),
        one("ledger", 7_000, "TCP", ledger_mesh, ledger),
    ])
}

async fn start_control(at: &Path, authority: &Authority) -> Result<(Child, String), WorldError> {
    let id = format!("spiffe://{TRUST_DOMAIN}/ns/postern-system/sa/postern-control");
    let token_file = write_token(at, authority, &id, "postern-control").await?;
    let ready_file = at.join("control.json");
    let arguments: Vec<String> = [
        [
            "control".to_owned(),
            "--directory".to_owned(),
            text(&at.join("documents")),
        ]
        .as_slice(),
        &["--ca".to_owned(), authority.address().to_owned()],
        &["--join-token-file".to_owned(), text(&token_file)],
        &["--trust-domain".to_owned(), TRUST_DOMAIN.to_owned()],
        &["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"].map(str::to_owned),
        &["--view-socket".to_owned(), text(&at.join("view.sock"))],
        &["--ready-file".to_owned(), text(&ready_file)],
    ]
    .concat();
    let mut control = Child::start(at, "control", &arguments)?;
    let ready = control.ready(&ready_file).await?;
    let missing = || WorldError::ReadyFile {
        name: "control".to_owned(),
        field: "listen",
    };
    let address = ready["listen"].as_str().ok_or_else(missing)?.to_owned();
    Ok((control, address))
}

async fn start_proxies(
    at: &Path,
    authority: &Authority,
    control: &str,
    plan: Plan,
    progress: &Progress,
) -> Result<Vec<(&'static str, Proxy)>, WorldError> {
    let mut starting = Vec::new();
    for workload in WORKLOADS {
        let token_file = write_token(at, authority, &spiffe_id(workload), workload).await?;
        let (name, ready_file) = (format!("{workload}-proxy"), at.join(format!("{workload}-proxy.json")));
        let access_log = at.join(format!("{workload}-access.log"));
        let arguments: Vec<String> = [
            ["proxy", "run", "--capture", "explicit"].map(str::to_owned).as_slice(),
            &["--ca".to_owned(), authority.address().to_owned()],
            &["--control".to_owned(), control.to_owned()],
            &["--join-token-file".to_owned(), text(&token_file)],
            &["--trust-domain".to_owned(), TRUST_DOMAIN.to_owned()],
            &["--explicit-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"].map(str::to_owned),
            // Ten proxies' worth of workers would only take turns on a small machine.
            &["--workers", "1"].map(str::to_owned),
            &["--access-log", plan.access_log].map(str::to_owned),
            &["--access-log-file".to_owned(), text(&access_log)],
            &["--ready-file".to_owned(), text(&ready_file)],
        ]
        .concat();
        let process = Child::start(at, &name, &arguments)?;
        starting.push((workload, process, ready_file, access_log));
    }
    let mut proxies = Vec::new();
    for (workload, mut process, ready_file, access_log) in starting {
        let ready = process.ready(&ready_file).await?;
        let address = |field: &'static str| {
            let found = ready[field].as_str().and_then(|text| text.parse().ok());
            found.ok_or_else(|| WorldError::ReadyFile {
                name: format!("{workload}-proxy"),
                field,
            })
        };
        let proxy = Proxy {
            explicit: address("explicit")?,
            metrics: address("metrics")?,
            access_log,
            process,
        };
        proxies.push((workload, proxy));
        tell(progress, &format!("{workload}'s proxy"));
    }
    Ok(proxies)
}

async fn write_token(at: &Path, authority: &Authority, id: &str, instance: &str) -> Result<PathBuf, WorldError> {
    let token = authority.token(id, instance).await?;
    let file = at.join(format!("{instance}.token"));
    fs::write(&file, token.expose()).map_err(failed("write a join token"))?;
    Ok(file)
}

/// True once the kernel has a listener on this loopback port. The table is read instead of dialling: a connection would
/// be counted by the service as a session that came past its proxy.
fn listens(port: u16) -> bool {
    const LISTEN: &str = "0A";
    let address = u32::from_ne_bytes(std::net::Ipv4Addr::LOCALHOST.octets());
    let wanted = format!("{address:08X}:{port:04X}");
    fs::read_to_string("/proc/net/tcp")
        .unwrap_or_default()
        .lines()
        .any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next() == Some(&wanted) && fields.nth(1) == Some(LISTEN)
        })
}

fn tell(progress: &Progress, what: &str) {
    progress.send_modify(|done| done.push(what.to_owned()));
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn failed(what: &str) -> impl FnOnce(std::io::Error) -> WorldError {
    let what = what.to_owned();
    move |source| WorldError::Io { what, source }
}
