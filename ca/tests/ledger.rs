//! What the CA has issued and refused, as an operator finds it, on good days and bad ones.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use postern_api::ca_client::{self, Issued};
use postern_ca::start;
use postern_identity::leaf;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::Value;
use world::program::{Serving, done, failed, initialised, path, postern_ca, serve, serve_by, text, token};
use world::{WEB, World, domain, shifted, trust_of};

mod world;

/// What `ledger list` tells.
fn listed(args: &[&str]) -> Vec<Value> {
    let all: Vec<&str> = ["ledger", "list", "--output", "json"]
        .iter()
        .chain(args)
        .copied()
        .collect();
    let lines = done(&all);
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of_event<'a>(records: &'a [Value], event: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["event"] == event).collect()
}

/// Exit code, and everything that was said.
fn verify(args: &[&str]) -> (i32, String) {
    let all: Vec<&str> = ["ledger", "verify"].iter().chain(args).copied().collect();
    let output = postern_ca(&all);
    let said = text(&output.stdout) + &text(&output.stderr);
    (output.status.code().unwrap(), said)
}

fn serial_of(issued: &Issued) -> String {
    let (_, cert) = x509_parser::parse_x509_certificate(&issued.svid.chain()[0]).unwrap();
    let serial = cert.raw_serial();
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    serial[zeros..].iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn issue(serving: &Serving, dir: &Path, instance: &str) -> Issued {
    let token = token(dir, instance);
    ca_client::first_issue(&serving.listen, &token, &domain())
        .await
        .unwrap()
}

#[tokio::test]
async fn every_issuance_and_refusal_is_in_the_ledger_while_the_ca_runs_and_after() {
    let dir = initialised();
    let mut serving = serve(dir.path(), "info");
    let (store, socket) = (path(dir.path(), "ca"), path(dir.path(), "admin.sock"));
    let used = token(dir.path(), "web-1");
    let first = ca_client::first_issue(&serving.listen, &used, &domain()).await.unwrap();
    let renewed = ca_client::renew(&serving.listen, &first.svid, &trust_of(&first.bundle))
        .await
        .unwrap();
    for _ in 0..3 {
        ca_client::first_issue(&serving.listen, &used, &domain())
            .await
            .unwrap_err();
    }
    let running = listed(&["--admin-socket", &socket]);
    let issued = of_event(&running, "issued");
    let of_web: Vec<&&Value> = issued.iter().filter(|record| record["identity"] == WEB).collect();
    assert_eq!(of_web.len(), 2, "{running:?}");
    assert_eq!(of_web[0]["serial"], serial_of(&first));
    assert_eq!(of_web[0]["evidence"], format!("token {}", used.id()));
    assert_eq!(of_web[0]["instance"], "web-1");
    assert_eq!(of_web[1]["serial"], serial_of(&renewed));
    assert_eq!(of_web[1]["evidence"], format!("certificate {}", serial_of(&first)));
    let read = leaf::inspect(&renewed.svid.chain()[0]).unwrap();
    let until = std::time::UNIX_EPOCH + Duration::from_secs(read.not_after.as_secs());
    assert_eq!(
        of_web[1]["not_after"],
        humantime::format_rfc3339_seconds(until).to_string()
    );
    // Its own certificate, too.
    assert!(issued.iter().any(|record| record["attestation"] == "self"));
    let refused = of_event(&running, "refused");
    assert_eq!(refused.len(), 1, "the others are counted: {refused:?}");
    assert_eq!(
        (&refused[0]["reason"], &refused[0]["count"]),
        (&"token_redeemed".into(), &1.into())
    );
    let (code, said) = verify(&["--admin-socket", &socket]);
    assert!(code == 0 && said.contains("order and content hold"), "{code}: {said}");
    // Another process does not look into what is being written.
    let (code, said) = verify(&[&store]);
    assert!(code == 2 && said.contains("--admin-socket"), "{code}: {said}");
    let of_web = listed(&["--admin-socket", &socket, "--identity", WEB]);
    assert_eq!(of_event(&of_web, "issued").len(), 2);
    assert_eq!(
        listed(&["--admin-socket", &socket, "--since", "2001-01-01T00:00:00Z"]).len(),
        running.len()
    );
    assert!(listed(&["--admin-socket", &socket, "--since", "2101-01-01T00:00:00Z"]).is_empty());

    serving.signal(Signal::TERM);
    assert!(serving.child.wait().unwrap().success());
    let stopped = listed(&[&store]);
    // The end of the interval told how many there were.
    let counts: Vec<&Value> = of_event(&stopped, "refused")
        .iter()
        .map(|record| &record["count"])
        .collect();
    assert_eq!(counts, [&Value::from(1), &Value::from(2)]);
    let (code, said) = verify(&[&store]);
    assert!(code == 0 && said.contains("order and content hold"), "{code}: {said}");
    let head = said.trim().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(verify(&[&store, "--head", &head]).0, 0);
    assert!(
        done(&["ledger", "list", &store]).contains(" issued     spiffe://cluster.local/ns/shop/sa/web web-1 serial ")
    );
    // What is written down of it in clear says nothing of whom.
    let log = serving.log();
    assert!(log.contains(&serial_of(&renewed)) && !log.contains("sa/web"), "{log}");

    // It goes on where it was.
    let serving = serve(dir.path(), "info");
    issue(&serving, dir.path(), "web-2").await;
    let again = listed(&["--admin-socket", &socket]);
    assert_eq!(again[..stopped.len()], stopped);
    assert!(again.len() > stopped.len());
}

#[tokio::test]
async fn many_jwt_svids_push_out_records_of_jwt_svids_and_of_nothing_else_and_all_that_is_left_verifies() {
    const MOST: u64 = 40;
    let world = World::with(|_, config| {
        (config.ledger.max_records, config.ledger.max_jwt_records) = (MOST, MOST);
    })
    .await;
    let web = world.first_issue(WEB, "web-1").await;
    for n in 0..4 * MOST {
        token_for(&world.address(), &web, &n.to_string()).await.unwrap();
    }
    let socket = world.config.admin_socket.to_str().unwrap().to_owned();
    // The program that asks would wait for this thread, which serves it.
    let blocking = |args: Vec<String>| async move {
        let ask = move || postern_ca(&args.iter().map(String::as_str).collect::<Vec<_>>());
        tokio::task::spawn_blocking(ask).await.unwrap()
    };
    let told = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let running = blocking(told(&["ledger", "verify", "--admin-socket", &socket])).await;
    assert!(running.status.success(), "{}", text(&running.stderr));
    assert_eq!(text(&running.stdout).matches("order and content hold").count(), 2);
    let metrics = world.metrics().await;
    assert!(!metrics.contains("postern_ca_ledger_jwt_head 0\n"), "{metrics}");
    let (dir, _, config) = world.stopped().await;
    let store = config.store.to_str().unwrap();
    let (code, said) = verify(&[store]);
    assert!(
        code == 0 && said.matches("order and content hold").count() == 2,
        "{code}: {said}"
    );
    let records = listed(&[store]);
    let of_web = |event: &str| {
        of_event(&records, event)
            .iter()
            .filter(|record| record["identity"] == WEB)
            .count()
    };
    assert_eq!(of_web("issued"), 1);
    let (kept, begun) = (of_web("issued_jwt"), of_event(&records, "begun").len());
    assert!((1..=MOST as usize).contains(&kept), "{kept} are left");
    assert_eq!(begun, 1, "of the ledger of certificates nothing was taken out");
    let newest = of_event(&records, "issued_jwt").last().unwrap()["audience"].clone();
    assert_eq!(newest, serde_json::json!([(4 * MOST - 1).to_string()]));
    // Each by itself, with its own key.
    let named = |file: &str| config.store.join(file).to_str().unwrap().to_owned();
    let kek = path(dir.path(), "ca.kek");
    let (both, each) = (
        [named("ledger.redb"), named("ledger-jwt.redb")],
        [named("ledger.json"), named("ledger-jwt.json")],
    );
    let (code, said) = verify(&[
        &both[0],
        &both[1],
        "--key-record",
        &each[0],
        "--key-record",
        &each[1],
        "--kek-file",
        &kek,
    ]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = verify(&[&both[1], "--key-record", &each[0], "--kek-file", &kek]);
    assert!(code == 2 && said.contains("it is sealed under key"), "{code}: {said}");
}

async fn token_for(address: &str, who: &Issued, audience: &str) -> Result<(), ca_client::CaError> {
    let (trust, audience) = (trust_of(&who.bundle), [audience.to_owned()]);
    ca_client::issue_jwt(address, &who.svid, &trust, &audience)
        .await
        .map(drop)
}

#[tokio::test]
async fn c_06_a_ca_that_is_killed_while_it_gives_jwt_svids_has_recorded_every_one_that_left() {
    let dir = initialised();
    let socket = path(dir.path(), "admin.sock");
    let mut left = BTreeSet::new();
    for round in 0..8_u64 {
        let mut serving = serve(dir.path(), "warn");
        let asking: Vec<_> = (0..3).map(|n| token(dir.path(), &format!("web-{round}-{n}"))).collect();
        let asking: Vec<_> = asking
            .into_iter()
            .enumerate()
            .map(|(caller, token)| {
                let listen = serving.listen.clone();
                tokio::spawn(async move {
                    let mut given = Vec::new();
                    let Ok(issued) = ca_client::first_issue(&listen, &token, &domain()).await else {
                        return given;
                    };
                    loop {
                        let audience = format!("{round}-{caller}-{}", given.len());
                        match token_for(&listen, &issued, &audience).await {
                            Ok(()) => given.push(audience),
                            Err(_) => return given,
                        }
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_micros(20_000 + round * 7_919 % 90_000)).await;
        serving.signal(Signal::KILL);
        serving.child.wait().unwrap();
        for asking in asking {
            left.extend(asking.await.unwrap());
        }
    }
    let _serving = serve(dir.path(), "info");
    let records = listed(&["--admin-socket", &socket]);
    let recorded: BTreeSet<String> = of_event(&records, "issued_jwt")
        .iter()
        .map(|record| record["audience"][0].as_str().unwrap().to_owned())
        .collect();
    let missing: Vec<_> = left.difference(&recorded).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(left.len() > 8, "{} tokens left", left.len());
    let (code, said) = verify(&["--admin-socket", &socket]);
    assert_eq!(code, 0, "{said}");
}

/// Kills at random moments while certificates are issued: none that left is missing, no serial comes twice, and the chain
/// is whole.
#[tokio::test]
async fn c_06_a_ca_that_is_killed_while_it_issues_has_recorded_every_certificate_that_left() {
    let dir = initialised();
    let mut left = BTreeSet::new();
    let socket = path(dir.path(), "admin.sock");
    for round in 0..12_u64 {
        let mut serving = serve(dir.path(), "warn");
        let tokens: Vec<_> = (0..6).map(|n| token(dir.path(), &format!("web-{round}-{n}"))).collect();
        let callers: Vec<_> = tokens
            .into_iter()
            .map(|token| {
                let listen = serving.listen.clone();
                tokio::spawn(async move {
                    let mut serials = Vec::new();
                    let Ok(mut issued) = ca_client::first_issue(&listen, &token, &domain()).await else {
                        return serials;
                    };
                    loop {
                        serials.push(serial_of(&issued));
                        let trust = trust_of(&issued.bundle);
                        match ca_client::renew(&listen, &issued.svid, &trust).await {
                            Ok(next) => issued = next,
                            Err(_) => return serials,
                        }
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_micros(5_000 + round * 7_919 % 90_000)).await;
        serving.signal(Signal::KILL);
        serving.child.wait().unwrap();
        for caller in callers {
            for serial in caller.await.unwrap() {
                assert!(left.insert(serial), "a serial was used twice");
            }
        }
    }
    let _serving = serve(dir.path(), "info");
    let records = listed(&["--admin-socket", &socket]);
    let recorded: Vec<String> = of_event(&records, "issued")
        .iter()
        .map(|record| record["serial"].as_str().unwrap().to_owned())
        .collect();
    let distinct: BTreeSet<String> = recorded.iter().cloned().collect();
    assert_eq!(distinct.len(), recorded.len(), "a serial was recorded twice");
    let missing: Vec<_> = left.difference(&distinct).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(left.len() > 12, "{} certificates left", left.len());
    let (code, said) = verify(&["--admin-socket", &socket]);
    assert_eq!(code, 0, "{said}");
}

fn refuses_to_start(dir: &Path, words: &[&str]) {
    let said = failed(&[
        "serve",
        "--store",
        &path(dir, "ca"),
        "--listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "127.0.0.1:0",
        "--admin-socket",
        &path(dir, "admin.sock"),
    ]);
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
}

/// A store whose CA has issued something and was stopped.
async fn used() -> tempfile::TempDir {
    let dir = initialised();
    let mut serving = serve(dir.path(), "warn");
    for n in 0..3 {
        issue(&serving, dir.path(), &format!("web-{n}")).await;
    }
    serving.signal(Signal::TERM);
    assert!(serving.child.wait().unwrap().success());
    dir
}

#[tokio::test]
async fn c_06_a_damaged_ledger_refuses_to_start_is_named_by_verify_and_the_remedy_works() {
    let dir = used().await;
    let store = dir.path().join("ca");
    let (ledger, key) = (store.join("ledger.redb"), store.join("ledger.json"));
    let held = (std::fs::read(&ledger).unwrap(), std::fs::read(&key).unwrap());
    let restore = || {
        std::fs::write(&ledger, &held.0).unwrap();
        std::fs::write(&key, &held.1).unwrap();
        std::os::unix::fs::PermissionsExt::set_mode(&mut std::fs::metadata(&key).unwrap().permissions(), 0o600);
    };
    let remedy = ["ledger.redb", "damaged", "move both away and start again"];
    let shown = store.to_str().unwrap();

    std::fs::write(&ledger, &held.0[..held.0.len() / 2]).unwrap();
    refuses_to_start(dir.path(), &remedy);
    assert_eq!(verify(&[shown]).0, 1);
    restore();

    // A bit of each page that is full of what is sealed; some of those are of no record any more.
    let full = |page: &[u8]| page.iter().collect::<BTreeSet<_>>().len() > 200;
    let pages = held.0.chunks(4096).enumerate().filter(|(_, page)| full(page));
    let broken = pages.map(|(at, _)| at * 4096 + 300).find_map(|at| {
        let mut flipped = held.0.clone();
        flipped[at] ^= 1;
        std::fs::write(&ledger, &flipped).unwrap();
        let (code, said) = verify(&[shown]);
        (code != 0).then_some((code, said))
    });
    let (code, said) = broken.unwrap();
    assert!(code == 1 && said.contains("first broken link"), "{code}: {said}");
    refuses_to_start(dir.path(), &remedy);
    restore();
    assert_eq!(verify(&[shown]).0, 0);

    // The one of JWT-SVIDs alike.
    let of_tokens = store.join("ledger-jwt.redb");
    let whole = std::fs::read(&of_tokens).unwrap();
    std::fs::write(&of_tokens, &whole[..whole.len() / 2]).unwrap();
    refuses_to_start(
        dir.path(),
        &[
            "ledger-jwt.redb",
            "damaged",
            "put ledger-jwt.json and ledger-jwt.redb back",
        ],
    );
    assert_eq!(verify(&[shown]).0, 1);
    std::fs::remove_file(&of_tokens).unwrap();
    let (code, said) = verify(&[shown]);
    assert!(code == 2 && said.contains("no ledger-jwt.redb"), "{code}: {said}");
    std::fs::write(&of_tokens, &whole).unwrap();
    std::fs::remove_file(store.join("ledger-jwt.json")).unwrap();
    refuses_to_start(
        dir.path(),
        &["ledger-jwt.json", "it is missing, and ledger-jwt.redb is there"],
    );
    std::fs::remove_file(&of_tokens).unwrap();
    // So does a store begin of a version that had none.
    assert_eq!(verify(&[shown]).0, 0);
    drop(serve(dir.path(), "warn"));
    assert!(of_tokens.exists() && verify(&[shown]).0 == 0);

    std::fs::remove_file(&ledger).unwrap();
    refuses_to_start(
        dir.path(),
        &["ledger.redb", "it is missing", "move both away and start again"],
    );
    restore();
    std::fs::remove_file(&key).unwrap();
    refuses_to_start(
        dir.path(),
        &["ledger.json", "it is missing", "move both away and start again"],
    );
    restore();

    // The remedy: a new chain, and what was whole of the old one can be read where it was put.
    let away = dir.path().join("away");
    std::fs::create_dir(&away).unwrap();
    std::fs::rename(&ledger, away.join("ledger.redb")).unwrap();
    std::fs::rename(&key, away.join("ledger.json")).unwrap();
    drop(serve(dir.path(), "warn"));
    let (old, old_key) = (path(&away, "ledger.redb"), path(&away, "ledger.json"));
    let kek = path(dir.path(), "ca.kek");
    let (code, said) = verify(&[&old, "--key-record", &old_key, "--kek-file", &kek]);
    assert!(code == 0 && said.contains("order and content hold"), "{code}: {said}");
    let (code, said) = verify(&[&old]);
    assert!(code == 2 && said.contains("--key-record"), "{code}: {said}");
    let (code, said) = verify(&[&old, "--order-only"]);
    assert!(code == 0 && said.contains("the order holds"), "{code}: {said}");
    let (code, said) = verify(&[&old, &path(dir.path(), "nowhere"), "--order-only"]);
    assert!(code == 2 && said.contains("nowhere"), "{code}: {said}");
}

#[tokio::test]
async fn c_06_an_older_ledger_in_its_place_is_noticed_and_a_noted_head_tells_of_a_whole_old_backup() {
    let dir = used().await;
    let (store, backup) = (dir.path().join("ca"), dir.path().join("backup"));
    std::fs::create_dir(&backup).unwrap();
    for entry in std::fs::read_dir(&store).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), backup.join(entry.file_name())).unwrap();
    }
    let mut serving = serve(dir.path(), "warn");
    issue(&serving, dir.path(), "web-9").await;
    serving.signal(Signal::TERM);
    serving.child.wait().unwrap();
    let (_, said) = verify(&[store.to_str().unwrap()]);
    let head = said.trim().rsplit(' ').next().unwrap().to_owned();

    std::fs::copy(backup.join("ledger.redb"), store.join("ledger.redb")).unwrap();
    refuses_to_start(
        dir.path(),
        &["ledger.redb", "an older one was put back", "move both away"],
    );
    // All of it from the backup: nothing in it can tell, and what was noted elsewhere does.
    for entry in std::fs::read_dir(&backup).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), store.join(entry.file_name())).unwrap();
    }
    assert_eq!(verify(&[store.to_str().unwrap()]).0, 0);
    let (code, said) = verify(&[store.to_str().unwrap(), "--head", &head]);
    assert!(
        code == 1 && said.contains("the newest ones are missing"),
        "{code}: {said}"
    );
    drop(serve(dir.path(), "warn"));
}

/// A process whose files cannot grow is one whose disk is full.
#[tokio::test]
async fn c_06_a_full_disk_refuses_what_cannot_be_recorded_costs_no_token_and_heals() {
    let dir = initialised();
    // Else the kernel ends it instead of telling it.
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        "trap '' XFSZ; exec \"$@\"",
        "sh",
        env!("CARGO_BIN_EXE_postern-ca"),
    ]);
    shell.stdout(Stdio::null());
    let serving = serve_by(shell, dir.path(), "info");
    let before = issue(&serving, dir.path(), "web-1").await;
    let waiting = token(dir.path(), "web-2");
    let pid = Pid::from_child(&serving.child);
    let limit = |most| {
        let wanted = Rlimit {
            current: most,
            maximum: None,
        };
        prlimit(Some(pid), Resource::Fsize, wanted).unwrap();
    };
    limit(Some(0));
    for _ in 0..3 {
        let error = ca_client::first_issue(&serving.listen, &waiting, &domain())
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "ledger");
        let error = ca_client::renew(&serving.listen, &before.svid, &trust_of(&before.bundle))
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "ledger");
    }
    let metrics = serving.get("/metrics");
    assert!(
        metrics.contains("postern_ca_refused_total{reason=\"ledger\"} 6"),
        "{metrics}"
    );
    assert!(
        !metrics.contains("postern_ca_ledger_write_failures_total 0"),
        "{metrics}"
    );
    limit(None);
    ca_client::first_issue(&serving.listen, &waiting, &domain())
        .await
        .unwrap();
    ca_client::renew(&serving.listen, &before.svid, &trust_of(&before.bundle))
        .await
        .unwrap();
    let socket = path(dir.path(), "admin.sock");
    let (code, said) = verify(&["--admin-socket", &socket]);
    assert_eq!(code, 0, "{said}");
    // What was refused meanwhile is recorded afterwards.
    let records = listed(&["--admin-socket", &socket]);
    assert!(
        of_event(&records, "refused")
            .iter()
            .any(|record| record["reason"] == "ledger")
    );
    assert_eq!(
        of_event(&records, "issued")
            .iter()
            .filter(|record| record["identity"] == WEB)
            .count(),
        3
    );
}

