//! How a process gets and keeps its SVID: first issue by join token, then renewal by its own SVID. In Kubernetes: by the
//! pod's service-account token, each time.
//!
//! ```text
//! JoinToken --pinned TLS--> CA --Issue--> chain + bundle links --advance--> Issued { svid, bundle, issuer_epoch }
//! previous Svid --TLS under current trust--> CA --Issue(renewal)--> Issued
//! pod's token + RootPins, then trust --TLS--> CA --Issue(kubernetes_token)--> Issued
//! ```
//!
//! Every call makes a fresh P-256 key. Nothing is retried here: [`CaError::is_final`] tells whether patience can help,
//! [`Backoff`] and [`renew_after`] tell when.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_identity::bundle::{self, BundleError};
use postern_identity::quarantine::{self, QuarantineError};
use postern_identity::svid::SvidError;
use postern_identity::{
    BundleSet, Expected, IdError, QuarantineSet, Role, SharedTrust, SignedQuarantine, SpiffeId, Svid, Trust,
    TrustBundle, TrustDomain, VerifyError, tls, verify,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::SignatureScheme;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::time::timeout;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::ca::v1 as pb;
use crate::refusal::RefusalReason;
use crate::transport::{self, DialError};

mod kubernetes;

pub use kubernetes::{
    KubernetesToken, KubernetesTokenError, RootPins, RootPinsError, issue_by_kubernetes_token,
    issue_by_kubernetes_token_with_key, issue_for_app_by_kubernetes_token,
};

/// What a renewal's signature covers before the CSR.
pub const RENEWAL_CONTEXT: &[u8] = b"postern-renewal-v1\0";
/// ALPN of every control-plane connection.
pub const ALPN: &[&[u8]] = &[b"h2"];
/// The CA signs in well under a millisecond and syncs one small file; longer means that it is stuck.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// The CA's answer: a short chain and the links of the bundle; past this something else is speaking.
const MAX_ANSWER: usize = 1024 * 1024;
/// A token is three short fields; anything longer is not one.
const MAX_TOKEN_LEN: usize = 256;
/// Renewal is due at this share of the remaining life, give or take [`RENEW_JITTER`].
const RENEW_SHARE: f64 = 0.5;
/// Spread of renewals, so that processes that started together do not call together.
const RENEW_JITTER: f64 = 0.1;

/// The fixed identity of a trust domain's CA.
pub fn ca_id(trust_domain: &TrustDomain) -> Result<SpiffeId, IdError> {
    SpiffeId::for_workload(trust_domain, "postern-system", "postern-ca")
}

/// The fixed identity of a trust domain's control.
pub fn control_id(trust_domain: &TrustDomain) -> Result<SpiffeId, IdError> {
    SpiffeId::for_workload(trust_domain, "postern-system", "postern-control")
}

/// A one-time join token: `postern-join.1.<id>.<secret>.<sha256 of the root>`. Debug and Display show the id alone.
#[derive(Clone)]
pub struct JoinToken {
    text: Zeroizing<String>,
    id: String,
    secret: Zeroizing<Vec<u8>>,
    root_sha256: [u8; 32],
}

/// Not a join token. The text is not repeated: it may be most of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: {0}")]
pub struct JoinTokenError(&'static str);

impl JoinToken {
    /// Parses a token as `postern-ca token create` prints it; surrounding white space is dropped.
    pub fn parse(text: &str) -> Result<Self, JoinTokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN_LEN {
            return Err(JoinTokenError("too long"));
        }
        let fields: Vec<&str> = text.split('.').collect();
        let [name, version, id, secret, root] = fields.as_slice() else {
            return Err(JoinTokenError("it has five fields, parted by dots"));
        };
        if *name != "postern-join" {
            return Err(JoinTokenError("it begins with \"postern-join\""));
        }
        if *version != "1" {
            return Err(JoinTokenError("only version 1 is known"));
        }
        let decoded = |field: &str, what| URL_SAFE_NO_PAD.decode(field).map_err(|_| JoinTokenError(what));
        if decoded(id, "the id is not base64url")?.len() != 16 {
            return Err(JoinTokenError("the id has 16 bytes"));
        }
        let secret = Zeroizing::new(decoded(secret, "the secret is not base64url")?);
        if secret.len() != 32 {
            return Err(JoinTokenError("the secret has 32 bytes"));
        }
        let root_sha256 = decoded(root, "the root's hash is not base64url")?
            .try_into()
            .map_err(|_| JoinTokenError("the root's SHA-256 has 32 bytes"))?;
        Ok(Self {
            text: Zeroizing::new(text.to_owned()),
            id: (*id).to_owned(),
            secret,
            root_sha256,
        })
    }
    /// Puts a token together; for the CA that makes it.
    #[must_use]
    pub fn assemble(id: [u8; 16], secret: &[u8; 32], root_sha256: [u8; 32]) -> Self {
        let id = URL_SAFE_NO_PAD.encode(id);
        let shown = Zeroizing::new(URL_SAFE_NO_PAD.encode(secret));
        let text = Zeroizing::new(format!(
            "postern-join.1.{id}.{}.{}",
            *shown,
            URL_SAFE_NO_PAD.encode(root_sha256)
        ));
        Self {
            text,
            id,
            secret: Zeroizing::new(secret.to_vec()),
            root_sha256,
        }
    }
    /// The public part, by which an operator knows it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
    /// The secret part.
    #[must_use]
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }
    /// SHA-256 of the root that the CA must show.
    #[must_use]
    pub fn root_sha256(&self) -> [u8; 32] {
        self.root_sha256
    }
    /// The whole token. Secret.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// What the CA gave, checked.
#[derive(Debug, Clone)]
pub struct Issued {
    /// A fresh SVID over a fresh key. It verifies under `bundle`.
    pub svid: Svid,
    /// The bundle after all links that the CA sent.
    pub bundle: TrustBundle,
    /// Number of the issuer that signed. A higher one announced by control means: renew at once, with jitter.
    pub issuer_epoch: u64,
    /// Who is cut off, if the CA had a newer set than we said that we hold.
    pub quarantine: Option<Quarantine>,
}

/// A set that the CA signed.
#[derive(Debug, Clone)]
pub struct Quarantine {
    /// Opened.
    pub set: QuarantineSet,
    /// As it came.
    pub signed: SignedQuarantine,
}

/// Why there is no SVID.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// Nobody answers at the address, or the connection broke.
    #[error("the CA cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Somebody answers who is not believed to be our CA.
    #[error("what answers at the CA's address is not our CA")]
    Untrusted(#[source] DialError),
    /// The CA said no.
    #[error("the CA refuses ({}): {message}", reason.as_str())]
    Refused {
        /// The stable word.
        reason: RefusalReason,
        /// For people.
        message: String,
    },
    /// The CA's answer does not hold.
    #[error("the CA's answer does not hold: {0}")]
    Answer(#[from] AnswerError),
    /// A fault on our side: key generation, configuration.
    #[error("cannot ask the CA: {0}")]
    Local(String),
}

/// What is wrong with an answer of the CA.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// The chain and our key are no SVID.
    #[error("chain")]
    Chain(#[from] SvidError),
    /// The bundle's links do not hold.
    #[error("bundle")]
    Bundle(#[from] BundleError),
    /// The quarantine set does not hold under the bundle that came with it.
    #[error("quarantine")]
    Quarantine(#[from] QuarantineError),
    /// The SVID does not verify under the bundle that came with it.
    #[error("the SVID does not verify")]
    Svid(#[from] VerifyError),
    /// An SVID that was asked for an app, and would speak for its proxy.
    #[error("the CA marks no SVID as an app's; upgrade it before proxies with a Workload API")]
    Unmarked,
    /// A renewal that names somebody else.
    #[error("asked for {asked}, got {got}")]
    OtherIdentity {
        /// The previous SVID's identity and instance.
        asked: String,
        /// The new one's.
        got: String,
    },
}

impl CaError {
    /// A closed set of `snake_case` words: the CA's own word if it refused, else `ca_unreachable`, `ca_untrusted`,
    /// `ca_answer` or `local`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "ca_unreachable",
            Self::Untrusted(_) => "ca_untrusted",
            Self::Refused { reason, .. } => reason.as_str(),
            Self::Answer(_) => "ca_answer",
            Self::Local(_) => "local",
        }
    }
    /// True where the same token or previous SVID can never succeed: a new token is needed from whatever started us.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Refused { reason, .. } => reason.is_final(),
            Self::Unreachable(_) | Self::Untrusted(_) | Self::Answer(_) | Self::Local(_) => false,
        }
    }
}

/// First issue: trusts the CA by its fixed ID and the root hash in the token, and takes the bundle from there.
pub async fn first_issue(address: &str, token: &JoinToken, trust_domain: &TrustDomain) -> Result<Issued, CaError> {
    first_issue_with_key(address, token, trust_domain)
        .await
        .map(|(issued, _)| issued)
}

/// The same, with the private key (PKCS#8, DER) beside it: for writing files that a foreign program reads. Our own
/// processes never hold it outside [`Svid`].
pub async fn first_issue_with_key(
    address: &str,
    token: &JoinToken,
    trust_domain: &TrustDomain,
) -> Result<(Issued, Zeroizing<Vec<u8>>), CaError> {
    let (channel, first) = by_pinned_root(address, token.root_sha256, trust_domain).await?;
    let request = Request::new(
        pb::issue_request::Attestation::JoinToken(token.expose().to_owned()),
        &first,
    )?;
    request.send(channel, &first).await
}

/// A connection to the CA that showed this root, and that root as a bundle.
async fn by_pinned_root(
    address: &str,
    root_sha256: [u8; 32],
    trust_domain: &TrustDomain,
) -> Result<(Channel, TrustBundle), CaError> {
    let expected = ca_id(trust_domain).map_err(|error| CaError::Local(error.to_string()))?;
    let config = tls::pinned_client_config(root_sha256, expected.clone(), ALPN).map_err(local)?;
    let stream = transport::dial(address, config).await.map_err(by_blame)?;
    let first = tls::pinned_bundle(stream.get_ref().1, &expected, root_sha256, transport::now())
        .ok_or(CaError::Answer(AnswerError::Svid(VerifyError::NoCertificate)))?;
    let channel = transport::channel_over(address, stream).await.map_err(by_blame)?;
    Ok((channel, first))
}

/// A connection to the CA that the current trust believes, and the bundle that is held.
async fn by_trust(address: &str, trust: &SharedTrust, trust_domain: &str) -> Result<(Channel, TrustBundle), CaError> {
    by_trust_as(address, None, trust, trust_domain).await
}

/// The same, proving ourselves where there is an SVID.
async fn by_trust_as(
    address: &str,
    own: Option<&Svid>,
    trust: &SharedTrust,
    trust_domain: &str,
) -> Result<(Channel, TrustBundle), CaError> {
    let held = trust
        .load()
        .bundles
        .get(trust_domain)
        .ok_or_else(|| CaError::Local(format!("no bundle of trust domain {trust_domain}")))?
        .as_ref()
        .clone();
    let ca = ca_id(held.trust_domain()).map_err(|error| CaError::Local(error.to_string()))?;
    let config = tls::client_config(own, Arc::clone(trust), ALPN).map_err(local)?;
    let expected = Expected {
        ids: vec![ca],
        instance: None,
    };
    let channel = transport::connect(address, config, trust, &expected)
        .await
        .map_err(by_blame)?;
    Ok((channel, held))
}

/// Renewal under the current trust. `previous` may have expired less than 24 h ago.
pub async fn renew(address: &str, previous: &Svid, trust: &SharedTrust) -> Result<Issued, CaError> {
    by_own_svid(address, previous, trust, false)
        .await
        .map(|(issued, _)| issued)
}

/// An SVID for the app beside a proxy, which proves itself by its `own`; with the private key (PKCS#8, DER) beside it. Whoever
/// holds it is the workload, and not its proxy ([`postern_identity::VerifiedPeer::is_app`]).
pub async fn issue_for_app(
    address: &str,
    own: &Svid,
    trust: &SharedTrust,
) -> Result<(Issued, Zeroizing<Vec<u8>>), CaError> {
    by_own_svid(address, own, trust, true).await.and_then(marked)
}

/// A CA that knows of no apps gives what would speak for the proxy: that goes to nobody.
fn marked(issued: (Issued, Zeroizing<Vec<u8>>)) -> Result<(Issued, Zeroizing<Vec<u8>>), CaError> {
    match issued.0.svid.is_of_app() {
        true => Ok(issued),
        false => Err(AnswerError::Unmarked.into()),
    }
}

async fn by_own_svid(
    address: &str,
    previous: &Svid,
    trust: &SharedTrust,
    for_app: bool,
) -> Result<(Issued, Zeroizing<Vec<u8>>), CaError> {
    let (channel, held) = by_trust(address, trust, previous.id().trust_domain()).await?;
    let mut request = Request::new(pb::issue_request::Attestation::Renewal(pb::Renewal::default()), &held)?
        .holding_quarantine_of(trust);
    let renewal = pb::Renewal {
        chain: previous.chain().iter().map(|der| der.to_vec()).collect(),
        signature: sign_renewal(previous, &request.body.csr)?,
    };
    request.body.attestation = Some(pb::issue_request::Attestation::Renewal(renewal));
    request.body.for_app = for_app;
    let (issued, key) = request.send(channel, &held).await?;
    if issued.svid.id() != previous.id() || issued.svid.instance() != previous.instance() {
        let shown = |svid: &Svid| {
            format!(
                "{} ({})",
                svid.id(),
                svid.instance().map_or("no instance", |i| i.as_str())
            )
        };
        return Err(AnswerError::OtherIdentity {
            asked: shown(previous),
            got: shown(&issued.svid),
        }
        .into());
    }
    Ok((issued, key))
}

/// A JWT-SVID for the identity that `own` proves, and when it expires, in seconds since 1970. The caller verifies it.
pub async fn issue_jwt(
    address: &str,
    own: &Svid,
    trust: &SharedTrust,
    audience: &[String],
) -> Result<(Zeroizing<String>, u64), CaError> {
    let (channel, _) = by_trust_as(address, Some(own), trust, own.id().trust_domain()).await?;
    let request = pb::IssueJwtRequest {
        audience: audience.to_vec(),
    };
    let mut client = pb::certificate_authority_client::CertificateAuthorityClient::new(channel)
        .max_decoding_message_size(MAX_ANSWER);
    let answer = timeout(CALL_DEADLINE, client.issue_jwt(request))
        .await
        .map_err(|elapsed| CaError::Unreachable(elapsed.into()))?
        .map_err(refused)?
        .into_inner();
    Ok((
        Zeroizing::new(answer.token),
        u64::try_from(answer.expires_unix).unwrap_or(0),
    ))
}

/// The previous key's signature over [`RENEWAL_CONTEXT`] and the CSR.
fn sign_renewal(previous: &Svid, csr: &[u8]) -> Result<Vec<u8>, CaError> {
    let schemes = [
        SignatureScheme::ECDSA_NISTP256_SHA256,
        SignatureScheme::ECDSA_NISTP384_SHA384,
        SignatureScheme::ED25519,
    ];
    let signer = previous
        .certified_key()
        .key
        .choose_scheme(&schemes)
        .ok_or_else(|| CaError::Local("the previous key is of a kind that cannot sign a renewal".to_owned()))?;
    signer.sign(&[RENEWAL_CONTEXT, csr].concat()).map_err(local)
}

fn refused(status: tonic::Status) -> CaError {
    match RefusalReason::of(&status) {
        Some(reason) => CaError::Refused {
            reason,
            message: status.message().to_owned(),
        },
        None => CaError::Unreachable(status.into()),
    }
}

/// A fresh key and the request made over it.
struct Request {
    key: KeyPair,
    body: pb::IssueRequest,
}

impl Request {
    fn new(attestation: pb::issue_request::Attestation, held: &TrustBundle) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(local)?;
        let mut params = CertificateParams::default();
        // The CA takes nothing but the key; so nothing else is said.
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(local)?.der().to_vec();
        Ok(Self {
            key,
            body: pb::IssueRequest {
                csr,
                attestation: Some(attestation),
                bundle_sequence: held.sequence(),
                quarantine_version: 0,
                for_app: false,
                root_sha256: match (held.sequence(), held.roots()) {
                    (0, [pinned]) => bundle::fingerprint(pinned).to_vec(),
                    _ => Vec::new(),
                },
            },
        })
    }

    fn holding_quarantine_of(mut self, trust: &SharedTrust) -> Self {
        self.body.quarantine_version = trust.load().quarantine_version;
        self
    }

    async fn send(self, channel: Channel, held: &TrustBundle) -> Result<(Issued, Zeroizing<Vec<u8>>), CaError> {
        let mut client = pb::certificate_authority_client::CertificateAuthorityClient::new(channel)
            .max_decoding_message_size(MAX_ANSWER);
        let answer = timeout(CALL_DEADLINE, client.issue(self.body))
            .await
            .map_err(|elapsed| CaError::Unreachable(elapsed.into()))?
            .map_err(refused)?
            .into_inner();
        let key = Zeroizing::new(self.key.serialize_der());
        let loaded = PrivateKeyDer::Pkcs8(key.to_vec().into());
        Ok((checked(answer, loaded, held, transport::now())?, key))
    }
}

