//! Which program is measured: the thin `postern-proxy`, as a pod runs it, and `postern` for everything beside it. The lab
//! starts one program as each component, so a script of two lines stands in its place.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// What the lab starts (see `postern_e2e::postern`).
const BINARY: &str = "POSTERN_E2E_BINARY";

/// Builds what is measured, and runs this benchmark again with it. `None`: the caller has chosen a program itself.
pub(crate) fn again_with_thin_proxy() -> Option<std::io::Result<ExitStatus>> {
    if std::env::var_os(BINARY).is_some() {
        return None;
    }
    Some(build().and_then(|script| {
        let arguments = std::env::args_os().skip(1);
        let status = Command::new(std::env::current_exe()?)
            .args(arguments)
            .env(BINARY, &script)
            .status();
        // A leftover of a few bytes does no harm.
        let _ = std::fs::remove_file(&script);
        status
    }))
}

fn build() -> std::io::Result<PathBuf> {
    let me = std::env::current_exe()?;
    let profile = me.parent().unwrap_or(Path::new("."));
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "-q", "-p", "postern", "-p", "postern-proxy", "--manifest-path"]);
    cargo.arg(manifest);
    cargo.arg("--target-dir").arg(profile.parent().unwrap_or(profile));
    // By its folder's name: release, dist, or debug, which is dev's.
    if let Some(name) = profile.file_name().filter(|name| *name != "debug") {
        cargo.arg("--profile").arg(name);
    }
    if !cargo.status()?.success() {
        return Err(std::io::Error::other("`cargo build` failed"));
    }
    let script = std::env::temp_dir().join(format!("postern-pair-{}", std::process::id()));
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = proxy ]; then shift; exec '{0}/postern-proxy' \"$@\"; fi\nexec '{0}/postern' \"$@\"\n",
        profile.display()
    );
    std::fs::write(&script, text)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(script)
}
