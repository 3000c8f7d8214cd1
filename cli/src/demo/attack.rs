//! What mallory tries. Every attempt carries a word that occurs nowhere else (a nonce); whether it got through is for
//! the attacked service to say, which notes every nonce that reaches it, and never for a proxy.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use postern_api::ca_client::Issued;
use postern_api::transport;
use postern_identity::tls::alpn;
use postern_identity::{BundleSet, SharedTrust, Trust};

use super::authority::{Authority, AuthorityError};
use super::documents::spiffe_id;
use super::world::World;

mod probe;

use probe::Door;
pub(super) use probe::Probe;

/// Past its notAfter (whole seconds) a certificate is expired for everybody.
const PAST_EXPIRY: Duration = Duration::from_millis(1_500);
/// With less life than this a certificate might expire during an attack that is not about expiry.
const ENOUGH_LIFE: Duration = Duration::from_secs(2);
/// Spellings of cart's admin page that one careless server or another accepts.
const SPELLINGS: [&str; 8] = [
    "/%61dmin",
    "//admin",
    "/items/../admin",
    "/items/%2e%2e/admin",
    "/items/..%2fadmin",
    "/items/%252e%252e/admin",
    "/items/..;/admin",
    "/items\\..\\admin",
];

/// One kind of attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Attack {
    /// TLS without a client certificate.
    NoCertificate,
    /// No TLS at all.
    Plaintext,
    /// mallory's own certificate, valid, and allowed nothing.
    WrongIdentity,
    /// mallory's certificate, and headers that claim to be web.
    ForgedHeader,
    /// An allowed identity asks for a denied page under another spelling.
    EncodedPath,
    /// An allowed identity whose certificate has run out.
    ExpiredCertificate,
}

/// One try of an attack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attempt {
    /// What the service would have noted.
    pub(super) nonce: String,
    /// The page that it is after; empty: any answer at all is too much.
    pub(super) page: &'static str,
    /// What was tried.
    pub(super) what: String,
    /// What came back.
    pub(super) heard: String,
}

/// Why an attack was not tried.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttackError {
    #[error("no certificate to attack with")]
    Certificate(#[from] AuthorityError),
    #[error("the certificate to attack with is still good for {} s", .0.as_secs() + 1)]
    NotExpiredYet(Duration),
    #[error("TLS")]
    Tls(#[from] probe::ProbeError),
}

impl Attack {
    /// All, in the order of the keys.
    pub(super) const ALL: [Self; 6] = [
        Self::NoCertificate,
        Self::Plaintext,
        Self::WrongIdentity,
        Self::ForgedHeader,
        Self::EncodedPath,
        Self::ExpiredCertificate,
    ];

    /// In the result.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Plaintext => "plaintext",
            Self::WrongIdentity => "wrong_identity",
            Self::ForgedHeader => "forged_header",
            Self::EncodedPath => "encoded_path",
            Self::ExpiredCertificate => "expired_certificate",
        }
    }

    /// On the screen.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::NoCertificate => "no certificate",
            Self::Plaintext => "plaintext",
            Self::WrongIdentity => "mallory's own cert",
            Self::ForgedHeader => "forged identity header",
            Self::EncodedPath => "encoded path",
            Self::ExpiredCertificate => "expired certificate",
        }
    }
}

impl Attempt {
    /// Did the service see it? `reached`: nonces with the page that each got.
    pub(super) fn passed<'a>(&self, reached: impl IntoIterator<Item = &'a (String, String)>) -> bool {
        reached
            .into_iter()
            .any(|(nonce, page)| *nonce == self.nonce && (self.page.is_empty() || page == self.page))
    }
}

/// The certificates that attacks are made with.
#[derive(Debug)]
pub(super) struct Arsenal {
    fresh: BTreeMap<&'static str, Issued>,
    /// web's, obtained at the start and never renewed.
    ageing: Issued,
    trust: SharedTrust,
}

impl Arsenal {
    /// Obtains the certificate that is left to expire.
    pub(super) async fn gather(authority: &Authority) -> Result<Self, AuthorityError> {
        let ageing = authority.issue("web").await?;
        let trust = Trust {
            bundles: BundleSet::default().with(ageing.bundle.clone()),
            ..Trust::default()
        };
        Ok(Self {
            fresh: BTreeMap::new(),
            trust: Arc::new(ArcSwap::from_pointee(trust)),
            ageing,
        })
    }

    /// How long until the expired certificate is one.
    pub(super) fn until_expired(&self) -> Option<Duration> {
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(self.ageing.svid.not_after().as_secs()) + PAST_EXPIRY;
        end.duration_since(SystemTime::now())
            .ok()
            .filter(|left| !left.is_zero())
    }

    async fn certificate(&mut self, authority: &Authority, workload: &'static str) -> Result<Issued, AuthorityError> {
        let good = |issued: &Issued| {
            let left = issued
                .svid
                .not_after()
                .as_secs()
                .saturating_sub(transport::now().as_secs());
            left > ENOUGH_LIFE.as_secs()
        };
        if let Some(issued) = self.fresh.get(workload).filter(|issued| good(issued)) {
            return Ok(issued.clone());
        }
        let issued = authority.issue(workload).await?;
        self.fresh.insert(workload, issued.clone());
        Ok(issued)
    }

