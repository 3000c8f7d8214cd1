//! A mesh of real processes in a lab: CA, control, and a capturing proxy per pod.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::lab::{Lab, Pod};
use crate::process::Process;

/// The UID that proxies run as, exempt from capture.
pub const PROXY_UID: u32 = 15_371;

/// CA and control, running in a pod of their own.
#[derive(Debug)]
pub struct Mesh {
    /// Where they run.
    pub pod: Pod,
    /// The CA's process.
    pub ca: Process,
    /// Control's process.
    pub control: Process,
    binary: PathBuf,
    directory: PathBuf,
    ca_address: String,
    control_address: String,
    ca_arguments: Vec<String>,
    control_arguments: Vec<String>,
}

/// In what a pod's sidecar differs from the usual.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sidecar<'a> {
    /// Arguments of `redirect`.
    pub redirect: &'a [&'a str],
    /// Further arguments of `run`.
    pub run: &'a [&'a str],
    /// Its environment, as an injector writes it.
    pub environment: &'a [(&'a str, &'a str)],
}

impl Mesh {
    /// Starts CA and control with certificates that live `life` (such as `1h`, `10s`); policy and workloads are read from
    /// [`Mesh::documents`].
    ///
    /// # Panics
    /// If they do not become ready.
    #[must_use]
    pub fn start(lab: &mut Lab, life: &str) -> Self {
        let pod = lab.pod("mesh");
        let directory = lab.directory().join("mesh");
        fs::create_dir_all(directory.join("documents")).expect("the lab's directory is writable");
        // Proxies of another user must be able to run it, wherever the checkout lies. Copied by a process of its own: a
        // descriptor open for writing here could be inherited by another test's child, and the file be "busy".
        let binary = lab.directory().join("postern");
        crate::lab::sh(&format!("cp {} {}", crate::postern().display(), binary.display()));
        let store = directory.join("store");
        let init = Command::new(&binary)
            .args(["ca", "init", "--trust-domain", "cluster.local", "--store"])
            .arg(&store)
            .output()
            .expect("postern runs");
        assert!(
            init.status.success(),
            "ca init: {}",
            String::from_utf8_lossy(&init.stderr)
        );
        let ca_address = format!("{}:15012", pod.v4);
        let ca_arguments: Vec<String> = [
            "ca",
            "serve",
            "--listen",
            &ca_address,
            "--metrics-listen",
            "127.0.0.1:15021",
        ]
        .iter()
        .map(ToString::to_string)
        .chain(["--svid-life".into(), life.into(), "--insecure-short-life".into()])
        .chain(["--root-retire-after".into(), life.into()])
        .chain(["--store".into(), text(store)])
        .chain(["--admin-socket".into(), text(directory.join("ca.sock"))])
        .chain(["--ready-file".into(), text(directory.join("ca.json"))])
        .collect();
        let mut ca = start(&pod, 0, &binary, "ca", &ca_arguments, &directory);
        ready(&mut ca, &directory.join("ca.json"));
        let control_address = format!("{}:15010", pod.v4);
        let control_arguments: Vec<String> = ["control", "--ca", &ca_address, "--listen", &control_address]
            .iter()
            .map(ToString::to_string)
            .chain(["--trust-domain".into(), "cluster.local".into()])
            .chain(["--metrics-listen".into(), "127.0.0.1:15022".into()])
            // Issuers of end users' tokens run in the lab.
            .chain(["--jwks-allow-cidr".into(), "10.77.0.0/16".into()])
            .chain(["--directory".into(), text(directory.join("documents"))])
            .chain(["--join-token-file".into(), text(directory.join("control.token"))])
            .chain(["--view-socket".into(), text(directory.join("view.sock"))])
            .chain(["--ready-file".into(), text(directory.join("control.json"))])
            .collect();
        let control = start_control(&pod, &binary, &directory, &control_arguments);
        Self {
            pod,
            ca,
            control,
            binary,
            directory,
            ca_address,
            control_address,
            ca_arguments,
            control_arguments,
        }
    }

    /// Where proxies that are started from now on look for control.
    pub fn control_is_at(&mut self, address: &str) {
        address.clone_into(&mut self.control_address);
    }

    /// The directory that control watches.
    #[must_use]
    pub fn documents(&self) -> PathBuf {
        self.directory.join("documents")
    }

    /// The CA's key-encryption keys, a line each.
    ///
    /// # Panics
    /// If there is no file of them.
    #[must_use]
    pub fn keks(&self) -> String {
        fs::read_to_string(self.directory.join("store.kek")).expect("a file of keys")
    }

