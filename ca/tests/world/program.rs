//! `postern-ca` as a program: its output, its files, its process.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use postern_api::ca_client::JoinToken;
use rustix::process::{Pid, Signal, kill_process};

use super::WEB;

/// A process that does not outlive its test.
pub struct Serving {
    pub child: Child,
    pub listen: String,
    pub metrics: String,
    log: PathBuf,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn postern_ca(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_postern-ca"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn done(args: &[&str]) -> String {
    let output = postern_ca(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

pub fn failed(args: &[&str]) -> String {
    let output = postern_ca(args);
    assert!(!output.status.success(), "{args:?}: {}", text(&output.stdout));
    assert!(output.stdout.is_empty());
    text(&output.stderr)
}

pub fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

pub fn serve(dir: &Path, log_level: &str) -> Serving {
    serve_by(Command::new(env!("CARGO_BIN_EXE_postern-ca")), dir, log_level)
}

/// Of this program, which may be a shell around ours.
pub fn serve_by(mut program: Command, dir: &Path, log_level: &str) -> Serving {
    let (ready, log) = (dir.join("ready.json"), dir.join("log"));
    let _ = std::fs::remove_file(&ready);
    let stderr = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .unwrap();
    let child = program
        .args([
            "serve",
            "--store",
            &path(dir, "ca"),
            "--listen",
            "127.0.0.1:0",
            "--metrics-listen",
            "127.0.0.1:0",
        ])
        .args([
            "--admin-socket",
            &path(dir, "admin.sock"),
            "--ready-file",
            ready.to_str().unwrap(),
        ])
        .env("POSTERN_LOG", log_level)
        .stdin(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let mut serving = Serving {
        child,
        listen: String::new(),
        metrics: String::new(),
        log,
    };
    let given_up = Instant::now() + Duration::from_secs(30);
    while !ready.exists() {
        assert!(
            Instant::now() < given_up && serving.child.try_wait().unwrap().is_none(),
            "{}",
            serving.log()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let addresses: serde_json::Value = serde_json::from_slice(&std::fs::read(&ready).unwrap()).unwrap();
    serving.listen = addresses["listen"].as_str().unwrap().to_owned();
    serving.metrics = addresses["metrics"].as_str().unwrap().to_owned();
    serving
}

impl Serving {
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.metrics).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: ca\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

pub fn initialised() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let sha256 = done(&[
        "init",
        "--store",
        &path(dir.path(), "ca"),
        "--trust-domain",
        "cluster.local",
    ]);
    assert_eq!((sha256.trim().len(), sha256.lines().count()), (64, 1));
    dir
}

pub fn token(dir: &Path, instance: &str) -> JoinToken {
    let socket = path(dir, "admin.sock");
    let printed = done(&[
        "token",
        "create",
        "--admin-socket",
        &socket,
        "--id",
        WEB,
        "--instance",
        instance,
    ]);
    assert_eq!(printed.lines().count(), 1, "the token alone");
    JoinToken::parse(&printed).unwrap()
}

/// `svid.pem`, `key.pem` and `bundle.pem`, as `postern-ca svid` writes them.
pub fn svid(serving: &Serving, dir: &Path, name: &str) -> String {
    let file = dir.join(format!("{name}.token"));
    std::fs::write(&file, token(dir, name).expose()).unwrap();
    let out = path(dir, name);
    let file = file.to_str().unwrap();
    done(&[
        "svid",
        "--ca",
        &serving.listen,
        "--join-token-file",
        file,
        "--out",
        &out,
    ]);
    out
}