/// An answer is believed only if its bundle follows from what we hold and its SVID verifies under that bundle.
fn checked(
    answer: pb::IssueResponse,
    key: PrivateKeyDer<'static>,
    held: &TrustBundle,
    now: UnixTime,
) -> Result<Issued, AnswerError> {
    let links: Vec<bundle::SignedBundle> = answer.bundles.into_iter().map(Into::into).collect();
    let bundle = bundle::advance(held, &links, now)?;
    let quarantine = answer.quarantine.map(|signed| {
        let signed = SignedQuarantine::from(signed);
        let set = quarantine::open(&bundle, &signed, now)?;
        Ok::<_, QuarantineError>(Quarantine { set, signed })
    });
    let svid = Svid::new(answer.chain.into_iter().map(CertificateDer::from).collect(), key)?;
    let trust = Trust {
        bundles: BundleSet::default().with(bundle.clone()),
        ..Trust::default()
    };
    verify::verify_peer(svid.chain(), Role::Server, &trust, now)?;
    Ok(Issued {
        svid,
        bundle,
        issuer_epoch: answer.issuer_epoch,
        quarantine: quarantine.transpose()?,
    })
}

fn local(error: impl fmt::Display) -> CaError {
    CaError::Local(error.to_string())
}

fn by_blame(error: DialError) -> CaError {
    let untrusted = match &error {
        DialError::Peer { .. } | DialError::WrongPeer { .. } => true,
        DialError::Handshake { source, .. } => tls::verify_error_in(source).is_some(),
        DialError::Connect { .. } | DialError::TooSlow { .. } | DialError::Http { .. } => false,
    };
    if untrusted {
        CaError::Untrusted(error)
    } else {
        CaError::Unreachable(error.into())
    }
}

