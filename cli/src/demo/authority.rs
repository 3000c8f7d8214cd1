//! The demo's CA: made, started, killed, started again, asked for tokens and for a new issuer.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_api::ca::v1 as pb;
use postern_api::ca::v1::admin_client::AdminClient;
use postern_api::ca_client::{self, CaError, Issued, JoinToken, JoinTokenError};
use postern_api::transport::{self, DialError};
use postern_identity::TrustDomain;
use tonic::transport::Channel;

use super::child::{self, Child, ChildError};
use super::documents::{TRUST_DOMAIN, spiffe_id};

/// A token is redeemed at once, by a process that we start next.
const TOKEN_LIFE: Duration = Duration::from_secs(60);

/// Why the CA does not do what is asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthorityError {
    #[error("`ca init` failed: {0}")]
    Init(String),
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error("the CA is down; start it again first")]
    Down,
    #[error("the CA's admin socket")]
    Dial(#[from] DialError),
    #[error("the CA refuses: {0}")]
    Refused(String),
    #[error("the CA made a token that is none")]
    Token(#[from] JoinTokenError),
    #[error("no SVID for {0}")]
    Issue(String, #[source] CaError),
}

/// The CA as its operator sees it.
#[derive(Debug)]
pub(super) struct Authority {
    directory: PathBuf,
    life: Duration,
    process: Option<Child>,
    /// Known once it has run: it comes back where its callers look for it.
    address: Option<String>,
}

impl Authority {
    /// Makes a root and an issuer, and starts to serve SVIDs of this life.
    pub(super) async fn start(directory: &Path, life: Duration) -> Result<Self, AuthorityError> {
        let mut authority = Self {
            directory: directory.to_owned(),
            life,
            process: None,
            address: None,
        };
        let arguments = ["ca", "init", "--trust-domain", TRUST_DOMAIN, "--store"];
        let arguments = [arguments.map(str::to_owned).as_slice(), &[authority.path("store")]].concat();
        // Blocking: a few milliseconds, before anything else runs.
        let made = child::command(&arguments).and_then(|mut command| command.output());
        let made = made.map_err(|error| AuthorityError::Init(error.to_string()))?;
        if !made.status.success() {
            return Err(AuthorityError::Init(
                String::from_utf8_lossy(&made.stderr).trim().to_owned(),
            ));
        }
        authority.serve().await?;
        Ok(authority)
    }

    /// Starts the process, again if it was killed; waits until it serves.
    pub(super) async fn serve(&mut self) -> Result<(), AuthorityError> {
        let ready_file = self.path("ca.json");
        let _ = fs::remove_file(&ready_file);
        let life = humantime::format_duration(self.life).to_string().replace(' ', "");
        let listen = self.address.clone().unwrap_or_else(|| "127.0.0.1:0".to_owned());
        let arguments: Vec<String> = [
            ["ca", "serve"].map(str::to_owned).to_vec(),
            vec!["--store".to_owned(), self.path("store")],
            vec!["--listen".to_owned(), listen],
            vec!["--admin-socket".to_owned(), self.path("ca.sock")],
            vec!["--metrics-listen".to_owned(), "127.0.0.1:0".to_owned()],
            vec!["--ready-file".to_owned(), ready_file.clone()],
            vec!["--svid-life".to_owned(), life, "--insecure-short-life".to_owned()],
        ]
        .concat();
        let mut process = Child::start(&self.directory, "ca", &arguments)?;
        let ready = process.ready(Path::new(&ready_file)).await?;
        let address = ready["listen"].as_str().map(str::to_owned);
        self.address = Some(address.ok_or_else(|| AuthorityError::Init("the ready file names no address".to_owned()))?);
        self.process = Some(process);
        Ok(())
    }

    /// Where workloads call.
    pub(super) fn address(&self) -> &str {
        self.address.as_deref().unwrap_or_default()
    }

    /// Is it meant to run?
    pub(super) fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// An outage: no farewell.
    pub(super) fn kill(&mut self) {
        self.process = None;
    }

    /// Fails if it ended by itself.
    pub(super) fn check(&mut self) -> Result<(), ChildError> {
        self.process.as_mut().map_or(Ok(()), Child::check)
    }

    /// A join token for one start of one process.
    pub(super) async fn token(&self, id: &str, instance: &str) -> Result<JoinToken, AuthorityError> {
        let request = pb::CreateJoinTokenRequest {
            spiffe_id: id.to_owned(),
            instance: instance.to_owned(),
            life_seconds: u32::try_from(TOKEN_LIFE.as_secs()).unwrap_or(u32::MAX),
        };
        let made = self.admin().await?.create_join_token(request).await.map_err(said)?;
        Ok(JoinToken::parse(&made.into_inner().token)?)
    }

    /// An SVID of one of our workloads, as a process that was started for it would get it. The demo's attacks hold it.
    pub(super) async fn issue(&self, workload: &str) -> Result<Issued, AuthorityError> {
        let trust_domain =
            TrustDomain::parse(TRUST_DOMAIN).map_err(|error| AuthorityError::Refused(error.to_string()))?;
        let token = self.token(&spiffe_id(workload), workload).await?;
        ca_client::first_issue(self.address(), &token, &trust_domain)
            .await
            .map_err(|error| AuthorityError::Issue(workload.to_owned(), error))
    }

    /// A new issuing certificate; gives its number.
    pub(super) async fn rotate(&self) -> Result<u64, AuthorityError> {
        let answer = self.admin().await?.rotate_issuer(pb::RotateIssuerRequest {}).await;
        Ok(answer.map_err(said)?.into_inner().issuer_epoch)
    }

    async fn admin(&self) -> Result<AdminClient<Channel>, AuthorityError> {
        if self.process.is_none() {
            return Err(AuthorityError::Down);
        }
        let channel = transport::connect_unix(Path::new(&self.path("ca.sock"))).await?;
        Ok(AdminClient::new(channel))
    }

    fn path(&self, file: &str) -> String {
        self.directory.join(file).to_string_lossy().into_owned()
    }
}

fn said(status: tonic::Status) -> AuthorityError {
    AuthorityError::Refused(status.message().to_owned())
}
