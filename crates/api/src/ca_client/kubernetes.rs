//! Evidence of a pod: its service-account token, and the roots that the injector pinned.

use std::fmt;

use postern_identity::{SharedTrust, TrustBundle, TrustDomain};
use tonic::transport::Channel;
use zeroize::Zeroizing;

use super::{CaError, Issued, Request, by_pinned_root, by_trust, marked};
use crate::ca::v1 as pb;

/// Old and new root, and room.
const MAX_PINS: usize = 16;

/// By the pod's service-account token, at first issue and at each renewal. As long as `trust` holds no bundle of the
/// trust domain, the CA is believed by `pins`, one after the other.
pub async fn issue_by_kubernetes_token(
    address: &str,
    token: &KubernetesToken,
    pins: &RootPins,
    trust: &SharedTrust,
    trust_domain: &TrustDomain,
) -> Result<Issued, CaError> {
    by_token(address, token, pins, trust, trust_domain, false)
        .await
        .map(|(issued, _)| issued)
}

/// An SVID for the app beside a proxy, of the same pod; with the private key (PKCS#8, DER) beside it. See [`super::issue_for_app`].
pub async fn issue_for_app_by_kubernetes_token(
    address: &str,
    token: &KubernetesToken,
    pins: &RootPins,
    trust: &SharedTrust,
    trust_domain: &TrustDomain,
) -> Result<(Issued, Zeroizing<Vec<u8>>), CaError> {
    by_token(address, token, pins, trust, trust_domain, true)
        .await
        .and_then(marked)
}

async fn by_token(
    address: &str,
    token: &KubernetesToken,
    pins: &RootPins,
    trust: &SharedTrust,
    trust_domain: &TrustDomain,
    for_app: bool,
) -> Result<(Issued, Zeroizing<Vec<u8>>), CaError> {
    let known = trust.load().bundles.get(trust_domain.as_str()).is_some();
    let (channel, held) = if known {
        by_trust(address, trust, trust_domain.as_str()).await?
    } else {
        by_any_pin(address, pins, trust_domain).await?
    };
    let attestation = pb::issue_request::Attestation::KubernetesToken(token.expose().to_owned());
    let mut request = Request::new(attestation, &held)?.holding_quarantine_of(trust);
    request.body.for_app = for_app;
    request.send(channel, &held).await
}

/// By the token, from a CA that is known by `pins` alone, with the private key (PKCS#8, DER) beside it: for writing files that
/// a foreign program reads.
pub async fn issue_by_kubernetes_token_with_key(
    address: &str,
    token: &KubernetesToken,
    pins: &RootPins,
    trust_domain: &TrustDomain,
) -> Result<(Issued, Zeroizing<Vec<u8>>), CaError> {
    let (channel, first) = by_any_pin(address, pins, trust_domain).await?;
    let attestation = pb::issue_request::Attestation::KubernetesToken(token.expose().to_owned());
    Request::new(attestation, &first)?.send(channel, &first).await
}

async fn by_any_pin(
    address: &str,
    pins: &RootPins,
    trust_domain: &TrustDomain,
) -> Result<(Channel, TrustBundle), CaError> {
    let mut last = CaError::Local("no root is pinned".to_owned());
    for pin in &pins.0 {
        match by_pinned_root(address, *pin, trust_domain).await {
            Err(error @ CaError::Untrusted(_)) => last = error,
            done => return done,
        }
    }
    Err(last)
}

/// SHA-256 of each root that a CA may show to somebody who knows no bundle yet; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootPins(Vec<[u8; 32]>);

/// No list of roots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected SHA-256 sums of roots, 64 hexadecimal digits each, parted by commas: {0}")]
pub struct RootPinsError(String);

impl RootPins {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = [u8; 32]> {
        self.0.iter().copied()
    }
    /// As the CA writes them into its ConfigMap: hexadecimal, parted by commas.
    pub fn parse(text: &str) -> Result<Self, RootPinsError> {
        let pins: Vec<[u8; 32]> = text.trim().split(',').map(pin).collect::<Result<_, _>>()?;
        if pins.len() > MAX_PINS {
            return Err(RootPinsError(format!(
                "{} of them, at most {MAX_PINS} are read",
                pins.len()
            )));
        }
        Ok(Self(pins))
    }
}

