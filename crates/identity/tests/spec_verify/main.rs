//! The SPIFFE checklist, rows 31 and 34 to 60 as far as they are a verifier's: leaves, paths, and handshakes. A hostile
//! CA whose root is trusted signs everything; each verdict is asked for in both directions and must be the same.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

#[path = "../mint/mod.rs"]
mod mint;

mod garbage;
mod handshake;
mod holds;
mod leaf;
mod path;
mod shake;

use mint::Signer;
use postern_identity::leaf::LeafError;
use postern_identity::verify::verify_peer;
use postern_identity::{Role, Trust, VerifiedPeer, VerifyError};
use rustls_pki_types::{CertificateDer, UnixTime};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

type Verdict = Result<VerifiedPeer, VerifyError>;

/// One verdict, the same for a client and a server.
fn judge_at(chain: &[CertificateDer<'_>], trust: &Trust, now: UnixTime) -> Verdict {
    let verdict = verify_peer(chain, Role::Client, trust, now);
    let other = verify_peer(chain, Role::Server, trust, now);
    assert_eq!(verdict, other, "{:02x?}", chain.first());
    verdict
}

fn judge(chain: &[CertificateDer<'_>], trust: &Trust) -> Verdict {
    judge_at(chain, trust, mint::now())
}

fn chain(certificates: &[&Signer]) -> Vec<CertificateDer<'static>> {
    certificates.iter().map(|signer| signer.der.clone()).collect()
}

/// A root, an issuer under it, and those who trust the root for `cluster.local`.
struct World {
    root: Signer,
    issuer: Signer,
    trust: Trust,
}

impl World {
    fn new() -> Self {
        let root = mint::root(&mint::authority("root", None));
        let issuer = root.sign(&mint::authority("issuer", Some(0)));
        let trust = mint::trust(&[("cluster.local", &[&root])]);
        Self { root, issuer, trust }
    }
    /// The verdict on a leaf of this form.
    fn judge(&self, form: &mint::Form) -> Verdict {
        judge(&chain(&[&self.issuer.sign(form), &self.issuer]), &self.trust)
    }
    /// Which leaf rule it breaks.
    fn leaf_error(&self, form: &mint::Form) -> LeafError {
        match self.judge(form) {
            Err(VerifyError::Leaf(error)) => error,
            other => panic!("{other:?}"),
        }
    }
}
