//! A real SPIRE: one server, one agent, and workloads that it knows by the paths of their programs. Needs no root.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::process::{Process, eventually};

/// Both are built by `e2e/install`.
pub const PROGRAMS: [&str; 2] = ["spire-server", "spire-agent"];

/// Server and agent, ended with this value.
#[derive(Debug)]
pub struct Spire {
    server: Process,
    agent: Process,
    trust_domain: String,
    directory: tempfile::TempDir,
}

impl Spire {
    /// Starts both; the SVIDs of its workloads live so many seconds.
    ///
    /// # Panics
    /// If one does not become ready.
    #[must_use]
    pub fn start(trust_domain: &str, svid_seconds: u32) -> Self {
        let directory = tempfile::tempdir().expect("temporary directories can be made");
        let at = directory.path();
        // It takes no port 0; nobody else is given this one so soon again.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.expect("a free port").port();
        write(
            &at.join("server.conf"),
            &format!(
                r#"
server {{
    bind_address = "127.0.0.1"
    bind_port = "{port}"
    socket_path = "{at}/server.sock"
    trust_domain = "{trust_domain}"
    data_dir = "{at}/server"
    default_x509_svid_ttl = "{svid_seconds}s"
    ca_ttl = "1h"
}}
plugins {{
    DataStore "sql" {{ plugin_data {{ database_type = "sqlite3", connection_string = "{at}/server.sqlite3" }} }}
    KeyManager "memory" {{ plugin_data {{}} }}
    NodeAttestor "join_token" {{ plugin_data {{}} }}
}}
"#,
                at = at.display()
            ),
        );
        write(
            &at.join("agent.conf"),
            &format!(
                r#"
agent {{
    server_address = "127.0.0.1"
    server_port = "{port}"
    socket_path = "{at}/agent.sock"
    trust_domain = "{trust_domain}"
    data_dir = "{at}/agent"
    trust_bundle_path = "{at}/bundle.pem"
}}
plugins {{
    KeyManager "disk" {{ plugin_data {{ directory = "{at}/agent" }} }}
    NodeAttestor "join_token" {{ plugin_data {{}} }}
    WorkloadAttestor "unix" {{ plugin_data {{ discover_workload_path = true }} }}
}}
"#,
                at = at.display()
            ),
        );
        fs::create_dir(at.join("server")).expect("writable");
        fs::create_dir(at.join("agent")).expect("writable");
        let server = start("spire-server", at, &[]);
        let socket = at.join("server.sock");
        let bundle = eventually("SPIRE's bundle", || {
            let shown = command(&socket, &["bundle", "show"]);
            shown.status.success().then_some(shown.stdout)
        });
        fs::write(at.join("bundle.pem"), bundle).expect("writable");
        let spiffe_id = agent_id(trust_domain);
        let token = json(&socket, &["token", "generate", "-spiffeID", &spiffe_id]);
        let token = token["value"].as_str().expect("a token").to_owned();
        let agent = start("spire-agent", at, &["-joinToken", &token]);
        let spire = Self {
            server,
            agent,
            trust_domain: trust_domain.to_owned(),
            directory,
        };
        spire.wait_for_agent();
        spire
    }

    fn at(&self) -> &Path {
        self.directory.path()
    }

    fn socket(&self) -> PathBuf {
        self.at().join("server.sock")
    }

    fn wait_for_agent(&self) {
        let socket = self.at().join("agent.sock");
        eventually("SPIRE's agent", || {
            let mut asked = Command::new(program("spire-agent"));
            asked.args(["healthcheck", "-socketPath"]).arg(&socket);
            asked.output().expect("spire-agent runs").status.success().then_some(())
        });
    }

    /// Its trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The agent's Workload API.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.at().join("agent.sock").display())
    }

    /// Whoever runs this program has this identity.
    ///
    /// # Panics
    /// If the server refuses.
    pub fn register(&self, id: &str, program: &Path) {
        let selector = format!("unix:path:{}", program.display());
        let parent = agent_id(&self.trust_domain);
        let create = [
            "entry",
            "create",
            "-parentID",
            &parent,
            "-spiffeID",
            id,
            "-selector",
            &selector,
        ];
        succeeds(&command(&self.socket(), &create));
    }

    /// That identity is nobody's any more.
    ///
    /// # Panics
    /// If it was nobody's.
    pub fn deregister(&self, id: &str) {
        let shown = json(&self.socket(), &["entry", "show", "-spiffeID", id]);
        let entry = shown["entries"][0]["id"].as_str().expect("an entry");
        succeeds(&command(&self.socket(), &["entry", "delete", "-entryID", entry]));
    }

    /// `spire-server localauthority x509`: another root is prepared and published.
    ///
    /// # Panics
    /// If the server refuses.
    pub fn prepare_root(&self) {
        succeeds(&command(&self.socket(), &["localauthority", "x509", "prepare"]));
    }

    /// It signs from now on; the one before is still believed.
    ///
    /// # Panics
    /// If the server refuses.
    pub fn activate_root(&self) {
        self.of_root("prepared", &["activate"]);
    }

    /// The root before is believed no more: all that it signed is signed anew.
    ///
    /// # Panics
    /// If the server refuses.
    pub fn withdraw_old_root(&self) {
        self.of_root("old", &["taint", "revoke"]);
    }

    fn of_root(&self, which: &str, words: &[&str]) {
        let shown = json(&self.socket(), &["localauthority", "x509", "show"]);
        let id = shown[which]["authority_id"].as_str();
        let id = id.unwrap_or_else(|| panic!("no {which} root: {shown}"));
        for word in words {
            succeeds(&command(
                &self.socket(),
                &["localauthority", "x509", word, "-authorityID", id],
            ));
        }
    }

    /// The agent goes away at once.
    pub fn stop_agent(&mut self) {
        self.agent.kill();
    }

    /// It comes back, with what it had.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn start_agent(&mut self) {
        self.agent = start("spire-agent", self.directory.path(), &[]);
        self.wait_for_agent();
    }

    /// What both have printed.
    #[must_use]
    pub fn log(&self) -> String {
        self.server.output() + &self.agent.output()
    }
}

fn agent_id(trust_domain: &str) -> String {
    format!("spiffe://{trust_domain}/agent")
}

fn program(name: &str) -> PathBuf {
    crate::which(name).unwrap_or_else(|| panic!("no {name} (e2e/install)"))
}

fn start(name: &str, at: &Path, more: &[&str]) -> Process {
    let config = at.join(name.replace("spire-", "") + ".conf");
    let mut command = Command::new(program(name));
    command.arg("run").arg("-config").arg(config).args(more);
    Process::start(name, command, at)
}

/// `spire-server ...`, against a server that runs.
fn command(socket: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program("spire-server"));
    command.args(arguments).arg("-socketPath").arg(socket);
    command.output().expect("spire-server runs")
}

fn json(socket: &Path, arguments: &[&str]) -> Value {
    let output = command(socket, &[arguments, &["-output", "json"]].concat());
    succeeds(&output);
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn succeeds(output: &Output) {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("writable");
}
