//! From a leaf to a root: webpki builds and checks the path, and what it does not look at is checked here on each path
//! that it finds (so that a bad path does not hide a good one).

use std::cell::Cell;

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use super::{Role, VerifyError};
use crate::authority;
use crate::bundle::{Anchor, TrustBundle};

/// A path that holds.
pub(super) struct Path {
    /// The earliest end of validity above the leaf.
    pub(super) not_after: UnixTime,
    /// SHA-256 of the root.
    pub(super) anchor: [u8; 32],
}

pub(super) fn find(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: Role,
    bundle: &TrustBundle,
    now: UnixTime,
) -> Result<Path, VerifyError> {
    let end_entity = EndEntityCert::try_from(leaf).map_err(VerifyError::Chain)?;
    let anchors: Vec<_> = bundle
        .anchors()
        .iter()
        .map(|anchor| anchor.trust_anchor.clone())
        .collect();
    let usage = match role {
        Role::Client => KeyUsage::client_auth(),
        Role::Server => KeyUsage::server_auth(),
    };
    let (found, refused) = (Cell::new(None), Cell::new(None));
    let judge = |path: &VerifiedPath<'_>| match check(path, bundle, now) {
        Ok(path) => {
            found.set(Some(path));
            Ok(())
        }
        Err(error) => {
            refused.set(Some(error));
            // Any error makes webpki look for another path; ours is what is reported.
            Err(webpki::Error::UnknownIssuer)
        }
    };
    let algorithms = crate::tls::provider().signature_verification_algorithms.all;
    let verdict = end_entity
        .verify_for_usage(algorithms, &anchors, intermediates, now, usage, None, Some(&judge))
        .map(|_| ());
    match (verdict, found.take()) {
        (Ok(()), Some(path)) => Ok(path),
        (Ok(()), None) => Err(VerifyError::Chain(webpki::Error::UnknownIssuer)),
        (Err(error), _) => Err(refused.take().unwrap_or_else(|| explain(error, bundle, now))),
    }
}

/// A root that was renewed with its key is in the bundle twice, and webpki's anchors do not tell the two apart: the path
/// holds if it holds under either.
fn check(path: &VerifiedPath<'_>, bundle: &TrustBundle, now: UnixTime) -> Result<Path, VerifyError> {
    let used = path.anchor();
    let same = bundle.anchors().iter().filter(|anchor| {
        anchor.trust_anchor.subject == used.subject
            && anchor.trust_anchor.subject_public_key_info == used.subject_public_key_info
    });
    let mut verdict = Err(VerifyError::RootWithdrawn);
    for anchor in same {
        verdict = check_under(anchor, path, now);
        if verdict.is_ok() {
            break;
        }
    }
    verdict
}

fn check_under(anchor: &Anchor, path: &VerifiedPath<'_>, now: UnixTime) -> Result<Path, VerifyError> {
    let (not_before, not_after) = (anchor.facts.not_before.as_secs(), anchor.facts.not_after.as_secs());
    let now_s = now.as_secs();
    if now < anchor.facts.not_before {
        return Err(VerifyError::NotYetValid {
            which: "root",
            not_before,
            now: now_s,
        });
    }
    if now > anchor.facts.not_after {
        return Err(VerifyError::Expired {
            which: "root",
            not_after,
            now: now_s,
        });
    }
    let mut earliest = anchor.facts.not_after;
    // From the leaf's issuer upwards: `below` intermediates stand between it and the leaf.
    let mut below = 0;
    for certificate in path.intermediate_certificates() {
        let facts = authority::inspect(&certificate.der()).map_err(|unfit| VerifyError::Authority(unfit.as_str()))?;
        if facts.path_len.is_some_and(|allowed| below > allowed) {
            return Err(VerifyError::PathLength);
        }
        earliest = earliest.min(facts.not_after);
        below += 1;
    }
    if anchor.facts.path_len.is_some_and(|allowed| below > allowed) {
        return Err(VerifyError::PathLength);
    }
    Ok(Path {
        not_after: earliest,
        anchor: anchor.sha256,
    })
}

fn explain(error: webpki::Error, bundle: &TrustBundle, now: UnixTime) -> VerifyError {
    use webpki::Error;
    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "webpki's enum is foreign and non-exhaustive"
    )]
    match error {
        Error::CertExpired { not_after, .. } => VerifyError::Expired {
            which: "certificate",
            not_after: not_after.as_secs(),
            now: now.as_secs(),
        },
        Error::CertNotValidYet { not_before, .. } => VerifyError::NotYetValid {
            which: "certificate",
            not_before: not_before.as_secs(),
            now: now.as_secs(),
        },
        Error::UnknownIssuer => VerifyError::UnknownIssuer(bundle.trust_domain().to_string()),
        Error::PathLenConstraintViolated => VerifyError::PathLength,
        Error::MaximumPathBuildCallsExceeded
        | Error::MaximumPathDepthExceeded
        | Error::MaximumSignatureChecksExceeded
        | Error::MaximumNameConstraintComparisonsExceeded => VerifyError::TooMuchWork,
        Error::EndEntityUsedAsCa => VerifyError::Authority(authority::Unfit::NotCa.as_str()),
        other => VerifyError::Chain(other),
    }
}
