//! What our CA issues, judged by verifiers that are not ours: OpenSSL and Go's crypto/tls.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use world::WEB;
use world::program::{done, initialised, path, serve, svid, text};

mod world;

const GO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/e2e-bin/tls-peer");
const CA: &str = "spiffe://cluster.local/ns/postern-system/sa/postern-ca";

/// What a program needs is there; else it is said loudly, and fails in CI.
fn requires(there: bool, what: &str) -> bool {
    if !there {
        let why = format!("{what} is not there: run e2e/install; what our CA issues was NOT shown to it");
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
        eprintln!("SKIPPED here, runs in CI: {why}");
    }
    there
}

fn openssl(args: &[&str]) -> Output {
    Command::new("openssl").args(args).output().unwrap()
}

/// Under this bundle, for both uses, by its strictest rules.
fn verified(svid: &str, bundle: &str) -> Vec<Output> {
    let (leaf, roots) = (format!("{svid}/svid.pem"), format!("{bundle}/bundle.pem"));
    let verify = |purpose: &str| {
        openssl(&[
            "verify",
            "-x509_strict",
            "-check_ss_sig",
            "-no-CApath",
            "-no-CAstore",
            "-CAfile",
            &roots,
            "-untrusted",
            &leaf,
            "-purpose",
            purpose,
            &leaf,
        ])
    };
    ["sslclient", "sslserver"].map(verify).to_vec()
}

#[test]
fn openssl_verifies_our_chains_before_and_after_a_rotation_and_no_other_cas() {
    if !requires(Command::new("openssl").arg("version").output().is_ok(), "openssl") {
        return;
    }
    let (dir, other) = (initialised(), initialised());
    let (serving, others) = (serve(dir.path(), "info"), serve(other.path(), "info"));
    let before = svid(&serving, dir.path(), "web-1");
    done(&["rotate", "--admin-socket", &path(dir.path(), "admin.sock")]);
    let after = svid(&serving, dir.path(), "web-2");
    let foreign = svid(&others, other.path(), "web-3");
    for (svid, bundle) in [
        (&before, &before),
        (&after, &after),
        (&before, &after),
        (&after, &before),
    ] {
        for output in verified(svid, bundle) {
            assert!(output.status.success(), "{svid}: {}", text(&output.stderr));
        }
    }
    for (svid, bundle) in [(&before, &foreign), (&foreign, &after)] {
        for output in verified(svid, bundle) {
            assert!(!output.status.success(), "{svid} under {bundle}");
        }
    }
    // It reads the same in it.
    let shown = openssl(&[
        "x509",
        "-in",
        &format!("{after}/svid.pem"),
        "-noout",
        "-ext",
        "subjectAltName,basicConstraints,keyUsage,extendedKeyUsage",
        "-subject",
    ]);
    let shown = text(&shown.stdout);
    for line in [
        &*format!("URI:{WEB}"),
        "X509v3 Subject Alternative Name: critical",
        "CA:FALSE",
        "Digital Signature",
        "TLS Web Server Authentication, TLS Web Client Authentication",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    // And the CA's own, on its port.
    let said = Command::new("sh")
        .args(["-c", "timeout 20 openssl s_client -connect \"$0\" -CAfile \"$1/bundle.pem\" -verify_return_error -tls1_3 -alpn h2 </dev/null"])
        .args([&serving.listen, &after])
        .output()
        .unwrap();
    let said = text(&said.stdout);
    assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
}

#[test]
fn go_verifies_our_chains_and_speaks_mutual_tls_with_them_and_with_the_ca() {
    if !requires(Path::new(GO).exists(), GO) {
        return;
    }
    let (dir, other) = (initialised(), initialised());
    let (serving, others) = (serve(dir.path(), "info"), serve(other.path(), "info"));
    let before = svid(&serving, dir.path(), "web-1");
    done(&["rotate", "--admin-socket", &path(dir.path(), "admin.sock")]);
    let after = svid(&serving, dir.path(), "web-2");
    let go = |dir: &str, listen: &str| Command::new(GO).args([dir, listen, CA]).output().unwrap();
    for svid in [&before, &after] {
        let output = go(svid, &serving.listen);
        let said = text(&output.stdout);
        assert!(output.status.success(), "{said}{}", text(&output.stderr));
        assert_eq!(
            said,
            format!("verified {WEB}\nmutual TLS with itself\nmutual TLS with the CA, TLS 1.3, h2\n")
        );
    }
    // Another CA's port shows another chain, and another CA's SVID is none under our bundle.
    let output = go(&after, &others.listen);
    assert!(
        !output.status.success() && text(&output.stderr).contains("unknown authority"),
        "{output:?}"
    );
    let foreign = svid(&others, other.path(), "web-3");
    std::fs::copy(format!("{after}/bundle.pem"), format!("{foreign}/bundle.pem")).unwrap();
    let output = go(&foreign, &serving.listen);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
}
