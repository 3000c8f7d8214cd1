//! Callers of the CA, each from an address of its own (all of 127.0.0.0/8 is this machine), as pods are.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use postern_api::ca::v1 as pb;
use postern_api::ca::v1::certificate_authority_client::CertificateAuthorityClient;
use postern_api::ca::v1::issue_request::Attestation;
use postern_api::ca_client::{ALPN, JoinToken, RENEWAL_CONTEXT, ca_id};
use postern_api::refusal::RefusalReason;
use postern_api::transport::{self, DialError};
use postern_identity::{IdError, TrustDomain, tls};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey as _};
use rustls_pki_types::ServerName;
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::transport::Channel;

/// Why a caller did not get its answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No connection.
    #[error("no connection")]
    Io(#[from] std::io::Error),
    /// No channel.
    #[error("no channel")]
    Dial(#[from] DialError),
    /// The CA's own word.
    #[error("{0}")]
    Refused(Status),
    /// A key or a CSR could not be made.
    #[error("no request")]
    Request(#[from] rcgen::Error),
    /// No TLS configuration.
    #[error("no TLS configuration")]
    Tls(#[from] rustls::Error),
    /// No trust domain.
    #[error(transparent)]
    Id(#[from] IdError),
}

impl Failure {
    /// The stable word, if the CA said one.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refused(status) => RefusalReason::of(status).map_or("no_answer", RefusalReason::as_str),
            Self::Io(_) | Self::Dial(_) => "no_connection",
            Self::Request(_) | Self::Tls(_) | Self::Id(_) => "local",
        }
    }
}

/// A CA, as its callers know it.
#[derive(Clone)]
pub struct Address {
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
}

impl Address {
    /// Of the CA whose root this is.
    pub fn new(address: SocketAddr, root_sha256: [u8; 32], trust_domain: &TrustDomain) -> Result<Self, Failure> {
        let tls = tls::pinned_client_config(root_sha256, ca_id(trust_domain)?, ALPN)?;
        Ok(Self { address, tls })
    }

    /// A new connection from this address.
    pub async fn dial(&self, from: IpAddr) -> Result<CertificateAuthorityClient<Channel>, Failure> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let tcp = socket.connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await?;
        let channel = transport::channel_over(&self.address.to_string(), stream).await?;
        Ok(CertificateAuthorityClient::new(channel))
    }
}

/// A workload's process: its key and what certifies it.
pub struct Caller {
    key: KeyPair,
    chain: Vec<Vec<u8>>,
}

impl Caller {
    /// First issue.
    pub async fn join(mut client: CertificateAuthorityClient<Channel>, token: &JoinToken) -> Result<Self, Failure> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let attestation = Attestation::JoinToken(token.expose().to_owned());
        let answer = client
            .issue(request(csr(&key)?, attestation))
            .await
            .map_err(Failure::Refused)?;
        let chain = answer.into_inner().chain;
        Ok(Self { key, chain })
    }

    /// What asks for the next certificate, and the key that it is for.
    pub fn next(&self) -> Result<(pb::IssueRequest, KeyPair), Failure> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let csr = csr(&key)?;
        let renewal = pb::Renewal {
            chain: self.chain.clone(),
            signature: self.key.sign(&[RENEWAL_CONTEXT, &csr].concat())?,
        };
        Ok((request(csr, Attestation::Renewal(renewal)), key))
    }

    /// Renewal.
    pub async fn renew(&mut self, mut client: CertificateAuthorityClient<Channel>) -> Result<(), Failure> {
        let (request, key) = self.next()?;
        let answer = client.issue(request).await.map_err(Failure::Refused)?;
        self.chain = answer.into_inner().chain;
        self.key = key;
        Ok(())
    }
}

fn request(csr: Vec<u8>, attestation: Attestation) -> pb::IssueRequest {
    pb::IssueRequest {
        csr,
        attestation: Some(attestation),
        // As who has the newest: whatever its number is.
        bundle_sequence: u64::MAX,
        ..pb::IssueRequest::default()
    }
}

fn csr(key: &KeyPair) -> Result<Vec<u8>, Failure> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}

/// The n-th machine's address.
#[must_use]
pub fn address_of(n: usize) -> IpAddr {
    let [.., b, c] = u32::try_from(n).unwrap_or_default().wrapping_add(256).to_be_bytes();
    Ipv4Addr::new(127, 1, b, c.max(1)).into()
}