    /// What an attack will try, with its certificates at hand: asked for while the CA may be asked, run apart from it.
    pub(super) async fn prepare(&mut self, attack: Attack, world: &World) -> Result<Vec<Probe>, AttackError> {
        let cart = SocketAddr::from((Ipv4Addr::LOCALHOST, world.cart().mesh));
        let ledger = world
            .serving("ledger")
            .map(|ledger| SocketAddr::from((Ipv4Addr::LOCALHOST, ledger.mesh)));
        let authority = &world.authority;
        let mut probes = Vec::new();
        match attack {
            Attack::NoCertificate => {
                probes.push(Probe::items(
                    "TLS to cart",
                    Door::tls(cart, None, &self.trust, alpn::POSTERN_H1)?,
                    attack,
                ));
            }
            Attack::Plaintext => {
                probes.push(Probe::items("HTTP to cart", Door::plain(cart), attack));
                probes.extend(ledger.map(|ledger| Probe::entry("TCP to ledger", Door::plain(ledger), attack)));
            }
            Attack::WrongIdentity => {
                let mallory = self.certificate(authority, "mallory").await?;
                let door = |address, alpn| Door::tls(address, Some(&mallory.svid), &self.trust, alpn);
                probes.push(Probe::items("mTLS to cart", door(cart, alpn::POSTERN_H1)?, attack));
                if let Some(ledger) = ledger {
                    probes.push(Probe::entry("mTLS to ledger", door(ledger, alpn::POSTERN_TCP)?, attack));
                }
                let own = world.proxy("mallory").map(|proxy| Door::proxy(proxy.explicit));
                probes.extend(own.map(|door| Probe::items("her proxy to cart", door, attack)));
            }
            Attack::ForgedHeader => {
                let mallory = self.certificate(authority, "mallory").await?;
                let claim = forged_headers();
                let door = Door::tls(cart, Some(&mallory.svid), &self.trust, alpn::POSTERN_H1)?;
                probes.push(Probe::items("mTLS to cart", door, attack).with_headers(&claim));
                let own = world.proxy("mallory").map(|proxy| Door::proxy(proxy.explicit));
                probes.extend(own.map(|door| Probe::items("her proxy to cart", door, attack).with_headers(&claim)));
            }
            Attack::EncodedPath => {
                let web = self.certificate(authority, "web").await?;
                for spelling in SPELLINGS {
                    let door = Door::tls(cart, Some(&web.svid), &self.trust, alpn::POSTERN_H1)?;
                    probes.push(Probe::admin(spelling, door, attack));
                    let own = world.proxy("web").map(|proxy| Door::proxy(proxy.explicit));
                    probes.extend(own.map(|door| Probe::admin(spelling, door, attack)));
                }
            }
            Attack::ExpiredCertificate => {
                if let Some(left) = self.until_expired() {
                    return Err(AttackError::NotExpiredYet(left));
                }
                let door = Door::tls(cart, Some(&self.ageing.svid), &self.trust, alpn::POSTERN_H1)?;
                probes.push(Probe::items("mTLS to cart", door, attack));
            }
        }
        Ok(probes)
    }

    /// The same probe made by somebody who may: unless it arrives, refusals prove nothing.
    pub(super) async fn prepare_allowed(&mut self, world: &World) -> Result<Probe, AttackError> {
        let cart = SocketAddr::from((Ipv4Addr::LOCALHOST, world.cart().mesh));
        let web = self.certificate(&world.authority, "web").await?;
        let door = Door::tls(cart, Some(&web.svid), &self.trust, alpn::POSTERN_H1)?;
        Ok(Probe::allowed("mTLS to cart", door))
    }
}

fn forged_headers() -> String {
    let web = spiffe_id("web");
    format!(
        "x-forwarded-client-cert: By={};URI={web}\r\nx-postern-source: {web}\r\nX_Postern_Source: {web}\r\n",
        spiffe_id("cart")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(page: &'static str) -> Attempt {
        Attempt {
            nonce: "nonce-1".to_owned(),
            page,
            what: String::new(),
            heard: "status 200".to_owned(),
        }
    }

    fn reached(nonce: &str, page: &str) -> Vec<(String, String)> {
        vec![(nonce.to_owned(), page.to_owned())]
    }

    #[test]
    fn an_attempt_passes_only_if_the_service_noted_its_nonce_whatever_the_answer_was() {
        assert!(attempt("").passed(&reached("nonce-1", "items")));
        assert!(!attempt("").passed(&reached("nonce-2", "items")));
        assert!(!attempt("").passed(&[]));
    }

    #[test]
    fn a_spelling_passes_only_if_it_got_the_page_that_it_is_after() {
        assert!(attempt("admin").passed(&reached("nonce-1", "admin")));
        assert!(!attempt("admin").passed(&reached("nonce-1", "none")));
    }
}
