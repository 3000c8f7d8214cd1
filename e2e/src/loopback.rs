//! A mesh that needs no root: CA, control and a proxy per workload in explicit capture, each workload on loopback addresses
//! of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::live::{Apps, Kind, Line};
use crate::process::Process;
use crate::spire::Spire;

const NAMESPACE: &str = "shop";

/// All of it; ended with this value.
#[derive(Debug)]
pub struct Loopback {
    nodes: Vec<Node>,
    control: Process,
    apps: Apps,
    issuer: Issuer,
    control_address: String,
    trust_domain: String,
    /// More of control's command line.
    control_arguments: Vec<String>,
    /// Where our own bundle is served to other trust domains, if it is.
    bundle_endpoint: Option<SocketAddr>,
    /// Tells it from other meshes of this machine.
    number: u32,
    binary: PathBuf,
    directory: tempfile::TempDir,
}

/// Whose identities its members have.
#[derive(Debug)]
enum Issuer {
    /// Our CA's.
    Ca {
        process: Process,
        address: String,
        life: String,
    },
    /// A SPIRE agent's, at this Workload API.
    Spire(String),
}

/// A workload, `w0`, `w1`, ..., with its proxy.
#[derive(Debug)]
pub struct Node {
    /// Its name, which is its instance and its service account.
    pub name: String,
    /// Where its app calls.
    explicit: SocketAddr,
    metrics: SocketAddr,
    process: Process,
}

impl Loopback {
    /// Starts it with so many workloads, and certificates that live `life`. Everybody may call everybody.
    ///
    /// # Panics
    /// If anything does not become ready.
    #[must_use]
    pub fn start(workloads: usize, life: &str) -> Self {
        Self::of("cluster.local", workloads, life, &[])
    }

    /// The same of another trust domain, and with more on control's command line.
    ///
    /// # Panics
    /// If anything does not become ready.
    #[must_use]
    pub fn of(trust_domain: &str, workloads: usize, life: &str, control_arguments: &[&str]) -> Self {
        let directory = directory_of_mesh();
        let (binary, at) = (crate::postern(), directory.path());
        let store = at.join("store");
        let init = ["ca", "init", "--trust-domain", trust_domain, "--store", text(&store)];
        succeeds(&run(&binary, &init));
        let (process, address) = start_ca(&binary, at, "127.0.0.1:0", life);
        let issuer = Issuer::Ca {
            process,
            address,
            life: life.to_owned(),
        };
        Self::with(issuer, directory, trust_domain, workloads, control_arguments)
    }

    /// A mesh without a CA of ours: control and proxies are workloads of a SPIRE, told apart by the paths of their programs.
    ///
    /// # Panics
    /// If anything does not become ready.
    #[must_use]
    pub fn of_spire(spire: &Spire, workloads: usize) -> Self {
        let directory = directory_of_mesh();
        let trust_domain = spire.trust_domain();
        let names = (0..workloads).map(|n| (format!("w{n}"), workload_id(trust_domain, n)));
        for (name, id) in names.chain([("control".to_owned(), control_id(trust_domain))]) {
            let program = directory.path().join(name);
            // By another process: a descriptor open for writing here could be inherited by another test's child.
            let copied = Command::new("cp").arg(crate::postern()).arg(&program).output();
            succeeds(&copied.expect("cp runs"));
            spire.register(&id, &program);
        }
        let issuer = Issuer::Spire(spire.endpoint());
        Self::with(issuer, directory, trust_domain, workloads, &[])
    }