    /// Puts these in their place.
    ///
    /// # Panics
    /// If they cannot be written.
    pub fn replace_keks(&self, lines: &str) {
        let new = self.directory.join("store.kek.new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&new).expect("writable");
        file.write_all(lines.as_bytes()).expect("writable");
        fs::rename(&new, self.directory.join("store.kek")).expect("writable");
    }

    /// Writes (or replaces, atomically) a file of documents.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, file: &str, yaml: &str) {
        let path = self.documents().join(file);
        let temporary = self.directory.join(format!("{file}.new"));
        fs::write(&temporary, yaml)
            .and_then(|()| fs::rename(&temporary, &path))
            .expect("writable");
    }

    /// A join token.
    ///
    /// # Panics
    /// If the CA refuses.
    #[must_use]
    pub fn token(&self, spiffe_id: &str, instance: &str) -> String {
        create_token(&self.binary, &self.directory, spiffe_id, instance)
    }

    /// An SVID as PEM files (`svid.pem`, `key.pem`, `bundle.pem`), for a program in `pod` that has no proxy.
    ///
    /// # Panics
    /// If the CA refuses.
    #[must_use]
    pub fn svid(&self, pod: &Pod, namespace: &str, account: &str, name: &str) -> PathBuf {
        let out = self.directory.join(format!("svid-{name}"));
        fs::create_dir_all(&out).expect("writable");
        let token = out.join("token");
        let id = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        fs::write(&token, self.token(&id, name)).expect("writable");
        let issued = pod
            .command(0, &self.binary)
            .args(["ca", "svid", "--ca", &self.ca_address, "--join-token-file"])
            .arg(&token)
            .arg("--out")
            .arg(&out)
            .output()
            .expect("postern runs");
        assert!(
            issued.status.success(),
            "ca svid: {}",
            String::from_utf8_lossy(&issued.stderr)
        );
        crate::lab::sh(&format!("chown -R {0}:{0} {1}", crate::lab::APP_UID, out.display()));
        out
    }

    /// Stops the CA as an outage would.
    pub fn stop_ca(&mut self) {
        self.ca.kill();
    }

    /// Starts the CA again with the same store and address.
    pub fn start_ca(&mut self) {
        let _ = fs::remove_file(self.directory.join("ca.json"));
        self.ca = start(&self.pod, 0, &self.binary, "ca", &self.ca_arguments, &self.directory);
        ready(&mut self.ca, &self.directory.join("ca.json"));
    }

