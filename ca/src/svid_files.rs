//! `svid`: an SVID as PEM files, so that a program without a proxy (curl, Envoy, a database) can be a peer of the mesh.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use postern_api::ca_client::{self, JoinToken};
use postern_identity::TrustDomain;
use zeroize::Zeroizing;

use crate::args::SvidArgs;
use crate::clock::shown;
use crate::pem;

/// Redeems the token and writes `svid.pem`, `key.pem` and `bundle.pem`; prints who one is and until when.
pub(crate) async fn write(args: SvidArgs) -> Result<(), String> {
    let said = |error: &dyn std::error::Error| crate::error_chain(error);
    let trust_domain = TrustDomain::parse(&args.trust_domain).map_err(|error| said(&error))?;
    let text = fs::read_to_string(&args.join_token_file)
        .map(Zeroizing::new)
        .map_err(|error| format!("cannot read {}: {error}", args.join_token_file.display()))?;
    let token = JoinToken::parse(&text).map_err(|error| said(&error))?;
    // Before the token is used up: a directory that cannot be written costs none.
    fs::create_dir_all(&args.out).map_err(|error| format!("cannot create {}: {error}", args.out.display()))?;
    let (issued, key) = ca_client::first_issue_with_key(&args.ca, &token, &trust_domain)
        .await
        .map_err(|error| said(&error))?;
    let certificates = |ders: &[rustls_pki_types::CertificateDer<'_>]| -> String {
        ders.iter()
            .map(|der| pem::encode("CERTIFICATE", der).to_string())
            .collect()
    };
    put(&args.out.join("key.pem"), &pem::encode("PRIVATE KEY", &key), 0o600)?;
    put(&args.out.join("svid.pem"), &certificates(issued.svid.chain()), 0o644)?;
    put(
        &args.out.join("bundle.pem"),
        &certificates(issued.bundle.roots()),
        0o644,
    )?;
    println!("{} until {}", issued.svid.id(), shown(issued.svid.not_after()));
    Ok(())
}

/// Replaces a file; a reader sees the old one or the new one.
fn put(path: &Path, text: &str, mode: u32) -> Result<(), String> {
    let temporary = path.with_extension("pem.tmp");
    let write = || {
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| format!("cannot write {}: {error}", path.display()))
}