    fn with(
        issuer: Issuer,
        directory: tempfile::TempDir,
        trust_domain: &str,
        workloads: usize,
        control_arguments: &[&str],
    ) -> Self {
        // Two meshes at once have different addresses: a process id is nobody else's.
        static MESHES: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id() * 8 + MESHES.fetch_add(1, Ordering::Relaxed);
        let (binary, at) = (crate::postern(), directory.path());
        fs::write(
            at.join("documents/mesh.yaml"),
            documents(workloads, |n| address(number, n)),
        )
        .expect("writable");
        let control_arguments: Vec<String> = control_arguments.iter().map(ToString::to_string).collect();
        let (control, ready) = start_control(&binary, at, trust_domain, &issuer, "127.0.0.1:0", &control_arguments);
        let control_address = address_in(&ready, "listen").to_string();
        let bundle_endpoint = ready["bundle_endpoints"][0].as_str().and_then(|text| text.parse().ok());
        let apps = Apps::serve((0..workloads).map(|n| address(number, n)));
        let mut mesh = Self {
            nodes: Vec::new(),
            control,
            apps,
            issuer,
            control_address,
            trust_domain: trust_domain.to_owned(),
            control_arguments,
            bundle_endpoint,
            number,
            binary,
            directory,
        };
        for n in 0..workloads {
            let node = mesh.start_proxy(n);
            mesh.nodes.push(node);
        }
        for n in 0..workloads {
            mesh.wait_ready(n);
        }
        mesh
    }

    fn at(&self) -> &Path {
        self.directory.path()
    }

    fn start_proxy(&self, n: usize) -> Node {
        let name = format!("w{n}");
        let (own, log) = (self.address(n), self.access_log_file(n));
        let [explicit, metrics] = [15_002, 15_020].map(|port| SocketAddr::from((own, port)));
        let mut command = self.issuer.member(&self.binary, self.at(), &name);
        command
            .args([
                "proxy",
                "run",
                "--capture",
                "explicit",
                "--trust-domain",
                &self.trust_domain,
            ])
            .args(["--control", &self.control_address, "--workers", "1"])
            .args([
                "--explicit-listen",
                &explicit.to_string(),
                "--metrics-listen",
                &metrics.to_string(),
            ])
            .args(["--access-log-file", text(&log)])
            .args(["--admin-socket", text(&self.at().join(format!("{name}.sock")))]);
        self.issuer
            .identify(&mut command, &self.binary, self.at(), &self.id(n), &name);
        Node {
            process: Process::start(&name, command, self.at()),
            name,
            explicit,
            metrics,
        }
    }

    fn address(&self, n: usize) -> Ipv4Addr {
        address(self.number, n)
    }

    fn wait_ready(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let metrics = node.metrics;
        node.process.wait_for("readiness", || {
            get(metrics, "/readyz").starts_with("ready").then_some(())
        });
    }

    /// A workload.
    #[must_use]
    pub fn node(&self, n: usize) -> &Node {
        &self.nodes[n]
    }

    /// A connection from one's app to another's, of this kind, that goes on until something ends it.
    #[must_use]
    pub fn line(&self, from: usize, to: usize, kind: Kind) -> Line {
        let host = format!("w{to}.{NAMESPACE}");
        self.apps.line(self.nodes[from].explicit, &host, kind)
    }

    /// `/readyz`, `/metrics` and the like of a proxy.
    #[must_use]
    pub fn get(&self, n: usize, path: &str) -> String {
        get(self.nodes[n].metrics, path)
    }