impl std::str::FromStr for RootPins {
    type Err = RootPinsError;
    fn from_str(text: &str) -> Result<Self, RootPinsError> {
        Self::parse(text)
    }
}

fn pin(text: &str) -> Result<[u8; 32], RootPinsError> {
    let bad = || RootPinsError(format!("`{text}` is none"));
    let mut sum = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(bad());
    }
    for (byte, digits) in sum.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
    }
    Ok(sum)
}

/// A pod's service-account token. Debug shows nothing of it.
#[derive(Clone)]
pub struct KubernetesToken(Zeroizing<String>);

/// Not a service-account token. The text is not repeated: it may be most of one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KubernetesTokenError(&'static str);

impl KubernetesToken {
    /// The most that is read of a file: a token has a bit over 1 KiB.
    pub const MAX_LEN: usize = 16 * 1024;

    /// Takes a token as the kubelet writes it; white space around it is dropped.
    pub fn parse(text: &str) -> Result<Self, KubernetesTokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(KubernetesTokenError("the service-account token is empty"));
        }
        if text.len() > Self::MAX_LEN {
            return Err(KubernetesTokenError("the service-account token is longer than 16 KiB"));
        }
        // Header, claims and signature in base64url.
        let of_a_token = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'=');
        if !text.bytes().all(of_a_token) {
            return Err(KubernetesTokenError("what is there is no service-account token"));
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
    /// Reads the file that the kubelet keeps fresh.
    pub fn read(path: &std::path::Path) -> std::io::Result<Self> {
        use std::io::Read as _;
        let mut text = Zeroizing::new(String::new());
        let most = u64::try_from(Self::MAX_LEN).unwrap_or(u64::MAX).saturating_add(1);
        std::fs::File::open(path)?.take(most).read_to_string(&mut text)?;
        Self::parse(&text).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
    }
    /// The token. Secret.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KubernetesToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KubernetesToken(..)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pins_are_whole_sums_parted_by_commas() {
        let (one, two) = ("0a".repeat(32), "FF".repeat(32));
        assert_eq!(RootPins::parse(&format!("{one}\n")).unwrap().0, [[0x0a; 32]]);
        assert_eq!(
            RootPins::parse(&format!("{one},{two}")).unwrap().0,
            [[0x0a; 32], [0xff; 32]]
        );
        for bad in [
            "",
            ",",
            "0a",
            &"0g".repeat(32),
            &format!("{one},"),
            &format!("{one} {two}"),
            &"+a".repeat(32),
        ] {
            assert!(RootPins::parse(bad).is_err(), "{bad}");
        }
        let many = vec![one.as_str(); MAX_PINS + 1].join(",");
        assert!(RootPins::parse(&many).unwrap_err().to_string().contains("17 of them"));
        assert!(RootPins::parse(&vec![one.as_str(); MAX_PINS].join(",")).is_ok());
    }

    #[test]
    fn a_token_is_base64url_with_dots_up_to_16_kib_and_never_shown() {
        let token = KubernetesToken::parse(" ey.J_-=\n").unwrap();
        assert_eq!(token.expose(), "ey.J_-=");
        assert_eq!(format!("{token:?}"), "KubernetesToken(..)");
        assert!(KubernetesToken::parse(&"a".repeat(KubernetesToken::MAX_LEN)).is_ok());
        for bad in ["", "  ", "a b", "a\u{e4}", &"a".repeat(KubernetesToken::MAX_LEN + 1)] {
            assert!(KubernetesToken::parse(bad).is_err());
        }
    }

    #[test]
    fn a_token_file_is_read_anew_and_a_bad_one_is_named_by_kind() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(KubernetesToken::read(file.path()).is_err());
        std::fs::write(file.path(), "one\n").unwrap();
        assert_eq!(KubernetesToken::read(file.path()).unwrap().expose(), "one");
        std::fs::write(file.path(), "two").unwrap();
        assert_eq!(KubernetesToken::read(file.path()).unwrap().expose(), "two");
    }
}
