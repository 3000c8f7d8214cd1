//! `issuer request`, `import` and `check`: issuing certificates that are made elsewhere.

use std::path::{Path, PathBuf};

use postern_api::ca::v1 as pb;
use postern_identity::TrustDomain;

use super::{dial, said};
use crate::args::{CaOrStore, IssuerCommand};
use crate::brought_files::{IssuerDir, MAX_FILE};
use crate::clock::system;
use crate::error_chain;
use crate::serve::{import_issuer_into, request_issuer_from};

/// Runs one of them.
pub(crate) async fn run(command: IssuerCommand) -> Result<(), String> {
    match command {
        IssuerCommand::Request { ca, out } => request(ca, &out).await,
        IssuerCommand::Import { ca, file } => import(ca, &file).await,
        IssuerCommand::Check { dir, trust_domain } => check(dir, &trust_domain),
    }
}

async fn request(ca: CaOrStore, out: &Path) -> Result<(), String> {
    let csr = match ca.which() {
        Ok(socket) => {
            let asked = dial(&socket).await?.request_issuer(pb::RequestIssuerRequest {}).await;
            asked.map_err(said)?.into_inner().csr
        }
        Err((store, kek)) => request_issuer_from(&store, kek.as_ref(), system())
            .await
            .map_err(|error| error_chain(&error))?,
    };
    std::fs::write(out, csr).map_err(|error| format!("cannot write {}: {error}", out.display()))?;
    println!("{}", out.display());
    Ok(())
}

async fn import(ca: CaOrStore, file: &Path) -> Result<(), String> {
    let name = file.display().to_string();
    let length = std::fs::metadata(file)
        .map_err(|error| format!("cannot read {name}: {error}"))?
        .len();
    if length > MAX_FILE {
        return Err(format!(
            "{name} is longer than {MAX_FILE} bytes; it holds the issuer and what stands above it"
        ));
    }
    let pem = std::fs::read_to_string(file).map_err(|error| format!("cannot read {name}: {error}"))?;
    let done = match ca.which() {
        Ok(socket) => {
            let request = pb::ImportIssuerRequest { pem, name };
            let answer = dial(&socket)
                .await?
                .import_issuer(request)
                .await
                .map_err(said)?
                .into_inner();
            match &answer.rotation {
                Some(rotation) => super::root::line(rotation),
                None => format!("issuer {} signs", answer.issuer_epoch),
            }
        }
        Err((store, kek)) => import_issuer_into(&store, kek.as_ref(), (pem, name), system())
            .await
            .map_err(|error| error_chain(&error))?,
    };
    println!("{done}");
    Ok(())
}

fn check(dir: PathBuf, trust_domain: &str) -> Result<(), String> {
    let trust_domain = TrustDomain::parse(trust_domain).map_err(|error| error.to_string())?;
    let brought = IssuerDir::at(dir).look(&trust_domain, None, system()());
    let brought = brought.map_err(|error| error.to_string())?;
    println!(
        "{} would be taken, under the root {}",
        brought.subject(),
        brought.root_sha256()
    );
    Ok(())
}

/// One line of `status`.
pub(super) fn line(brought: &pb::BroughtIssuer) -> String {
    let state = match brought.state.as_str() {
        "" => "looked at by the replica that leads".to_owned(),
        "in_force" => "in force".to_owned(),
        state => format!("{state}: {}", brought.why),
    };
    format!("{} ({state})", brought.directory)
}

/// The same for programs.
pub(super) fn json(brought: &pb::BroughtIssuer) -> serde_json::Value {
    serde_json::json!({ "directory": brought.directory, "state": brought.state, "why": brought.why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_where_issuers_come_from_and_what_became_of_the_last() {
        let said = |state: &str, why: &str| {
            line(&pb::BroughtIssuer {
                directory: "/etc/postern/issuer".to_owned(),
                state: state.to_owned(),
                why: why.to_owned(),
            })
        };
        assert_eq!(said("in_force", ""), "/etc/postern/issuer (in force)");
        assert_eq!(
            said("refused", "tls.key: no"),
            "/etc/postern/issuer (refused: tls.key: no)"
        );
        assert_eq!(
            said("", ""),
            "/etc/postern/issuer (looked at by the replica that leads)"
        );
    }
}
