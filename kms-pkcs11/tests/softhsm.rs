//! The program against a real token (SoftHSM 2 of Debian), as the CA uses it: what is wrapped opens, another key is followed,
//! a token that goes away seals nothing away from a CA that runs, and no bad module takes the plugin with it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use kms::key_management_service_client::KeyManagementServiceClient;
use postern_api::transport;
use postern_ca::store::Kind;
use postern_ca::{InitConfig, KekConfig, LedgerConfig, Lines, Sealer, ServeConfig, init_sealed, rewrap_store, start};
use rustls_pki_types::UnixTime;
use tonic::Code;

#[allow(clippy::all, clippy::pedantic, unreachable_pub, missing_docs, dead_code)]
mod kms {
    include!("../../ca/src/gen/v2.rs");
}

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PROGRAM: &str = env!("CARGO_BIN_EXE_postern-kms-pkcs11");
const PIN: &str = "pin-of-the-test-87654321";
const SEED: &[u8] = b"a seed of thirty-two bytes, more";
/// For a state to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory with tokens of its own.
struct Hsm {
    dir: tempfile::TempDir,
}

impl Hsm {
    /// With one token, `ca`; `None`: no SoftHSM here.
    fn new() -> Option<Self> {
        if !Path::new(MODULE).exists() {
            let why = format!("{MODULE} is not there: run e2e/install; PKCS#11 was NOT tried");
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
            eprintln!("SKIPPED: {why}");
            return None;
        }
        let hsm = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let conf = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\n",
            hsm.tokens().display()
        );
        std::fs::write(hsm.at("softhsm2.conf"), conf).unwrap();
        hsm.new_token(PIN);
        hsm.write_pin(PIN);
        Some(hsm)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tokens(&self) -> PathBuf {
        self.at("tokens")
    }

    fn run(&self, program: &str, args: &[&str]) -> Output {
        let run = Command::new(program)
            .env("SOFTHSM2_CONF", self.at("softhsm2.conf"))
            .args(args)
            .stdin(Stdio::null())
            .output();
        run.unwrap()
    }

    fn new_token(&self, pin: &str) {
        std::fs::create_dir_all(self.tokens()).unwrap();
        let of = [
            "--init-token",
            "--free",
            "--label",
            "ca",
            "--so-pin",
            "12345678",
            "--pin",
            pin,
        ];
        let made = self.run("softhsm2-util", &of);
        assert!(made.status.success(), "{made:?}");
    }

