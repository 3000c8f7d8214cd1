//! The operator's service, on a Unix socket that only the CA's own user (and root) may use.

use std::sync::Arc;
use std::time::Duration;

use postern_api::ca::v1 as pb;
use postern_api::ca::v1::admin_server::Admin;
use postern_api::refusal::RefusalReason;
use postern_identity::{Instance, SpiffeId};
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use crate::clock::unix;
use crate::issuance::{Ca, Why};
use crate::refusal::Refusal;
use crate::tokens::{DEFAULT_LIFE, MAX_LIFE, TokenBook, is_token_id};

/// Serves the operator.
pub(crate) struct Operating {
    pub(crate) ca: Arc<Ca>,
}

impl Operating {
    #[allow(clippy::result_large_err)] // What the methods of this service return.
    fn tokens(&self) -> Result<&Arc<TokenBook>, Status> {
        self.ca.tokens().ok_or_else(|| {
            Status::failed_precondition(
                "this CA attests pods by their service-account tokens and has no join tokens: they need the one process that \
                 owns a store, in a directory and without --kubernetes-attestation",
            )
        })
    }
}

#[tonic::async_trait]
impl Admin for Operating {
    async fn create_join_token(
        &self,
        request: Request<pb::CreateJoinTokenRequest>,
    ) -> Result<Response<pb::CreateJoinTokenResponse>, Status> {
        let request = request.into_inner();
        let authority = self.ca.authority();
        let invalid = |error: postern_identity::IdError| Status::invalid_argument(error.to_string());
        let id = SpiffeId::parse(&request.spiffe_id).map_err(invalid)?;
        let instance = Instance::parse(&request.instance).map_err(invalid)?;
        if id.trust_domain() != authority.trust_domain().as_str() {
            let message = format!("{id} is not of this CA's trust domain, {}", authority.trust_domain());
            return Err(Status::invalid_argument(message));
        }
        if id.workload().is_none() {
            let message = format!(
                "{id} is no workload: spiffe://{}/ns/<namespace>/sa/<account>",
                authority.trust_domain()
            );
            return Err(Status::invalid_argument(message));
        }
        if id == *authority.own_id() {
            return Err(Status::invalid_argument(format!(
                "{id} is the CA itself; nobody else is given it"
            )));
        }
        let life = match request.life_seconds {
            0 => DEFAULT_LIFE,
            seconds => Duration::from_secs(seconds.into()),
        };
        if life > MAX_LIFE {
            let message = format!("a join token lives {} h at most", MAX_LIFE.as_secs() / 3600);
            return Err(Status::invalid_argument(message));
        }
        let now = self.ca.now();
        let (token, expires) = self
            .tokens()?
            .create(&id, &instance, life, authority.root_sha256(), now)
            .await?;
        tracing::info!(token = token.id(), id = %id, instance = %instance, "join token made");
        Ok(Response::new(pb::CreateJoinTokenResponse {
            token: token.expose().to_owned(),
            id: token.id().to_owned(),
            expires_unix: unix(expires),
        }))
    }

    async fn list_join_tokens(
        &self,
        _request: Request<pb::ListJoinTokensRequest>,
    ) -> Result<Response<pb::ListJoinTokensResponse>, Status> {
        let tokens = self
            .tokens()?
            .list(self.ca.now())
            .into_iter()
            .map(|entry| pb::JoinToken {
                id: entry.id,
                spiffe_id: entry.spiffe_id,
                instance: entry.instance,
                expires_unix: i64::try_from(entry.expires_unix).unwrap_or(i64::MAX),
                redeemed: entry.redeemed,
            });
        Ok(Response::new(pb::ListJoinTokensResponse {
            tokens: tokens.collect(),
        }))
    }

    async fn revoke_join_token(
        &self,
        request: Request<pb::RevokeJoinTokenRequest>,
    ) -> Result<Response<pb::RevokeJoinTokenResponse>, Status> {
        let id = request.into_inner().id;
        if !is_token_id(&id) {
            // Not repeated: a whole token may have been pasted here.
            return Err(Status::invalid_argument(
                "that is not the id of a join token; `token list` shows them",
            ));
        }
        self.tokens()?.revoke(&id).await?;
        tracing::info!(token = id, "join token revoked");
        Ok(Response::new(pb::RevokeJoinTokenResponse {}))
    }

    async fn rotate_issuer(
        &self,
        _request: Request<pb::RotateIssuerRequest>,
    ) -> Result<Response<pb::RotateIssuerResponse>, Status> {
        let next = self
            .ca
            .rotate(Why::Asked)
            .await
            .map_err(|error| Status::from(Refusal::new(RefusalReason::Store, crate::error_chain(&error))))?;
        Ok(Response::new(pb::RotateIssuerResponse {
            issuer_epoch: next.issuer_epoch(),
        }))
    }

    async fn status(&self, _request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let authority = self.ca.authority();
        Ok(Response::new(pb::StatusResponse {
            trust_domain: authority.trust_domain().to_string(),
            bundle_sequence: authority.bundle().sequence(),
            issuer_epoch: authority.issuer_epoch(),
            issuer_not_after_unix: unix(authority.issuer_not_after()),
            root_not_after_unix: unix(authority.root_not_after()),
            issued: self.ca.metrics.total_issued(),
            refused: self.ca.metrics.total_refused(),
            svid_life_seconds: u32::try_from(self.ca.svid_life.as_secs()).unwrap_or(u32::MAX),
        }))
    }
}

/// The socket's mode keeps others out; this holds even if somebody loosens it.
#[allow(clippy::result_large_err)] // tonic's own signature of an interceptor.
pub(crate) fn only_own_user(request: Request<()>) -> Result<Request<()>, Status> {
    let uid = request
        .extensions()
        .get::<UdsConnectInfo>()
        .and_then(|info| info.peer_cred)
        .map(|cred| cred.uid());
    match uid {
        Some(uid) if uid == 0 || uid == rustix::process::geteuid().as_raw() => Ok(request),
        Some(_) | None => {
            Err(RefusalReason::CallerIdentity.status("the admin socket serves the CA's own user and root only"))
        }
    }
}
