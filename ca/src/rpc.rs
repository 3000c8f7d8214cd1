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

use crate::issuance::Ca;
use crate::refusal::Refusal;

pub(crate) mod admin;
mod bundles;

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

    type WatchBundleStream = Pin<Box<dyn Stream<Item = Result<pb::BundleUpdate, Status>> + Send>>;

    async fn watch_bundle(
        &self,
        request: Request<pb::WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        let control = self.control_of(&request).inspect_err(|refusal| {
            self.ca.refused(refusal, "none", address_of(&request));
        })?;
        let sequence = request.into_inner().bundle_sequence;
        let stream = bundles::stream(Arc::clone(&self.ca), control, sequence, self.down.clone());
        Ok(Response::new(Box::pin(stream)))
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
            Some(peer) if *peer.id() == wanted => Ok(peer),
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