    fn write_pin(&self, pin: &str) {
        std::fs::write(self.at("pin"), format!("{pin}\n")).unwrap();
        std::fs::set_permissions(self.at("pin"), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn options(&self, module: &str) -> Vec<String> {
        let pin = self.at("pin");
        let options = [
            "--module",
            module,
            "--token-label",
            "ca",
            "--pin-file",
            pin.to_str().unwrap(),
        ];
        options.map(str::to_owned).to_vec()
    }

    fn make_key(&self, label: &str) -> Result<String, String> {
        let options = self.options(MODULE);
        let mut args: Vec<&str> = vec!["make-key", "--key-label", label];
        args.extend(options.iter().map(String::as_str));
        let made = self.run(PROGRAM, &args);
        match made.status.success() {
            true => Ok(String::from_utf8(made.stdout).unwrap().trim().to_owned()),
            false => Err(String::from_utf8(made.stderr).unwrap()),
        }
    }

    /// A token whose keys are somewhere else for a while.
    fn take_away(&self) {
        std::fs::rename(self.tokens(), self.at("away")).unwrap();
        std::fs::create_dir(self.tokens()).unwrap();
    }

    fn put_back(&self) {
        std::fs::remove_dir_all(self.tokens()).unwrap();
        std::fs::rename(self.at("away"), self.tokens()).unwrap();
    }

    fn serve(&self, key: &str, more: &[&str]) -> Plugin {
        self.serve_module(MODULE, key, more)
    }

    fn serve_module(&self, module: &str, key: &str, more: &[&str]) -> Plugin {
        let (socket, log) = (self.at("kms.sock"), self.at("log"));
        let stderr = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = Command::new(PROGRAM)
            .env("SOFTHSM2_CONF", self.at("softhsm2.conf"))
            .env("POSTERN_LOG", "trace")
            .args(["serve", "--key-label", key, "--socket"])
            .arg(&socket)
            .args(self.options(module))
            .args(more)
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        Plugin { child, socket, log }
    }
}

/// Ended with its test.
struct Plugin {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Plugin {
    async fn client(&self) -> KeyManagementServiceClient<tonic::transport::Channel> {
        let connected = async {
            loop {
                match transport::connect_unix(&self.socket).await {
                    Ok(channel) => return KeyManagementServiceClient::new(channel),
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, connected).await.expect("it listens")
    }

    async fn status(&self) -> kms::StatusResponse {
        let mut client = self.client().await;
        client.status(kms::StatusRequest {}).await.unwrap().into_inner()
    }

    /// Once it says this of itself.
    async fn says(&self, wanted: &str) -> kms::StatusResponse {
        let mut said = String::new();
        let asked = async {
            loop {
                let status = self.status().await;
                if status.healthz.contains(wanted) {
                    return status;
                }
                said = status.healthz;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(status) => status,
            Err(_) => panic!("never {wanted:?}, last: {said}"),
        }
    }

    async fn wrap(&self, seed: &[u8]) -> Result<kms::EncryptResponse, tonic::Status> {
        let request = kms::EncryptRequest {
            plaintext: seed.to_vec(),
            uid: "1".to_owned(),
        };
        Ok(self.client().await.encrypt(request).await?.into_inner())
    }

    async fn unwrap(&self, wrapped: &kms::EncryptResponse) -> Result<Vec<u8>, tonic::Status> {
        let request = kms::DecryptRequest {
            ciphertext: wrapped.ciphertext.clone(),
            uid: "2".to_owned(),
            key_id: wrapped.key_id.clone(),
            annotations: Default::default(),
        };
        Ok(self.client().await.decrypt(request).await?.into_inner().plaintext)
    }

    fn children(&self) -> Vec<String> {
        let pid = self.child.id();
        let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        // Its thread starts them.
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let mut children: Vec<String> = listed.split_whitespace().map(str::to_owned).collect();
        for task in tasks {
            let of = std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
            children.extend(of.split_whitespace().map(str::to_owned));
        }
        children.sort();
        children.dedup();
        children
    }
}

fn serve_config(dir: &Path, socket: &Path) -> ServeConfig {
    ServeConfig {
        store: dir.join("ca"),
        listen: ([127, 0, 0, 1], 0).into(),
        admin_socket: dir.join("admin.sock"),
        metrics_listen: ([127, 0, 0, 1], 0).into(),
        ready_file: None,
        svid_life: Duration::from_secs(3600),
        insecure_short_life: false,
        kek: Some(KekConfig::Kms(socket.to_owned())),
        migrate: false,
        ledger: LedgerConfig {
            lines: Lines::to(|_| Ok(())),
            ..LedgerConfig::default()
        },
        root_acknowledge: postern_ca::RootPace::ACKNOWLEDGE,
        root_retire: None,
        issuer_dir: None,
    }
}

/// A CA whose records are sealed under what this socket wraps.
async fn found(dir: &Path, socket: &Path) {
    let config = InitConfig {
        store: dir.join("ca"),
        trust_domain: "cluster.local".to_owned(),
        root_life: Duration::from_secs(10 * 365 * 24 * 3600),
        issuer_life: Duration::from_secs(30 * 24 * 3600),
    };
    let sealer = Sealer::unseal(&KekConfig::Kms(socket.to_owned())).await.unwrap();
    init_sealed(&config, sealer, UnixTime::now()).unwrap();
}

/// What `/readyz` says once it says this.
async fn readiness_with(address: std::net::SocketAddr, wanted: &'static str) -> String {
    let asked = tokio::task::spawn_blocking(move || {
        let given_up = std::time::Instant::now() + PATIENCE;
        loop {
            let mut text = String::new();
            if let Ok(mut stream) = std::net::TcpStream::connect(address) {
                let _ = stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: ca\r\nconnection: close\r\n\r\n");
                let _ = stream.read_to_string(&mut text);
            }
            if text.contains(wanted) {
                return text;
            }
            assert!(std::time::Instant::now() < given_up, "never {wanted:?}, last: {text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    asked.await.unwrap()
}

#[tokio::test]
async fn a_ca_is_sealed_under_a_key_that_never_leaves_its_token_and_follows_the_next() {
    let Some(hsm) = Hsm::new() else { return };
    let one = hsm.make_key("one").unwrap();
    assert!(one.starts_with("one#") && one.len() == 4 + 16, "{one}");
    assert!(
        hsm.make_key("one")
            .unwrap_err()
            .contains(&format!("a key {one} already"))
    );
    let plugin = hsm.serve("one", &[]);
    plugin.says("ok").await;
    let dir = tempfile::tempdir().unwrap();
    found(dir.path(), &plugin.socket).await;
    let store = dir.path().join("ca");
    let kek = KekConfig::Kms(plugin.socket.clone());
    let is_under = |key: &str| {
        let records =
            [Kind::Authority, Kind::Root].map(|kind| std::fs::read_to_string(store.join(kind.file())).unwrap());
        records
            .iter()
            .all(|text| text.contains(&format!("\"keyId\": \"{key}\"")))
    };
    assert!(is_under(&one));

    // A new key, and the plugin is told to wrap with it; the old one unwraps as long as the token has it.
    drop(plugin);
    let two = hsm.make_key("two").unwrap();
    let plugin = hsm.serve("two", &[]);
    plugin.says("ok").await;
    let running = start(serve_config(dir.path(), &plugin.socket), postern_ca::clock::system()).await;
    let running = running.unwrap();
    assert!(is_under(&two));
    running.stop().await;
    assert_eq!(rewrap_store(&store, Some(&kek), false).await.unwrap(), []);

    // A token with the same label and other keys: what is missing is named.
    drop(plugin);
    hsm.take_away();
    hsm.new_token(PIN);
    let three = hsm.make_key("three").unwrap();
    let plugin = hsm.serve("three", &[]);
    assert_eq!(plugin.says("ok").await.key_id, three);
    let error = rewrap_store(&store, Some(&kek), false).await.unwrap_err();
    let said: Vec<String> = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
        .map(ToString::to_string)
        .collect();
    let said = said.join(": ");
    assert!(
        said.contains(&format!("no AES key {two}")) && said.contains("Put it back"),
        "{said}"
    );
}

#[tokio::test]
async fn a_ca_whose_token_is_away_is_sealed_says_so_and_begins_once_it_is_back() {
    let Some(hsm) = Hsm::new() else { return };
    hsm.make_key("one").unwrap();
    let plugin = hsm.serve("one", &[]);
    plugin.says("ok").await;
    let dir = tempfile::tempdir().unwrap();
    found(dir.path(), &plugin.socket).await;
    hsm.take_away();
    // With the token goes the session that was open.
    plugin.says("has no token \"ca\"").await;

    let metrics = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let config = ServeConfig {
        metrics_listen: metrics,
        ..serve_config(dir.path(), &plugin.socket)
    };
    let watching = async {
        let sealed = readiness_with(metrics, "sealed").await;
        assert!(
            sealed.starts_with("HTTP/1.1 503") && sealed.contains("has no token") && sealed.contains("plug it in"),
            "{sealed}"
        );
        hsm.put_back();
    };
    let (running, ()) = tokio::join!(start(config, postern_ca::clock::system()), watching);
    let running = running.unwrap();
    readiness_with(metrics, "HTTP/1.1 200").await;
    // A CA that runs goes on without it, and needs neither plugin nor token.
    drop(plugin);
    readiness_with(metrics, "HTTP/1.1 200").await;
    running.stop().await;
}

#[tokio::test]
async fn what_was_wrapped_opens_and_nothing_that_was_changed_or_is_another_keys() {
    let Some(hsm) = Hsm::new() else { return };
    let (one, two) = (hsm.make_key("one").unwrap(), hsm.make_key("two").unwrap());
    let plugin = hsm.serve("one", &[]);
    let wrapped = plugin.wrap(SEED).await.unwrap();
    assert_eq!(wrapped.key_id, one);
    assert!(!wrapped.ciphertext.windows(SEED.len()).any(|window| window == SEED));
    assert_ne!(
        plugin.wrap(SEED).await.unwrap().ciphertext,
        wrapped.ciphertext,
        "a nonce of its own"
    );
    assert_eq!(plugin.unwrap(&wrapped).await.unwrap(), SEED);
    for at in [0, 11, 12, 43, wrapped.ciphertext.len() - 1] {
        let mut changed = wrapped.clone();
        changed.ciphertext[at] ^= 1;
        let refused = plugin.unwrap(&changed).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains("was changed"), "{at}: {refused:?}");
    }
    for (key_id, says) in [
        (two.as_str(), "was changed"),
        ("key-1", "another KMS plugin"),
        ("gone#01", "no AES key"),
    ] {
        let others = kms::EncryptResponse {
            key_id: key_id.to_owned(),
            ..wrapped.clone()
        };
        let refused = plugin.unwrap(&others).await.unwrap_err();
        assert!(refused.message().contains(says), "{refused:?}");
    }
    // Bounds, at them and one past: it wraps seeds.
    assert_eq!(
        plugin.unwrap(&plugin.wrap(&[7; 512]).await.unwrap()).await.unwrap(),
        [7; 512]
    );
    for bad in [&[][..], &[7; 513]] {
        assert_eq!(plugin.wrap(bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
    // After all that it is well.
    assert_eq!(plugin.status().await.healthz, "ok");
    assert_eq!(plugin.unwrap(&wrapped).await.unwrap(), SEED);
}

#[tokio::test]
async fn a_refused_pin_is_tried_once_and_again_when_its_file_changes() {
    let Some(hsm) = Hsm::new() else { return };
    hsm.take_away();
    hsm.new_token("another-pin-4712");
    let plugin = hsm.serve("one", &[]);
    let said = plugin.says("refuses the PIN").await.healthz;
    assert!(
        said.contains("not tried again") && said.contains(hsm.at("pin").to_str().unwrap()),
        "{said}"
    );
    // This token would take it: that it is still refused shows that nothing is tried.
    hsm.put_back();
    for _ in 0..3 {
        assert!(plugin.status().await.healthz.contains("refuses the PIN"));
    }
    assert!(plugin.children().is_empty(), "no session was even started");
    hsm.write_pin(PIN);
    plugin.says("no AES key one").await;
    hsm.make_key("one").unwrap();
    plugin.says("ok").await;
}

#[tokio::test]
async fn the_pin_is_read_from_a_file_that_only_its_owner_reads_and_is_nowhere_else() {
    let Some(hsm) = Hsm::new() else { return };
    hsm.make_key("one").unwrap();
    for mode in [0o640, 0o604, 0o660] {
        std::fs::set_permissions(hsm.at("pin"), std::fs::Permissions::from_mode(mode)).unwrap();
        let refused = hsm.make_key("two").unwrap_err();
        assert!(refused.contains("chmod 600"), "{mode:o}: {refused}");
    }
    std::fs::write(hsm.at("pin"), "\n").unwrap();
    std::fs::set_permissions(hsm.at("pin"), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(hsm.make_key("two").unwrap_err().contains("is empty"));
    std::fs::write(hsm.at("pin"), "7".repeat(1025)).unwrap();
    assert!(hsm.make_key("two").unwrap_err().contains("1025 bytes"));

    hsm.write_pin(PIN);
    let plugin = hsm.serve("one", &[]);
    plugin.says("ok").await;
    plugin.wrap(SEED).await.unwrap();
    let mut processes = plugin.children();
    assert_eq!(processes.len(), 1, "one session");
    processes.push(plugin.child.id().to_string());
    for process in processes {
        for file in ["cmdline", "environ"] {
            // (Those of a process that is not dumpable are root's alone.)
            let seen = std::fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
            let text = String::from_utf8_lossy(&seen);
            assert!(!text.contains(PIN), "{process} {file}");
        }
    }
    hsm.take_away();
    plugin.says("has no token").await;
    let log = std::fs::read_to_string(&plugin.log).unwrap();
    assert!(
        log.contains("\"level\":\"TRACE\""),
        "the log was as talkative as it gets"
    );
    let seed = String::from_utf8_lossy(SEED);
    assert!(!log.contains(PIN) && !log.contains(&*seed), "{log}");
}

#[tokio::test]
async fn a_key_that_is_short_or_not_the_only_one_of_its_label_is_refused_with_what_to_do() {
    let Some(hsm) = Hsm::new() else { return };
    let import = |bytes: &str, label: &str, id: &str| {
        std::fs::write(hsm.at("bytes"), bytes).unwrap();
        let bytes = hsm.at("bytes");
        let of = [
            "--import",
            bytes.to_str().unwrap(),
            "--aes",
            "--token",
            "ca",
            "--pin",
            PIN,
            "--label",
            label,
            "--id",
            id,
        ];
        let done = hsm.run("softhsm2-util", &of);
        assert!(done.status.success(), "{done:?}");
    };
    import("0123456789abcdef", "short", "A0");
    import("0123456789abcdef0123456789abcdef", "twice", "A1");
    import("fedcba9876543210fedcba9876543210", "twice", "A2");
    let plugin = hsm.serve("short", &[]);
    let said = plugin.says("128 bits").await.healthz;
    assert!(said.contains("short#a0") && said.contains("make-key"), "{said}");
    assert_eq!(plugin.wrap(SEED).await.unwrap_err().code(), Code::FailedPrecondition);
    drop(plugin);
    let plugin = hsm.serve("twice", &[]);
    let said = plugin.says("several keys").await.healthz;
    assert!(
        said.contains("twice#a1") && said.contains("twice#a2") && said.contains("--key-id"),
        "{said}"
    );
    drop(plugin);
    let plugin = hsm.serve("twice", &["--key-id", "a2"]);
    assert_eq!(plugin.says("ok").await.key_id, "twice#a2");
    let wrapped = plugin.wrap(SEED).await.unwrap();
    drop(plugin);
    let plugin = hsm.serve("twice", &["--key-id", "a1"]);
    assert_eq!(plugin.unwrap(&wrapped).await.unwrap(), SEED, "the other one unwraps");
    drop(plugin);
    let mut plugin = hsm.serve("twice", &["--key-id", "xyz"]);
    assert!(!plugin.child.wait().unwrap().success());
}

/// A module in C that does this when it is loaded.
fn module(dir: &Path, does: &str) -> String {
    let (source, made) = (dir.join("module.c"), dir.join("module.so"));
    let text = format!(
        "#include <stdlib.h>\n#include <unistd.h>\nlong C_GetFunctionList(void **list) {{ {does} return 5; }}\n"
    );
    std::fs::write(&source, text).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&made, &source])
        .status()
        .unwrap();
    assert!(built.success());
    made.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_module_that_hangs_crashes_or_is_none_is_said_and_the_plugin_lives() {
    let Some(hsm) = Hsm::new() else { return };
    let hangs = module(hsm.dir.path(), "for (;;) pause();");
    let plugin = hsm.serve_module(&hangs, "one", &[]);
    let began = std::time::Instant::now();
    let said = plugin.status().await.healthz;
    assert!(said.contains("not answered within 4s"), "{said}");
    // Who asks has given up by then, and would hear nothing. (Twice: the plugin asks once by itself as well.)
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    let sessions = plugin.children();
    assert_eq!(sessions.len(), 1, "one session, however often it is asked");
    drop(plugin);
    // A hung session does not outlive its plugin.
    let given_up = std::time::Instant::now() + PATIENCE;
    while Path::new(&format!("/proc/{}/fd", sessions[0])).exists() {
        assert!(std::time::Instant::now() < given_up, "{} is there", sessions[0]);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let crashes = module(hsm.dir.path(), "abort();");
    let mut plugin = hsm.serve_module(&crashes, "one", &[]);
    plugin.says("ended its process (signal: 6").await;
    assert!(plugin.child.try_wait().unwrap().is_none());
    drop(plugin);

    let plugin = hsm.serve_module(&module(hsm.dir.path(), ""), "one", &[]);
    plugin.says("cannot load the PKCS#11 module").await;
    drop(plugin);
    let plugin = hsm.serve_module("/nowhere/module.so", "one", &[]);
    let said = plugin
        .says("cannot load the PKCS#11 module /nowhere/module.so")
        .await
        .healthz;
    assert!(said.contains("--module"), "{said}");
}

#[tokio::test]
async fn a_killed_session_is_replaced_unseen_and_the_socket_is_ones_own() {
    let Some(hsm) = Hsm::new() else { return };
    hsm.make_key("one").unwrap();
    let mut plugin = hsm.serve("one", &[]);
    let wrapped = plugin.wrap(SEED).await.unwrap();
    let before = plugin.children();
    let killed = Command::new("kill").arg("-9").args(&before).status().unwrap();
    assert!(killed.success());
    // As an HSM that ended an idle session.
    assert_eq!(plugin.unwrap(&wrapped).await.unwrap(), SEED);
    assert_ne!(plugin.children(), before);
    let mode = std::fs::metadata(&plugin.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // A second one leaves it alone; one that is told to end takes it away.
    let mut second = hsm.serve("one", &[]);
    assert!(!second.child.wait().unwrap().success());
    assert_eq!(plugin.unwrap(&wrapped).await.unwrap(), SEED);
    let told = Command::new("kill")
        .arg(plugin.child.id().to_string())
        .status()
        .unwrap();
    assert!(told.success() && plugin.child.wait().unwrap().success());
    assert!(!plugin.socket.exists());
    // What a killed one leaves is no obstacle.
    let mut plugin = hsm.serve("one", &[]);
    plugin.says("ok").await;
    plugin.child.kill().unwrap();
    plugin.child.wait().unwrap();
    assert!(plugin.socket.exists());
    assert_eq!(hsm.serve("one", &[]).unwrap(&wrapped).await.unwrap(), SEED);
}