/// How long to wait, counted from `obtained`, before renewing an SVID. `jitter` is a random number in 0..1.
/// (Counted from when it was obtained, not from its notBefore, which is backdated.)
#[must_use]
pub fn renew_after(svid: &Svid, obtained: UnixTime, jitter: f64) -> Duration {
    let life = Duration::from_secs(svid.not_after().as_secs().saturating_sub(obtained.as_secs()));
    life.mul_f64(RENEW_SHARE * (1.0 + RENEW_JITTER * (2.0 * jitter.clamp(0.0, 1.0) - 1.0)))
}

/// Waits between failed attempts: from 0.5 s, doubling to 30 s, each shortened by up to a half at random.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::up_to(Duration::from_secs(30))
    }
}

impl Backoff {
    /// The first wait.
    pub const FIRST: Duration = Duration::from_millis(500);

    /// With another longest wait (recovery within 2 s of the CA's return asks for a short one).
    #[must_use]
    pub fn up_to(longest: Duration) -> Self {
        Self {
            next: Self::FIRST.min(longest),
            longest,
        }
    }
    /// The next wait. `jitter` is a random number in 0..1.
    pub fn after_failure(&mut self, jitter: f64) -> Duration {
        let wait = self.next.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0));
        self.next = self.next.saturating_mul(2).min(self.longest);
        wait
    }
    /// After a success.
    pub fn reset(&mut self) {
        self.next = Self::FIRST.min(self.longest);
    }
}

impl From<pb::SignedBundle> for bundle::SignedBundle {
    fn from(wire: pb::SignedBundle) -> Self {
        Self {
            document: wire.document,
            signature: wire.signature,
            signer_chain: wire.signer_chain.into_iter().map(CertificateDer::from).collect(),
        }
    }
}

impl From<&bundle::SignedBundle> for pb::SignedBundle {
    fn from(link: &bundle::SignedBundle) -> Self {
        Self {
            document: link.document.clone(),
            signature: link.signature.clone(),
            signer_chain: link.signer_chain.iter().map(|der| der.to_vec()).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
