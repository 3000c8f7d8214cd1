//! The operator's service, on a Unix socket that only the CA's own user (and root) may use.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use postern_api::ca::v1 as pb;
use postern_api::ca::v1::admin_server::Admin;
use postern_api::refusal::RefusalReason;
use postern_identity::{Instance, SpiffeId};
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use super::quarantine;
use crate::acknowledged::Report;
use crate::authority::{Authority, Stage, sha256};
use crate::clock::unix;
use crate::issuance::bringing::{Mounted, Told};
use crate::issuance::{Ca, RootChange, RotationError, Why};
use crate::refusal::Refusal;
use crate::tokens::{DEFAULT_LIFE, MAX_LIFE, TokenBook, hex, is_token_id};

mod ledger;

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
        tracing::info!(token = token.id(), "join token made");
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
        let replacing = self.ca.authority().root_stage().map(|(_, stage)| stage);
        if replacing == Some(Stage::Activated) {
            // Its issuer is new, and the one for which the old root vouches.
            let message =
                "the root is being replaced: the new one's issuer signs already (`postern-ca rotate --dry-run`)";
            return Err(Status::failed_precondition(message));
        }
        let next = self
            .ca
            .rotate(Why::Asked)
            .await
            .map_err(|error| Status::from(Refusal::new(RefusalReason::Store, crate::error_chain(&error))))?;
        Ok(Response::new(pb::RotateIssuerResponse {
            issuer_epoch: next.issuer_epoch(),
        }))
    }

    async fn rotate_root(
        &self,
        request: Request<pb::RotateRootRequest>,
    ) -> Result<Response<pb::RotateRootResponse>, Status> {
        let change = if request.into_inner().taint {
            RootChange::Taint
        } else {
            RootChange::Begin
        };
        let next = self
            .ca
            .change_root(change)
            .await
            .map_err(|error| Status::from(Refusal::new(RefusalReason::Store, crate::error_chain(&error))))?;
        Ok(Response::new(pb::RotateRootResponse {
            rotation: rotation_of(&self.ca, &next),
        }))
    }

    async fn request_issuer(
        &self,
        _request: Request<pb::RequestIssuerRequest>,
    ) -> Result<Response<pb::RequestIssuerResponse>, Status> {
        let csr = self.ca.request_issuer().await.map_err(|error| not_brought(&error))?;
        Ok(Response::new(pb::RequestIssuerResponse { csr }))
    }

    async fn import_issuer(
        &self,
        request: Request<pb::ImportIssuerRequest>,
    ) -> Result<Response<pb::ImportIssuerResponse>, Status> {
        let pb::ImportIssuerRequest { pem, name } = request.into_inner();
        let next = self.ca.import_issuer(pem, name).await;
        let next = next.map_err(|error| not_brought(&error))?;
        let waiting = next
            .root_stage()
            .is_some_and(|(_, stage)| matches!(stage, Stage::Prepared | Stage::Published));
        Ok(Response::new(pb::ImportIssuerResponse {
            issuer_epoch: next.issuer_epoch(),
            rotation: rotation_of(&self.ca, &next).filter(|_| waiting),
        }))
    }

    type ReadLedgerStream = Pin<Box<dyn Stream<Item = Result<pb::LedgerRecord, Status>> + Send>>;

    async fn read_ledger(
        &self,
        request: Request<pb::ReadLedgerRequest>,
    ) -> Result<Response<Self::ReadLedgerStream>, Status> {
        let kept = self.ca.ledger.kept().await;
        if kept.is_empty() {
            return Err(Status::failed_precondition(
                "this replica has no directory: its ledger goes to its standard output, from where `ledger list` and `ledger \
                 verify` read it (kubectl logs POD | postern-ca ledger verify - --key-record PATH)",
            ));
        }
        Ok(Response::new(Box::pin(ledger::stream(kept, request.into_inner()))))
    }

    async fn status(&self, _request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let authority = self.ca.authority();
        let reports = self.ca.acknowledged.reports().into_iter();
        Ok(Response::new(pb::StatusResponse {
            trust_domain: authority.trust_domain().to_string(),
            bundle_sequence: authority.bundle().sequence(),
            issuer_epoch: authority.issuer_epoch(),
            issuer_not_after_unix: unix(authority.issuer_not_after()),
            root_not_after_unix: unix(authority.root_not_after()),
            issued: self.ca.metrics.total_issued(),
            refused: self.ca.metrics.total_refused(),
            svid_life_seconds: seconds(self.ca.svid_life),
            root_rotation: rotation_of(&self.ca, &authority),
            bundle_reports: reports.map(report_of).collect(),
            root_sha256: hex(&authority.root_sha256()),
            root_acknowledge_seconds: seconds(self.ca.root_pace().acknowledge),
            root_retire_seconds: seconds(self.ca.root_pace().retire),
            brought_issuer: self.ca.mounted.as_ref().map(brought_of),
        }))
    }

    async fn add_quarantine(
        &self,
        request: Request<pb::AddQuarantineRequest>,
    ) -> Result<Response<pb::QuarantineState>, Status> {
        quarantine::add(&self.ca, request.into_inner()).await.map(Response::new)
    }

    async fn lift_quarantine(
        &self,
        request: Request<pb::LiftQuarantineRequest>,
    ) -> Result<Response<pb::QuarantineState>, Status> {
        quarantine::lift(&self.ca, request.into_inner(), "the operator of the admin socket")
            .await
            .map(Response::new)
    }

    async fn list_quarantine(
        &self,
        _request: Request<pb::ListQuarantineRequest>,
    ) -> Result<Response<pb::QuarantineState>, Status> {
        Ok(Response::new(self.ca.quarantine().state(false)))
    }
}

