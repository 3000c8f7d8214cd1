//! A look at a token's claims, before anybody is asked about it. Nothing in them is believed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::UnixTime;
use serde::Deserialize;

/// Clocks of API server and CA may differ by as much as certificates are backdated.
const LEEWAY_SECONDS: u64 = 60;

/// Any other claim is the API server's to judge.
#[derive(Deserialize)]
struct Claims {
    exp: u64,
}

/// Could this be a projected token that holds now? It is a signed JWT, has an expiry, and that is not over. (A legacy token
/// from a Secret has none.)
pub(super) fn may_hold(token: &str, now: UnixTime) -> bool {
    let mut parts = token.split('.');
    let (Some(head), Some(claims), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    if head.is_empty() || signature.is_empty() {
        return false;
    }
    let Ok(claims) = URL_SAFE_NO_PAD.decode(claims) else {
        return false;
    };
    serde_json::from_slice::<Claims>(&claims)
        .is_ok_and(|claims| now.as_secs() <= claims.exp.saturating_add(LEEWAY_SECONDS))
}
