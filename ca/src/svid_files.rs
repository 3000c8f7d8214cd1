//! `svid`: an SVID as PEM files, so that a program without a proxy (curl, Envoy, a database) can be a peer of the mesh.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use postern_api::ca_client::{self, JoinToken, KubernetesToken, RootPins};
use postern_identity::TrustDomain;
use zeroize::Zeroizing;

use crate::args::SvidArgs;
use crate::clock::shown;
use crate::pem;

/// What is shown to the CA.
enum Evidence {
    Join(JoinToken),
    Pod(KubernetesToken, RootPins),
}

impl Evidence {
    fn read(args: &SvidArgs) -> Result<Self, String> {
        let text = |path: &Path| {
            let text = fs::read_to_string(path).map(Zeroizing::new);
            text.map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        if let (Some(token), Some(pins)) = (&args.kubernetes_token_file, &args.roots_sha256_file) {
            let read = KubernetesToken::read(token);
            let token = read.map_err(|error| format!("cannot read {}: {error}", token.display()))?;
            let read = RootPins::parse(&text(pins)?);
            return Ok(Self::Pod(
                token,
                read.map_err(|error| format!("{}: {error}", pins.display()))?,
            ));
        }
        let file = args.join_token_file.as_ref().ok_or("--join-token-file is missing")?;
        let token = JoinToken::parse(&text(file)?).map_err(|error| crate::error_chain(&error))?;
        Ok(Self::Join(token))
    }
}

/// Shows the token to the CA and writes `svid.pem`, `key.pem` and `bundle.pem`; prints who one is and until when.
pub(crate) async fn write(args: SvidArgs) -> Result<(), String> {
    let said = |error: &dyn std::error::Error| crate::error_chain(error);
    let trust_domain = TrustDomain::parse(&args.trust_domain).map_err(|error| said(&error))?;
    let evidence = Evidence::read(&args)?;
    // Before the token is used up: a directory that cannot be written costs none.
    fs::create_dir_all(&args.out).map_err(|error| format!("cannot create {}: {error}", args.out.display()))?;
    let (issued, key) = match &evidence {
        Evidence::Join(token) => ca_client::first_issue_with_key(&args.ca, token, &trust_domain).await,
        Evidence::Pod(token, pins) => {
            ca_client::issue_by_kubernetes_token_with_key(&args.ca, token, pins, &trust_domain).await
        }
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Alone {
        #[command(flatten)]
        args: SvidArgs,
    }

    fn args(evidence: &[&str]) -> Result<SvidArgs, clap::Error> {
        let line = ["svid", "--ca", "ca:15012", "--out", "/nowhere"].iter().chain(evidence);
        Alone::try_parse_from(line).map(|alone| alone.args)
    }

    #[test]
    fn there_is_exactly_one_kind_of_evidence_and_a_pods_is_whole() {
        for bad in [
            &[][..],
            &["--kubernetes-token-file", "t"],
            &["--roots-sha256-file", "r", "--join-token-file", "j"],
            &[
                "--kubernetes-token-file",
                "t",
                "--roots-sha256-file",
                "r",
                "--join-token-file",
                "j",
            ],
        ] {
            assert!(args(bad).is_err(), "{bad:?}");
        }
        args(&["--join-token-file", "j"]).unwrap();

        let directory = tempfile::tempdir().unwrap();
        let [token, roots] = ["token", "roots"].map(|name| directory.path().join(name));
        let [token_text, roots_text] = [&token, &roots].map(|path| path.to_str().unwrap().to_owned());
        let read = || {
            let args = args(&[
                "--kubernetes-token-file",
                &token_text,
                "--roots-sha256-file",
                &roots_text,
            ])
            .unwrap();
            Evidence::read(&args)
        };
        let refused = |evidence: Result<Evidence, String>| evidence.err().unwrap();
        assert!(refused(read()).contains(&token_text));
        fs::write(&token, "head.claims.signature\n").unwrap();
        assert!(refused(read()).contains(&roots_text));
        fs::write(&roots, "not a sum").unwrap();
        assert!(refused(read()).contains(&roots_text));
        fs::write(&roots, "0a".repeat(32)).unwrap();
        assert!(matches!(read(), Ok(Evidence::Pod(..))));
    }
}