#[tokio::test]
async fn records_past_their_retention_go_and_the_rest_still_verifies() {
    let world = World::with(|_, config| config.ledger.retention = Duration::from_secs(3600)).await;
    world.first_issue(WEB, "web-old").await;
    let (dir, shift, config) = world.stopped().await;
    // Old ones are looked for when it starts, and each hour.
    shift.store(2 * 3600, std::sync::atomic::Ordering::SeqCst);
    let running = start(config.clone(), shifted(&shift)).await.unwrap();
    running.stop().await;
    let store = config.store;
    let shown = store.to_str().unwrap();
    let (code, said) = verify(&[shown]);
    assert!(code == 0 && !said.contains("records 1 to"), "{code}: {said}");
    let records = listed(&[shown]);
    assert_eq!(of_event(&records, "pruned").len(), 2, "of each ledger once");
    assert!(of_event(&records, "begun").is_empty());
    assert!(
        of_event(&records, "issued")
            .iter()
            .all(|record| record["identity"] != WEB)
    );
    drop(dir);
}

#[tokio::test]
async fn another_kek_seals_the_ledgers_key_anew_and_touches_no_record() {
    let dir = used().await;
    let (store, kek) = (path(dir.path(), "ca"), dir.path().join("ca.kek"));
    let records = std::fs::read(dir.path().join("ca/ledger.redb")).unwrap();
    let old = std::fs::read_to_string(&kek).unwrap();
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    let new = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    std::fs::write(&kek, format!("{new}\n{old}")).unwrap();
    assert!(done(&["rewrap", "--store", &store]).contains("ledger.json is sealed anew"));
    std::fs::write(&kek, format!("{new}\n")).unwrap();
    assert_eq!(std::fs::read(dir.path().join("ca/ledger.redb")).unwrap(), records);
    let (code, said) = verify(&[&store]);
    assert!(code == 0 && said.contains("order and content hold"), "{code}: {said}");
    std::fs::write(&kek, old).unwrap();
    assert_eq!(verify(&[&store]).0, 2);
}

#[tokio::test]
async fn of_many_that_race_for_one_token_one_certificate_is_not_withdrawn() {
    let dir = initialised();
    let serving = serve(dir.path(), "warn");
    let one = token(dir.path(), "web-1");
    let domain = domain();
    let racing = (0..8).map(|_| ca_client::first_issue(&serving.listen, &one, &domain));
    let outcomes: Vec<Result<Issued, _>> = futures_util::future::join_all(racing).await.into_iter().collect();
    let won: Vec<String> = outcomes.iter().flatten().map(serial_of).collect();
    assert_eq!(won.len(), 1);
    let records = listed(&["--admin-socket", &path(dir.path(), "admin.sock")]);
    let serials = |event: &str| -> BTreeSet<String> {
        let found = of_event(&records, event).into_iter();
        let of_web = found.filter(|record| record["attestation"] != "self");
        of_web
            .map(|record| record["serial"].as_str().unwrap().to_owned())
            .collect()
    };
    let (issued, withdrawn) = (serials("issued"), serials("withdrawn"));
    let kept: Vec<String> = issued.difference(&withdrawn).cloned().collect();
    assert_eq!(kept, won);
}