    /// Puts a new issuing certificate in place.
    ///
    /// # Panics
    /// If the CA refuses.
    pub fn rotate(&self) {
        let done = Command::new(&self.binary)
            .args(["ca", "rotate", "--admin-socket"])
            .arg(self.directory.join("ca.sock"))
            .output()
            .expect("postern runs");
        assert!(
            done.status.success(),
            "ca rotate: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }

    /// Begins to replace the root; `taint`: after a compromise.
    ///
    /// # Panics
    /// If the CA refuses.
    pub fn rotate_root(&self, taint: bool) {
        let how = if taint { "--taint" } else { "--root" };
        self.operator(&["rotate", how]);
    }

    /// Where that stands, as `status` has it.
    ///
    /// # Panics
    /// If the CA does not answer.
    #[must_use]
    pub fn root_stage(&self) -> String {
        let status: Value = serde_json::from_str(&self.operator(&["status", "--output", "json"])).expect("JSON");
        let stage = status["root_rotation"]["stage"].as_str();
        stage.unwrap_or_default().to_owned()
    }

    fn operator(&self, arguments: &[&str]) -> String {
        let done = Command::new(&self.binary)
            .arg("ca")
            .args(arguments)
            .arg("--admin-socket")
            .arg(self.directory.join("ca.sock"))
            .output()
            .expect("postern runs");
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "ca {arguments:?}: {errors}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// Stops control as an outage would.
    pub fn stop_control(&mut self) {
        self.control.kill();
    }

    /// Starts control again, with a new token and the same directory and address.
    pub fn start_control(&mut self) {
        let _ = fs::remove_file(self.directory.join("control.json"));
        self.control = start_control(&self.pod, &self.binary, &self.directory, &self.control_arguments);
    }

    /// Puts a capturing proxy into a pod for `ns/<namespace>/sa/<account>`, workload `name`, and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready.
    #[must_use]
    pub fn capture(&self, pod: &Pod, namespace: &str, account: &str, name: &str, more: &[&str]) -> Process {
        let sidecar = Sidecar {
            run: more,
            ..Sidecar::default()
        };
        let mut proxy = self.sidecar(pod, namespace, account, name, sidecar);
        let ready = "curl -sf http://127.0.0.1:15020/readyz";
        proxy.wait_for("readiness", || pod.run(ready).status.success().then_some(()));
        proxy
    }

    /// The same with whatever is special about it; does not wait.
    ///
    /// # Panics
    /// If the rules cannot be set.
    #[must_use]
    pub fn sidecar(&self, pod: &Pod, namespace: &str, account: &str, name: &str, sidecar: Sidecar<'_>) -> Process {
        let redirect = pod
            .command(0, crate::postern())
            .args(["proxy", "redirect"])
            .args(sidecar.redirect)
            .output()
            .expect("postern runs");
        assert!(
            redirect.status.success(),
            "redirect: {}",
            String::from_utf8_lossy(&redirect.stderr)
        );
        self.hand_token(namespace, account, name);
        self.start_proxy(pod, name, sidecar)
    }

    /// Starts a proxy with a new token; does not wait.
    ///
    /// # Panics
    /// If the token cannot be handed over.
    #[must_use]
    pub fn proxy(&self, pod: &Pod, namespace: &str, account: &str, name: &str, more: &[&str]) -> Process {
        self.hand_token(namespace, account, name);
        self.proxy_again(pod, name, more)
    }

    /// Puts a new join token where the proxy of workload `name` looks for one.
    ///
    /// # Panics
    /// If the CA refuses.
    pub fn hand_token(&self, namespace: &str, account: &str, name: &str) {
        let state = self.state_of(name);
        fs::create_dir_all(&state).expect("writable");
        let id = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        fs::write(state.join("token"), self.token(&id, name)).expect("writable");
        crate::lab::sh(&format!("chown -R {PROXY_UID}:{PROXY_UID} {}", state.display()));
    }

    /// Starts a proxy with whatever token its file holds, used or not; does not wait.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn proxy_again(&self, pod: &Pod, name: &str, more: &[&str]) -> Process {
        let sidecar = Sidecar {
            run: more,
            ..Sidecar::default()
        };
        self.start_proxy(pod, name, sidecar)
    }

    /// Starts a proxy with whatever token its file holds; does not wait.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start_proxy(&self, pod: &Pod, name: &str, sidecar: Sidecar<'_>) -> Process {
        let state = self.state_of(name);
        let arguments: Vec<String> = [
            "proxy",
            "run",
            "--capture",
            "redirect",
            "--trust-domain",
            "cluster.local",
        ]
        .iter()
        .map(ToString::to_string)
        .chain(["--ca".into(), self.ca_address.clone()])
        .chain(["--control".into(), self.control_address.clone()])
        .chain(["--join-token-file".into(), text(state.join("token"))])
        .chain(["--metrics-listen".into(), "[::]:15020".into()])
        .chain(["--access-log-file".into(), text(state.join("access.log"))])
        .chain(sidecar.run.iter().map(ToString::to_string))
        .collect();
        let mut command = pod.command(PROXY_UID, &self.binary);
        command.args(arguments).envs(sidecar.environment.iter().copied());
        Process::start(&format!("proxy-{name}"), command, &self.directory)
    }

    fn state_of(&self, name: &str) -> PathBuf {
        self.directory.join(format!("proxy-{name}"))
    }

    /// A proxy's access log, one JSON object a line.
    #[must_use]
    pub fn access_log(&self, name: &str) -> Vec<Value> {
        fs::read_to_string(self.state_of(name).join("access.log"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }
}

fn text(path: PathBuf) -> String {
    path.to_str().expect("temporary paths are UTF-8").to_owned()
}

fn start_control(pod: &Pod, binary: &Path, directory: &Path, arguments: &[String]) -> Process {
    let id = "spiffe://cluster.local/ns/postern-system/sa/postern-control";
    let token = create_token(binary, directory, id, "postern-control");
    fs::write(directory.join("control.token"), token).expect("writable");
    let mut control = start(pod, 0, binary, "control", arguments, directory);
    ready(&mut control, &directory.join("control.json"));
    control
}

fn start(pod: &Pod, uid: u32, binary: &Path, name: &str, arguments: &[String], directory: &Path) -> Process {
    let mut command = pod.command(uid, binary);
    command.args(arguments);
    Process::start(name, command, directory)
}

fn ready(process: &mut Process, file: &Path) {
    process.wait_for("ready file", || file.exists().then_some(()));
}

fn create_token(binary: &Path, directory: &Path, spiffe_id: &str, instance: &str) -> String {
    let out = Command::new(binary)
        .args([
            "ca",
            "token",
            "create",
            "--id",
            spiffe_id,
            "--instance",
            instance,
            "--admin-socket",
        ])
        .arg(directory.join("ca.sock"))
        .output()
        .expect("postern runs");
    assert!(out.status.success(), "token: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout)
        .expect("a token is text")
        .trim()
        .to_owned()
}