    /// `postern quarantine ...` against this mesh.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn quarantine(&self, arguments: &[&str]) -> Output {
        let view = self.at().join("view.sock");
        self.quarantine_at_the_ca(&[arguments, &["--control", text(&view)]].concat())
    }

    /// The same without control.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn quarantine_at_the_ca(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.binary);
        command.arg("quarantine").args(arguments);
        command.args(["--admin-socket", text(&self.at().join("ca.sock"))]);
        command.output().expect("postern runs")
    }

    /// A proxy's certificates and the roots that it believes, by its admin socket; null when it does not say.
    #[must_use]
    pub fn certificates(&self, n: usize) -> Value {
        let stream = std::os::unix::net::UnixStream::connect(self.at().join(format!("w{n}.sock")));
        let told = stream.and_then(|stream| ask(stream, "/certs"));
        told.map_or(Value::Null, |told| serde_json::from_str(&told).unwrap_or_default())
    }

    /// The serial number of a workload's certificate.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn serial(&self, n: usize) -> String {
        let certs = self.certificates(n);
        certs["svid"]["serial"].as_str().expect("a certificate").to_owned()
    }

    /// The CA goes away, as an outage would have it.
    pub fn stop_ca(&mut self) {
        self.ca().0.kill();
    }

    /// It comes back with the same store and address.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn start_ca(&mut self) {
        let (binary, at) = (self.binary.clone(), self.at().to_owned());
        let (process, address, life) = self.ca();
        (*process, _) = start_ca(&binary, &at, address, life);
    }

    /// Another control takes the place of the one that is.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn restart_control(&mut self) {
        self.control.kill();
        let (at, trust_domain) = (self.directory.path(), &self.trust_domain);
        let (issuer, listen) = (&self.issuer, &self.control_address);
        let (control, ready) = start_control(&self.binary, at, trust_domain, issuer, listen, &self.control_arguments);
        self.bundle_endpoint = ready["bundle_endpoints"][0].as_str().and_then(|text| text.parse().ok());
        self.control = control;
    }

    /// Where our own bundle is served to other trust domains.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn bundle_endpoint(&self) -> SocketAddr {
        self.bundle_endpoint.expect("control was told to serve it")
    }

    /// The identity of a workload.
    #[must_use]
    pub fn id(&self, n: usize) -> String {
        workload_id(&self.trust_domain, n)
    }

    /// Where peers call a workload's proxy for this kind.
    #[must_use]
    pub fn inbound(&self, n: usize, kind: Kind) -> SocketAddr {
        SocketAddr::from((self.address(n), kind.listen()))
    }

    /// Puts a document into the directory that control reads, in place of one of that name.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, name: &str, yaml: &str) {
        let documents = self.at().join("documents");
        fs::write(documents.join(".new"), yaml).expect("writable");
        fs::rename(documents.join(".new"), documents.join(name)).expect("writable");
    }

    /// An SVID as PEM files in the directory that is returned: `svid.pem`, `key.pem`, `bundle.pem`.
    ///
    /// # Panics
    /// If the CA gives none.
    #[must_use]
    pub fn svid_files(&self, id: &str, instance: &str) -> PathBuf {
        let out = self.at().join(format!("svid-{instance}"));
        let token = self.at().join(format!("{instance}.svid-token"));
        fs::write(&token, create_token(&self.binary, self.at(), id, instance)).expect("writable");
        let svid = [
            "ca",
            "svid",
            "--ca",
            self.issuer.ca_address(),
            "--trust-domain",
            &self.trust_domain,
        ];
        let files = ["--join-token-file", text(&token), "--out", text(&out)];
        succeeds(&run(&self.binary, &[&svid[..], &files[..]].concat()));
        out
    }

    /// Another issuing certificate takes the place of the one that is.
    ///
    /// # Panics
    /// If the CA refuses.
    pub fn rotate_issuer(&self) {
        let socket = self.at().join("ca.sock");
        succeeds(&run(&self.binary, &["ca", "rotate", "--admin-socket", text(&socket)]));
    }

    /// Another root takes the place of the one that is, which nobody believes for longer than it takes to renew.
    ///
    /// # Panics
    /// If the CA refuses.
    pub fn taint_root(&self) {
        let socket = self.at().join("ca.sock");
        let taint = ["ca", "rotate", "--taint", "--admin-socket", text(&socket)];
        succeeds(&run(&self.binary, &taint));
    }

    /// Where that stands, as `status` has it.
    ///
    /// # Panics
    /// If the CA does not answer.
    #[must_use]
    pub fn root_stage(&self) -> String {
        let socket = self.at().join("ca.sock");
        let status = ["ca", "status", "--output", "json", "--admin-socket", text(&socket)];
        let said = run(&self.binary, &status);
        succeeds(&said);
        let status: Value = serde_json::from_slice(&said.stdout).expect("JSON");
        status["root_rotation"]["stage"].as_str().unwrap_or_default().to_owned()
    }

    /// Control goes away.
    pub fn stop_control(&mut self) {
        self.control.kill();
    }

    /// A new process for a workload; returns when it is up, whatever it is allowed to do.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn restart_proxy(&mut self, n: usize) {
        self.nodes[n].process.kill();
        self.nodes[n] = self.start_proxy(n);
    }

    /// The same, and it is ready.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn restart_proxy_ready(&mut self, n: usize) {
        self.restart_proxy(n);
        self.wait_ready(n);
    }

    /// A proxy's access log, one JSON object a line.
    #[must_use]
    pub fn access_log(&self, n: usize) -> Vec<Value> {
        let text = fs::read_to_string(self.access_log_file(n)).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    fn access_log_file(&self, n: usize) -> PathBuf {
        self.at().join(format!("w{n}-access.log"))
    }

    /// What the CA has printed.
    #[must_use]
    pub fn ca_log(&self) -> String {
        match &self.issuer {
            Issuer::Ca { process, .. } => process.output(),
            Issuer::Spire(_) => panic!("{NO_CA}"),
        }
    }

    /// Its process, where it listens, and how long its certificates live.
    fn ca(&mut self) -> (&mut Process, &str, &str) {
        match &mut self.issuer {
            Issuer::Ca { process, address, life } => (process, address, life),
            Issuer::Spire(_) => panic!("{NO_CA}"),
        }
    }
}

