//! A disk that is full, and one that has become read-only, under a CA that runs: real ones, in a mount namespace of its own.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use postern_api::ca_client;
use rustix::process::Signal;
use world::program::{Serving, done, failed, initialised, path, postern_ca, serve, serve_by, text, token};
use world::{domain, trust_of};

mod world;

/// Of the disk that is filled: a store and its ledger take a part of it.
const DISK: &str = "size=8m,mode=0700";

fn requires_mounts() -> bool {
    let tried = Command::new("unshare").args(["--mount", "true"]).output();
    if tried.is_ok_and(|tried| tried.status.success()) {
        return true;
    }
    let why = "mounting needs root and util-linux; full and read-only disks were NOT tried";
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
    eprintln!("SKIPPED here, runs in CI: {why}");
    false
}

/// The CA in a mount namespace, after these commands of a shell (`$0` is its store). Mounts end with it.
fn serve_after(dir: &Path, commands: &str) -> Serving {
    let mut program = Command::new("unshare");
    let script = format!("{commands} && exec \"$@\"");
    program
        .args(["--mount", "--propagation", "private", "sh", "-ec", &script])
        .arg(dir.join("ca"))
        .arg(env!("CARGO_BIN_EXE_postern-ca"));
    serve_by(program, dir, "info")
}

/// In the CA's own mounts, with its store as the directory.
fn inside(serving: &Serving, dir: &Path, commands: &str) -> Output {
    let within = Command::new("nsenter")
        .args(["--mount", "--target", &serving.child.id().to_string(), "--"])
        .args(["sh", "-c", &format!("cd {} && {commands}", dir.join("ca").display())])
        .output();
    within.unwrap()
}

/// Each record as it lies there; the ledger may grow.
fn records(serving: &Serving, dir: &Path) -> String {
    let sums = inside(
        serving,
        dir,
        "ls *.json && sha256sum authority.json root.json jwt.json tokens.json",
    );
    assert!(sums.status.success(), "{}", text(&sums.stderr));
    text(&sums.stdout)
}

