//! With a KMS plugin as Kubernetes' own library serves it (e2e/kms, built by e2e/install): what is sealed opens, another key
//! is followed, and a plugin that is killed seals nothing away from a CA that runs.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use postern_ca::store::Kind;
use postern_ca::{KekConfig, Sealer, ServeConfig, init_sealed, rewrap_store, start};
use rustix::process::{Pid, Signal, kill_process};
use rustls_pki_types::UnixTime;
use world::{init_config, serve_config};

mod world;

const PLUGIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/e2e-bin/kms-plugin");

/// Ended with its test.
struct Plugin {
    child: Child,
    says: BufReader<std::process::ChildStdout>,
}

impl Plugin {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn plugin(socket: &Path) -> Option<Plugin> {
    if !Path::new(PLUGIN).exists() {
        let why = "target/e2e-bin/kms-plugin is not there: run e2e/install; Kubernetes' own KMS library was NOT tried";
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
        eprintln!("SKIPPED: {why}");
        return None;
    }
    let mut child = Command::new(PLUGIN).arg(socket).stdout(Stdio::piped()).spawn().unwrap();
    let says = BufReader::new(child.stdout.take().unwrap());
    Some(Plugin { child, says })
}

#[tokio::test]
async fn kubernetes_own_kms_library_wraps_and_its_next_key_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("kms.sock");
    let Some(mut plugin) = plugin(&socket) else { return };
    assert_eq!(plugin.line(), "key-1");
    let kek = KekConfig::Kms(socket);
    let sealer = Sealer::unseal(&kek).await.unwrap();
    init_sealed(&init_config(dir.path()), sealer, UnixTime::now()).unwrap();
    let store = dir.path().join("ca");
    let is_under = |key: &str| {
        [Kind::Authority, Kind::Root].iter().all(|kind| {
            let text = std::fs::read_to_string(store.join(kind.file())).unwrap();
            text.contains(&format!("\"keyId\": \"{key}\"")) && text.contains("nonce.kms.postern.dev")
        })
    };
    assert!(is_under("key-1"));
    let pid = Pid::from_child(&plugin.child);
    kill_process(pid, Signal::HUP).unwrap();
    assert_eq!(plugin.line(), "key-2");
    // At the start; a CA that runs does the same when it looks.
    let config = ServeConfig {
        kek: Some(kek.clone()),
        ..serve_config(dir.path())
    };
    let running = start(config, postern_ca::clock::system()).await.unwrap();
    assert!(is_under("key-2"));
    running.stop().await;
    assert_eq!(rewrap_store(&store, Some(&kek), false).await.unwrap(), []);
    // Without its keys a plugin is another one.
    drop(plugin);
    let error = rewrap_store(&store, Some(&kek), false).await.unwrap_err();
    assert!(postern_error(&error).contains("is away"), "{error}");
}

fn postern_error(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