const NO_CA: &str = "this mesh has no CA of ours";

impl Issuer {
    fn ca_address(&self) -> &str {
        match self {
            Self::Ca { address, .. } => address,
            Self::Spire(_) => panic!("{NO_CA}"),
        }
    }

    /// The program of a member. SPIRE tells members apart by its path.
    fn member(&self, binary: &Path, at: &Path, name: &str) -> Command {
        match self {
            Self::Ca { .. } => Command::new(binary),
            Self::Spire(_) => Command::new(at.join(name)),
        }
    }

    /// How a member comes to its identity.
    fn identify(&self, command: &mut Command, binary: &Path, at: &Path, id: &str, instance: &str) {
        match self {
            Self::Ca { address, .. } => {
                let token = at.join(format!("{instance}.token"));
                fs::write(&token, create_token(binary, at, id, instance)).expect("writable");
                command.args(["--ca", address, "--join-token-file", text(&token)]);
            }
            Self::Spire(endpoint) => {
                command.args(["--workload-api", endpoint]);
            }
        }
    }
}

fn directory_of_mesh() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("temporary directories can be made");
    fs::create_dir(directory.path().join("documents")).expect("writable");
    directory
}

fn workload_id(trust_domain: &str, n: usize) -> String {
    format!("spiffe://{trust_domain}/ns/{NAMESPACE}/sa/w{n}")
}

fn control_id(trust_domain: &str) -> String {
    format!("spiffe://{trust_domain}/ns/postern-system/sa/postern-control")
}

/// Where a workload of a mesh is.
fn address(mesh: u32, n: usize) -> Ipv4Addr {
    let [_, _, high, low] = mesh.to_be_bytes();
    let last = u8::try_from(n + 1).expect("few workloads");
    Ipv4Addr::new(127, high.max(1), low, last)
}

/// The identity of a workload.
#[must_use]
pub fn spiffe_id(n: usize) -> String {
    workload_id("cluster.local", n)
}