fn rotate(dir: &Path) -> Result<String, String> {
    let socket = path(dir, "admin.sock");
    let output = postern_ca(&["rotate", "--admin-socket", &socket]);
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

fn epoch(dir: &Path) -> u64 {
    let said = done(&["status", "--admin-socket", &path(dir, "admin.sock"), "--output", "json"]);
    let status: serde_json::Value = serde_json::from_str(&said).unwrap();
    status["issuer_epoch"].as_u64().unwrap()
}

fn whole(dir: &Path) {
    let verified = postern_ca(&["ledger", "verify", "--admin-socket", &path(dir, "admin.sock")]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
}

#[tokio::test]
async fn c_06_on_a_full_disk_nothing_is_half_issued_or_half_rotated_and_it_goes_on_once_there_is_room() {
    if !requires_mounts() {
        return;
    }
    let dir = initialised();
    let store = dir.path().join("ca");
    std::fs::rename(&store, dir.path().join("made")).unwrap();
    std::fs::create_dir(&store).unwrap();
    let mount = format!(
        "mount -t tmpfs -o {DISK} none \"$0\" && cp -a {}/. \"$0\"",
        dir.path().join("made").display()
    );
    let serving = serve_after(dir.path(), &mount);
    let before = ca_client::first_issue(&serving.listen, &token(dir.path(), "web-1"), &domain())
        .await
        .unwrap();
    let waiting = token(dir.path(), "web-2");

    // Full to the last page, and then with ever more room: what does not fit is refused whole.
    let filled = inside(&serving, dir.path(), "dd if=/dev/zero of=filler bs=4k");
    assert!(
        text(&filled.stderr).contains("No space left"),
        "{}",
        text(&filled.stderr)
    );
    let (mut refused, mut rotated) = (0, 0);
    for room in 0..24 {
        let held = records(&serving, dir.path());
        let signs = epoch(dir.path());
        match rotate(dir.path()) {
            Err(said) => {
                assert!(
                    said.contains("No space left on device") && said.contains(".json"),
                    "{said}"
                );
                assert_eq!(epoch(dir.path()), signs);
                // (Keys of JWT-SVIDs come first; without the authority's record nobody takes them for its own.)
                let authority = |text: &str| {
                    text.lines()
                        .find(|line| line.ends_with("authority.json"))
                        .unwrap()
                        .to_owned()
                };
                assert_eq!(
                    authority(&records(&serving, dir.path())),
                    authority(&held),
                    "{room} pages of room"
                );
                refused += 1;
            }
            Ok(said) => {
                assert_eq!(
                    (said.as_str(), epoch(dir.path())),
                    (&*format!("issuer {} signs\n", signs + 1), signs + 1)
                );
                rotated += 1;
            }
        }
        if room == 0 {
            let error = ca_client::first_issue(&serving.listen, &waiting, &domain())
                .await
                .unwrap_err();
            assert!(
                ["ledger", "store"].contains(&error.reason()),
                "{}: {error}",
                error.reason()
            );
        }
        if rotated == 3 {
            break;
        }
        let freed = inside(&serving, dir.path(), "truncate -s -4096 filler");
        assert!(freed.status.success());
    }
    assert!(refused > 0 && rotated == 3, "{refused} refused, {rotated} rotated");

    assert!(inside(&serving, dir.path(), "rm filler").status.success());
    // The token that was refused is still one.
    let after = ca_client::first_issue(&serving.listen, &waiting, &domain())
        .await
        .unwrap();
    assert_eq!(after.issuer_epoch, epoch(dir.path()));
    ca_client::renew(&serving.listen, &before.svid, &trust_of(&before.bundle))
        .await
        .unwrap();
    rotate(dir.path()).unwrap();
    whole(dir.path());
    // And it starts from what is there.
    let copied = inside(
        &serving,
        dir.path(),
        &format!("cp -a . {}", dir.path().join("copy").display()),
    );
    assert!(copied.status.success());
    let signs = epoch(dir.path());
    drop(serving);
    std::fs::remove_dir(&store).unwrap();
    std::fs::rename(dir.path().join("copy"), &store).unwrap();
    let _serving = serve(dir.path(), "info");
    assert_eq!(epoch(dir.path()), signs);
    whole(dir.path());
}

#[tokio::test]
async fn c_06_on_a_read_only_disk_it_refuses_with_the_reason_changes_nothing_and_goes_on_once_it_can_write() {
    if !requires_mounts() {
        return;
    }
    let dir = initialised();
    let mut serving = serve_after(dir.path(), "true");
    let before = ca_client::first_issue(&serving.listen, &token(dir.path(), "web-1"), &domain())
        .await
        .unwrap();
    let waiting = token(dir.path(), "web-2");
    let held = records(&serving, dir.path());
    // Over its store, so that what is opened anew is read-only. (The ledger is open, and can still be written.)
    let mounted = inside(
        &serving,
        dir.path(),
        "mount --bind . . && mount -o remount,bind,ro \"$PWD\"",
    );
    assert!(mounted.status.success(), "{}", text(&mounted.stderr));
    for _ in 0..2 {
        let said = rotate(dir.path()).unwrap_err();
        assert!(
            said.contains("Read-only file system") && said.contains(".json"),
            "{said}"
        );
        let error = ca_client::first_issue(&serving.listen, &waiting, &domain())
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "store", "{error}");
        assert!(
            !error.to_string().contains(".json"),
            "a stranger is told no paths: {error}"
        );
        let said = failed(&[
            "token",
            "create",
            "--admin-socket",
            &path(dir.path(), "admin.sock"),
            "--id",
            world::WEB,
            "--instance",
            "web-3",
        ]);
        assert!(said.contains("Read-only file system"), "{said}");
    }
    assert_eq!((records(&serving, dir.path()), epoch(dir.path())), (held, 1));
    assert!(serving.get("/readyz").starts_with("HTTP/1.1 200"), "it still renews");
    ca_client::renew(&serving.listen, &before.svid, &trust_of(&before.bundle))
        .await
        .unwrap();

    // A mount that is in use is taken away as soon as it is not.
    let unmounted = inside(&serving, dir.path(), "umount -l \"$PWD\"");
    assert!(unmounted.status.success(), "{}", text(&unmounted.stderr));
    ca_client::first_issue(&serving.listen, &waiting, &domain())
        .await
        .unwrap();
    assert_eq!(rotate(dir.path()).unwrap(), "issuer 2 signs\n");
    whole(dir.path());
    serving.signal(Signal::TERM);
    assert!(serving.child.wait().unwrap().success());

    // One that is read-only from the start says so, and which file.
    let store = path(dir.path(), "ca");
    let started = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec"])
        .arg("mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"")
        .arg(&store)
        .arg(env!("CARGO_BIN_EXE_postern-ca"))
        .args([
            "serve",
            "--store",
            &store,
            "--listen",
            "127.0.0.1:0",
            "--metrics-listen",
            "127.0.0.1:0",
        ])
        .args(["--admin-socket", &path(dir.path(), "admin.sock")])
        .output()
        .unwrap();
    let said = text(&started.stderr);
    assert!(
        !started.status.success() && said.contains("Read-only file system") && said.contains(&store),
        "{said}"
    );
    let _serving = serve(dir.path(), "info");
    assert_eq!(epoch(dir.path()), 2);
}