/// A fault of what was handed in, or of the state that it met.
fn not_brought(error: &RotationError) -> Status {
    let text = crate::error_chain(error);
    match error {
        RotationError::Brought(_) | RotationError::Older(_) => Status::invalid_argument(text),
        RotationError::Mounted(_)
        | RotationError::OwnRoot(_)
        | RotationError::NothingRequested
        | RotationError::Waits(_) => Status::failed_precondition(text),
        #[cfg(feature = "kubernetes")]
        RotationError::Shared => Status::failed_precondition(text),
        _ => Status::from(Refusal::new(RefusalReason::Store, text)),
    }
}

fn brought_of(mounted: &Mounted) -> pb::BroughtIssuer {
    let (state, why) = match mounted.told() {
        None => ("", String::new()),
        Some(Told::InForce) => ("in_force", String::new()),
        Some(Told::Waiting(stage)) => (
            "waiting",
            format!("the root is being replaced, and that is {}", stage.as_str()),
        ),
        Some(Told::Refused(why, _)) => ("refused", why),
    };
    pb::BroughtIssuer {
        directory: mounted.dir.path().display().to_string(),
        state: state.to_owned(),
        why,
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

fn rotation_of(ca: &Ca, authority: &Authority) -> Option<pb::RootRotation> {
    let (rotation, stage) = authority.root_stage()?;
    let shown = |unix: Option<u64>| unix.map_or(0, |unix| i64::try_from(unix).unwrap_or(i64::MAX));
    let begun = |stages: &[Stage], unix: Option<u64>| shown(unix.filter(|_| stages.contains(&stage)));
    let published = rotation.published().map(|mark| mark.unix);
    let activated = rotation.activated().map(|mark| mark.unix);
    Some(pb::RootRotation {
        stage: stage.as_str().to_owned(),
        tainted: rotation.is_tainted(),
        old_root_sha256: hex(&sha256(&rotation.old_root())),
        new_root_sha256: hex(&sha256(&rotation.new_root())),
        prepared_unix: shown(Some(rotation.prepared_unix())),
        // The record goes ahead of what it announces: a stage counts once it is reached.
        published_unix: begun(&[Stage::Published, Stage::Activated, Stage::Retired], published),
        activated_unix: begun(&[Stage::Activated, Stage::Retired], activated),
        retired_unix: begun(&[Stage::Retired], rotation.retired_unix()),
        next_unix: ca.root_next(authority).map_or(0, unix),
        awaited_sequence: rotation.awaited(stage).unwrap_or(0),
    })
}

fn report_of((control, report): (String, Option<Report>)) -> pb::BundleReport {
    pb::BundleReport {
        control,
        lowest_sequence: report.map_or(0, |report| report.lowest_sequence),
        proxies: report.map_or(0, |report| report.proxies),
        reports: report.is_some(),
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