fn documents(workloads: usize, address: impl Fn(usize) -> Ipv4Addr) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: everybody, namespace: {NAMESPACE}}}\n\
         spec: {{rules: [{{from: [{{source: {{namespaces: [{NAMESPACE}]}}}}]}}]}}\n"
    );
    for n in 0..workloads {
        let ports = |entry: &dyn Fn(Kind) -> String| -> String { Kind::ALL.into_iter().map(entry).collect() };
        let of_workload = ports(&|kind| {
            let (name, number) = (kind.name(), kind.number());
            let (protocol, listen, app) = (kind.protocol(), kind.listen(), kind.app());
            format!("  - {{name: {name}, number: {number}, protocol: {protocol}, listen: {listen}, app: {app}}}\n")
        });
        let of_service = ports(&|kind| {
            let (name, number) = (kind.name(), kind.number());
            format!("  - {{name: {name}, port: {number}, targetPort: {name}}}\n")
        });
        yaml.push_str(&format!(
            "---\napiVersion: postern.dev/v1alpha1\nkind: Workload\n\
             metadata: {{name: w{n}, namespace: {NAMESPACE}, labels: {{app: w{n}}}}}\n\
             spec:\n  serviceAccount: w{n}\n  address: {}\n  capture: explicit\n  ports:\n{of_workload}\
             ---\napiVersion: v1\nkind: Service\nmetadata: {{name: w{n}, namespace: {NAMESPACE}}}\n\
             spec:\n  selector: {{app: w{n}}}\n  ports:\n{of_service}",
            address(n)
        ));
    }
    yaml
}

fn start_ca(binary: &Path, at: &Path, listen: &str, life: &str) -> (Process, String) {
    let ready = at.join("ca.json");
    let _ = fs::remove_file(&ready);
    let mut command = Command::new(binary);
    command
        .args(["ca", "serve", "--listen", listen, "--metrics-listen", "127.0.0.1:0"])
        .args(["--svid-life", life, "--insecure-short-life"])
        .args([
            "--store",
            text(&at.join("store")),
            "--admin-socket",
            text(&at.join("ca.sock")),
        ])
        .args(["--ready-file", text(&ready)]);
    let mut process = Process::start("ca", command, at);
    let address = address_in(&ready_document(&mut process, &ready), "listen");
    (process, address.to_string())
}

fn start_control(
    binary: &Path,
    at: &Path,
    trust_domain: &str,
    issuer: &Issuer,
    listen: &str,
    more: &[String],
) -> (Process, Value) {
    let ready = at.join("control.json");
    let _ = fs::remove_file(&ready);
    let mut command = issuer.member(binary, at, "control");
    command
        .args(["control", "--listen", listen, "--metrics-listen", "127.0.0.1:0"])
        .args([
            "--trust-domain",
            trust_domain,
            "--directory",
            text(&at.join("documents")),
        ])
        .args(["--ready-file", text(&ready)])
        .args(["--view-socket", text(&at.join("view.sock"))])
        .args(more);
    issuer.identify(&mut command, binary, at, &control_id(trust_domain), "postern-control");
    let mut process = Process::start("control", command, at);
    let document = ready_document(&mut process, &ready);
    (process, document)
}

fn create_token(binary: &Path, at: &Path, id: &str, instance: &str) -> String {
    let socket = at.join("ca.sock");
    let create = ["ca", "token", "create", "--id", id, "--instance", instance];
    let made = run(
        binary,
        &[create.as_slice(), &["--admin-socket", text(&socket)]].concat(),
    );
    succeeds(&made);
    String::from_utf8(made.stdout).expect("a token is text")
}

fn run(binary: &Path, arguments: &[&str]) -> Output {
    Command::new(binary).args(arguments).output().expect("postern runs")
}

fn succeeds(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn ready_document(process: &mut Process, file: &Path) -> Value {
    // It is renamed into place: there is no half of one.
    process.wait_for("ready file", || {
        serde_json::from_str(&fs::read_to_string(file).ok()?).ok()
    })
}

fn address_in(document: &Value, field: &str) -> SocketAddr {
    let found = document[field].as_str().and_then(|text| text.parse().ok());
    found.unwrap_or_else(|| panic!("the ready file has no {field}: {document}"))
}

fn get(address: SocketAddr, path: &str) -> String {
    let asked = std::net::TcpStream::connect(address).and_then(|stream| ask(stream, path));
    asked.unwrap_or_default()
}

/// The body of an answer.
fn ask(mut stream: impl std::io::Read + std::io::Write, path: &str) -> std::io::Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer
        .split_once("\r\n\r\n")
        .map_or_else(String::new, |(_, body)| body.to_owned()))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}
