//! Against a CA that is stuck.

#![allow(clippy::unwrap_used)]

use std::pin::Pin;

use futures_util::Stream;
use pb::certificate_authority_server::{CertificateAuthority, CertificateAuthorityServer};
use postern_identity::{SharedTrust, TrustDomain};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::*;
use crate::mesh::Mesh;
use crate::metrics::Metrics;
use authority::Authority;

#[allow(dead_code)] // The streams' tests use more of it.
#[path = "../../tests/streams/world/authority.rs"]
mod authority;

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

/// Its connection lives; its answer never comes, or (`opens`) nothing after its headers.
struct Stuck {
    opens: bool,
}

#[tonic::async_trait]
impl CertificateAuthority for Stuck {
    type WatchBundleStream = Pin<Box<dyn Stream<Item = Result<pb::BundleUpdate, Status>> + Send>>;

    async fn issue(&self, _: Request<pb::IssueRequest>) -> Result<Response<pb::IssueResponse>, Status> {
        Err(Status::unimplemented("not asked"))
    }
    async fn issue_jwt(&self, _: Request<pb::IssueJwtRequest>) -> Result<Response<pb::IssueJwtResponse>, Status> {
        Err(Status::unimplemented("not asked"))
    }
    async fn watch_bundle(
        &self,
        _: Request<pb::WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        if self.opens {
            return Ok(Response::new(Box::pin(futures_util::stream::pending())));
        }
        std::future::pending().await
    }
    async fn report_bundle(
        &self,
        _: Request<pb::ReportBundleRequest>,
    ) -> Result<Response<pb::ReportBundleResponse>, Status> {
        Err(Status::unimplemented("not asked"))
    }
    async fn operate_quarantine(
        &self,
        _: Request<pb::OperateQuarantineRequest>,
    ) -> Result<Response<pb::QuarantineState>, Status> {
        Err(Status::unimplemented("not asked"))
    }
}

async fn opening(opens: bool) -> StreamError {
    let authority = Authority::new();
    let trust = SharedTrust::default();
    trust_bundle(&trust, &authority.bundle());
    let own = |id: postern_identity::SpiffeId| {
        let svid = authority.svid(id.as_str(), None, 3600);
        Own::new(svid, Arc::clone(&trust)).unwrap()
    };
    let of_ca = own(ca_client::ca_id(&domain()).unwrap());
    let of_control = own(ca_client::control_id(&domain()).unwrap());

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = transport::incoming(listener, move || of_ca.server(), Arc::clone(&trust), |_| {});
    let ca = Server::builder()
        .add_service(CertificateAuthorityServer::new(Stuck { opens }))
        .serve_with_incoming(incoming);
    let hub = Hub::new(Mesh::named(domain()), trust, Metrics::default());
    let mut backoff = Backoff::up_to(LONGEST_WAIT);
    let patient = timeout(OPENING_DEADLINE * 3, stream(&hub, &of_control, &address, &mut backoff));
    tokio::select! {
        _ = ca => panic!("the CA ended"),
        outcome = patient => outcome.expect("it has a deadline").err().unwrap(),
    }
}

/// Control waited for ever, and said nothing.
#[tokio::test]
async fn a_ca_that_is_stuck_is_given_up_within_the_deadline() {
    let (silent, headers_alone) = tokio::join!(opening(false), opening(true));
    for error in [silent, headers_alone] {
        assert!(matches!(error, StreamError::TooSlow), "{error:?}");
    }
}
