//! What the black-box tests and the whole-proxy benches stand on: network namespaces, real processes, a mesh of them.
//!
//! ```text
//! lab      a bridge and pods: network namespaces with IPv4 and IPv6, made and removed here
//! process  a child process that is waited for by state, never by time, and that never outlives its guard
//! chart    the Helm chart, rendered
//! mesh     a CA, control and proxies of the built `postern` binary, run as pods run them
//! loopback the same without root: proxies in explicit capture
//! spire    SPIRE's server and agent, for a mesh whose identities are not ours
//! live     connections through it that go on for ever, and note when they end
//! ```
//!
//! What a test needs and the machine lacks (root, nginx, ...) is said loudly and skipped; under `CI=true` it fails.

pub mod chart;
pub mod lab;
pub mod live;
pub mod loopback;
pub mod mesh;
pub mod process;
pub mod spire;

use std::path::{Path, PathBuf};
use std::process::Command;

/// True if the test can run; otherwise it has said what is missing. Under `CI=true` a lack is a failure.
#[must_use]
pub fn requires(programs: &[&str], root: bool) -> bool {
    let mut missing: Vec<String> = programs
        .iter()
        .filter(|p| which(p).is_none())
        .map(|p| format!("`{p}`"))
        .collect();
    if root && !is_root() {
        missing.push("root (network namespaces)".to_owned());
    }
    nothing_of(&missing)
}

/// The same for what `e2e/install` puts into `target`.
#[must_use]
pub fn requires_installed(files: &[PathBuf]) -> bool {
    let missing = files.iter().filter(|file| !file.exists());
    let missing: Vec<String> = missing
        .map(|file| format!("{} (e2e/install)", file.display()))
        .collect();
    nothing_of(&missing)
}

fn nothing_of(missing: &[String]) -> bool {
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(", ");
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "CI must have {missing}"
    );
    // Straight to the terminal: the test harness would capture a print, and a skipped test must be heard.
    let _ = std::fs::write("/dev/tty", format!("SKIPPED here, runs in CI: needs {missing}\n"));
    eprintln!("SKIPPED here, runs in CI: needs {missing}");
    false
}

/// Where a program is: `e2e/install` and the cluster lab keep `helm` apart.
#[must_use]
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/e2e-bin");
    std::env::split_paths(&path)
        .chain([
            "/usr/sbin".into(),
            "/sbin".into(),
            built,
            home.join(".cache/k8slab/k8s/bin"),
        ])
        .map(|d| d.join(program))
        .find(|p| p.is_file())
}

fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|out| out.stdout == b"0\n")
}

/// The `postern` binary: `POSTERN_E2E_BINARY`, else that of the profile that this test was built with, built if need be.
///
/// # Panics
/// If it cannot be built.
#[must_use]
pub fn postern() -> PathBuf {
    if let Some(binary) = std::env::var_os("POSTERN_E2E_BINARY") {
        return binary.into();
    }
    let me = std::env::current_exe().expect("a running test knows its path");
    // target/<profile>/deps/<test>, or target/<profile>/<bin> for the benches.
    let profile_dir = me
        .ancestors()
        .find(|d| d.join("deps").is_dir())
        .expect("built by cargo")
        .to_path_buf();
    // By its folder's name: release, dist, or debug, which is dev's.
    let optimized = profile_dir.file_name().filter(|name| *name != "debug");
    static BUILT: std::sync::OnceLock<()> = std::sync::OnceLock::new();
    BUILT.get_or_init(|| {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "-q", "--bin", "postern"]);
        if let Some(profile) = optimized {
            cargo.args(["-p", "postern", "--profile"]).arg(profile);
        } else {
            // The features that `cargo test --workspace` has built: with those of `-p postern` alone, most of the tree
            // would be built once more. A test target brings the dev-dependencies' features in, and this one is small.
            cargo.args(["--workspace", "--test", "generated"]);
        }
        cargo.arg("--manifest-path").arg(manifest);
        cargo
            .arg("--target-dir")
            .arg(profile_dir.parent().expect("a profile directory has a parent"));
        assert!(
            cargo.status().is_ok_and(|status| status.success()),
            "`cargo build --bin postern` failed"
        );
    });
    profile_dir.join("postern")
}
