//! Pods without Kubernetes: network namespaces on one bridge, each with an IPv4 and an IPv6 address.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::Process;

/// The UID that a lab's apps run as: not root, not the proxy's.
pub const APP_UID: u32 = 1_234;

/// A bridge with pods; everything is removed when it is dropped.
#[derive(Debug)]
pub struct Lab {
    id: String,
    directory: tempfile::TempDir,
    pods: Vec<String>,
}

/// One namespace.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name in the lab.
    pub name: String,
    /// Its IPv4 address.
    pub v4: String,
    /// Its IPv6 address.
    pub v6: String,
    namespace: String,
    directory: PathBuf,
}

impl Lab {
    /// An empty lab: a switch namespace with a bridge.
    ///
    /// # Panics
    /// If `ip` fails (the caller has checked [`crate::requires`]).
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        if number == 0 {
            remove_abandoned();
        }
        let id = format!("pt{}x{number}", std::process::id());
        let directory = tempfile::Builder::new()
            .prefix("postern-lab-")
            .tempdir()
            .expect("/tmp is writable");
        // Apps and proxies of other users read their configuration here.
        sh(&format!("chmod 755 {}", directory.path().display()));
        sh(&format!(
            "ip netns add {id}-sw && ip -n {id}-sw link add br0 type bridge && ip -n {id}-sw link set br0 up"
        ));
        Self {
            id,
            directory,
            pods: Vec::new(),
        }
    }

    /// Where logs and configuration of this lab are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The namespace of the bridge, where everything between pods can be captured.
    #[must_use]
    pub fn switch(&self) -> Pod {
        Pod {
            name: "sw".into(),
            v4: String::new(),
            v6: String::new(),
            namespace: format!("{}-sw", self.id),
            directory: self.directory.path().to_owned(),
        }
    }

    /// A new pod. Like pods everywhere it has a default route, though nothing answers there.
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn pod(&mut self, name: &str) -> Pod {
        let host = self.pods.len() + 2;
        let (v4, v6) = (format!("10.77.0.{host}"), format!("fd77::{host}"));
        let (id, ns) = (&self.id, format!("{}-{name}", self.id));
        sh(&format!(
            "ip netns add {ns} && ip -n {ns} link set lo up && \
             ip -n {id}-sw link add v{host} type veth peer name eth0 netns {ns} && \
             ip -n {id}-sw link set v{host} master br0 up && \
             ip -n {ns} addr add {v4}/24 dev eth0 && ip -n {ns} addr add {v6}/64 dev eth0 nodad && \
             ip -n {ns} link set eth0 up && \
             ip -n {ns} route add default dev eth0 && ip -n {ns} -6 route add default dev eth0"
        ));
        self.pods.push(ns.clone());
        Pod {
            name: name.into(),
            v4,
            v6,
            namespace: ns,
            directory: self.directory.path().to_owned(),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for ns in self.pods.iter().chain([&format!("{}-sw", self.id)]) {
            let _ = Command::new("ip").args(["netns", "delete", ns]).status();
        }
    }
}

impl Pod {
    /// Where its network namespace is mounted.
    #[must_use]
    pub fn network_namespace(&self) -> PathBuf {
        Path::new("/var/run/netns").join(&self.namespace)
    }

    /// A command inside the pod, as `uid`. It ends with the thread that started it, should that be killed.
    pub fn command(&self, uid: u32, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, "setpriv", "--pdeathsig", "KILL"]);
        if uid != 0 {
            let uid = uid.to_string();
            command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]);
        }
        command.arg(program);
        command
    }

    /// Starts a process in the pod as the app's user; its log is `<pod>-<name>.log`.
    #[must_use]
    pub fn start(&self, name: &str, shell: &str) -> Process {
        let mut command = self.command(APP_UID, "sh");
        command.args(["-c", &format!("exec {shell}")]);
        Process::start(&format!("{}-{name}", self.name), command, &self.directory)
    }

    /// The same as root, for servers that insist on it.
    #[must_use]
    pub fn start_as_root(&self, name: &str, shell: &str) -> Process {
        let mut command = self.command(0, "sh");
        command.args(["-c", &format!("exec {shell}")]);
        Process::start(&format!("{}-{name}", self.name), command, &self.directory)
    }

    /// Runs a shell line in the pod as the app's user to its end.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn run(&self, shell: &str) -> Output {
        self.command(APP_UID, "sh")
            .args(["-c", shell])
            .output()
            .expect("ip and sh are there")
    }

    /// What a shell line prints; both outputs, for messages and comparisons.
    #[must_use]
    pub fn prints(&self, shell: &str) -> String {
        let out = self.run(shell);
        format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        )
    }
}

/// Removes the namespaces of test runs that were killed: `pt<process id>x...`, and no such process.
fn remove_abandoned() {
    let list = Command::new("ip").args(["netns", "list"]).output();
    let list = list.map_or_else(|_| Vec::new(), |out| out.stdout);
    for line in String::from_utf8_lossy(&list).lines() {
        let name = line.split(' ').next().unwrap_or_default();
        let owner = name.strip_prefix("pt").and_then(|rest| rest.split_once('x'));
        let Some(owner) = owner.and_then(|(owner, _)| owner.parse::<u32>().ok()) else {
            continue;
        };
        if !Path::new(&format!("/proc/{owner}")).exists() {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

/// Runs a shell line as root outside of the pods.
///
/// # Panics
/// If it fails.
pub fn sh(line: &str) {
    let out = Command::new("sh").args(["-ec", line]).output().expect("sh is there");
    assert!(
        out.status.success(),
        "`{line}` failed: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}
