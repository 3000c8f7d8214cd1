//! The gRPC service that workloads and control call.

use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use postern_api::ca::v1 as pb;
use postern_api::ca::v1::certificate_authority_server::CertificateAuthority;
use postern_api::ca_client::control_id;
use postern_api::refusal::RefusalReason;
use postern_api::transport::Caller;
use postern_identity::VerifiedPeer;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use crate::issuance::Ca;
use crate::refusal::Refusal;

pub(crate) mod admin;
mod bundles;
mod quarantine;

/// Serves callers over TLS.
pub(crate) struct Issuing {
    pub(crate) ca: Arc<Ca>,
    /// True once the process is going down.
    pub(crate) down: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl CertificateAuthority for Issuing {
    async fn issue(&self, request: Request<pb::IssueRequest>) -> Result<Response<pb::IssueResponse>, Status> {
        let caller = address_of(&request);
        Ok(Response::new(self.ca.issue(request.into_inner(), caller).await?))
    }

    async fn issue_jwt(&self, request: Request<pb::IssueJwtRequest>) -> Result<Response<pb::IssueJwtResponse>, Status> {
        let caller = address_of(&request);
        let peer = request
            .extensions()
            .get::<Caller>()
            .and_then(|caller| caller.peer.clone());
        let answer = self.ca.issue_jwt(request.get_ref(), peer.as_ref(), caller).await?;
        Ok(Response::new(answer))
    }

    type WatchBundleStream = Pin<Box<dyn Stream<Item = Result<pb::BundleUpdate, Status>> + Send>>;

    async fn watch_bundle(
        &self,
        request: Request<pb::WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        let control = self.control_of(&request).inspect_err(|refusal| {
            self.ca.refused(refusal, "none", address_of(&request));
        })?;
        let pb::WatchBundleRequest {
            bundle_sequence: sequence,
            quarantine,
        } = request.into_inner();
        if let Some(held) = quarantine {
            self.ca.relearn_quarantine(&held.into()).await;
        }
        let stream = bundles::stream(Arc::clone(&self.ca), control, sequence, self.down.clone());
        Ok(Response::new(Box::pin(stream)))
    }

    async fn report_bundle(
        &self,
        request: Request<pb::ReportBundleRequest>,
    ) -> Result<Response<pb::ReportBundleResponse>, Status> {
        let control = self.control_of(&request).inspect_err(|refusal| {
            self.ca.refused(refusal, "none", address_of(&request));
        })?;
        let report = request.into_inner();
        let by = bundles::control_of(&control);
        self.ca.acknowledged.report(&by, report.lowest_sequence, report.proxies);
        Ok(Response::new(pb::ReportBundleResponse {}))
    }

    async fn operate_quarantine(
        &self,
        request: Request<pb::OperateQuarantineRequest>,
    ) -> Result<Response<pb::QuarantineState>, Status> {
        let caller = address_of(&request);
        let request = request.into_inner();
        let token = Zeroizing::new(request.operator_token);
        let allowed = self.ca.may_operate(&token, caller).await;
        allowed.inspect_err(|refusal| self.ca.refused(refusal, "operator_token", caller))?;
        quarantine::operated(&self.ca, request.operation)
            .await
            .map(Response::new)
    }
}

impl Issuing {
    /// Only control carries bundles.
    fn control_of<T>(&self, request: &Request<T>) -> Result<VerifiedPeer, Refusal> {
        let refuse = |message| Err(Refusal::new(RefusalReason::CallerIdentity, message));
        let wanted = control_id(self.ca.authority().trust_domain())
            .map_err(|error| Refusal::new(RefusalReason::Internal, error.to_string()))?;
        match request
            .extensions()
            .get::<Caller>()
            .and_then(|caller| caller.peer.clone())
        {
            // Not what stands beside it.
            Some(peer) if *peer.id() == wanted && !peer.is_app() => Ok(peer),
            Some(peer) => refuse(format!(
                "the bundle is streamed to {wanted} only, the caller is {}",
                peer.id()
            )),
            None => refuse(format!(
                "the bundle is streamed to {wanted} only, the caller showed no certificate"
            )),
        }
    }
}

fn address_of<T>(request: &Request<T>) -> IpAddr {
    request
        .extensions()
        .get::<Caller>()
        .map_or(Ipv4Addr::UNSPECIFIED.into(), |caller| caller.address.ip())
}
