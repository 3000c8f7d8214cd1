//! The gRPC service (SPIFFE Workload API, SPIFFE Workload Endpoint).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use postern_api::workload_api as pb;
use postern_api::workload_api::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use postern_token::svid;
use rustls::pki_types::UnixTime;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};
use zeroize::Zeroizing;

use super::socket::{Caller, Callers, incoming};
use super::{Material, Offer, Tokens, answers};
use crate::status::error_chain;

/// Every call carries it (SPIFFE Workload Endpoint section 6): a request that an app was tricked into sending does not.
const SECURITY_HEADER: &str = "workload.spiffe.io";
/// Streams on one connection; a client has two to four.
const MAX_STREAMS: u32 = 32;
/// Header lists of gRPC calls take a few hundred bytes.
const MAX_HEADER_LIST: u32 = 8 * 1024;
/// The largest request is a token to be validated.
const MAX_REQUEST: usize = 64 * 1024;
/// A silent connection is probed after this and closed after twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Serves for the life of the process.
pub(crate) async fn serve(
    listener: UnixListener,
    callers: Callers,
    offers: watch::Receiver<Arc<Offer>>,
    tokens: Tokens,
) {
    let service = SpiffeWorkloadApiServer::new(WorkloadApi { offers, tokens }).max_decoding_message_size(MAX_REQUEST);
    let served = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_LIST)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(InterceptedService::new(service, admitted))
        .serve_with_incoming(incoming(listener, callers))
        .await;
    if let Err(error) = served {
        tracing::error!("the Workload API's socket ended: {}", error_chain(&error));
    }
}

/// First of all, and for every method.
pub(super) fn admitted(request: Request<()>) -> Result<Request<()>, Status> {
    let mut values = request.metadata().get_all(SECURITY_HEADER).iter();
    if !matches!((values.next(), values.next()), (Some(value), None) if value == "true") {
        return Err(Status::invalid_argument(
            "security header missing from request: metadata `workload.spiffe.io: true`",
        ));
    }
    match request.extensions().get::<Caller>().map(|caller| &caller.admitted) {
        Some(Ok(())) => Ok(request),
        Some(Err(uid)) => Err(Status::permission_denied(format!(
            "user {uid} is not served here: see --workload-api-uid"
        ))),
        None => Err(Status::permission_denied("it is not known whose process calls")),
    }
}

struct WorkloadApi {
    offers: watch::Receiver<Arc<Offer>>,
    tokens: Tokens,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Answers<pb::X509svidResponse>;
    async fn fetch_x509svid(
        &self,
        _: Request<pb::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        Ok(Response::new(self.follow(answers::x509_svid, |a, b| {
            a.has_the_svid_of(b) && a.has_the_roots_of(b)
        })))
    }

    type FetchX509BundlesStream = Answers<pb::X509BundlesResponse>;
    async fn fetch_x509_bundles(
        &self,
        _: Request<pb::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Ok(Response::new(
            self.follow(answers::x509_bundles, Material::has_the_roots_of),
        ))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<pb::JwtsvidRequest>,
    ) -> Result<Response<pb::JwtsvidResponse>, Status> {
        let pb::JwtsvidRequest { audience, spiffe_id } = request.into_inner();
        if audience.is_empty() || audience.iter().any(String::is_empty) {
            return Err(Status::invalid_argument(
                "a JWT-SVID is for at least one audience, and none is empty",
            ));
        }
        let own = self.now(|material| material.svid.id().to_string())?;
        if !spiffe_id.is_empty() && spiffe_id != own {
            return Err(Status::permission_denied(format!(
                "this workload is {own} and nobody else"
            )));
        }
        let token = self.tokens.get(&audience).await?;
        let svid = pb::Jwtsvid {
            spiffe_id: own,
            svid: token.to_string(),
            hint: String::new(),
        };
        Ok(Response::new(pb::JwtsvidResponse { svids: vec![svid] }))
    }

    type FetchJWTBundlesStream = Answers<pb::JwtBundlesResponse>;
    async fn fetch_jwt_bundles(
        &self,
        _: Request<pb::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Ok(Response::new(
            self.follow(answers::jwt_bundles, Material::has_the_jwt_keys_of),
        ))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<pb::ValidateJwtsvidRequest>,
    ) -> Result<Response<pb::ValidateJwtsvidResponse>, Status> {
        let pb::ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        let token = Zeroizing::new(svid);
        if audience.is_empty() || token.is_empty() {
            return Err(Status::invalid_argument(
                "a JWT-SVID is validated for an audience: both are needed",
            ));
        }
        let (bundles, quarantined) = self.now(|material| (material.bundles.clone(), material.quarantined.clone()))?;
        let verified = svid::verify(&token, &audience, &bundles, UnixTime::now().as_secs())
            .map_err(|error| Status::invalid_argument(format!("not a valid JWT-SVID: {}", error_chain(&error))))?;
        if quarantined.contains(&verified.id) {
            return Err(Status::invalid_argument(
                "not a valid JWT-SVID: its identity is in quarantine",
            ));
        }
        Ok(Response::new(pb::ValidateJwtsvidResponse {
            spiffe_id: verified.id.to_string(),
            claims: Some(answers::structure(verified.claims)),
        }))
    }
}

impl WorkloadApi {
    /// Of what is held now.
    fn now<T>(&self, of: impl FnOnce(&Material) -> T) -> Result<T, Status> {
        match &**self.offers.borrow() {
            Offer::Held(material) => Ok(of(material)),
            Offer::Unavailable(why) => Err(Status::unavailable(why)),
            Offer::Denied(why) => Err(Status::permission_denied(why)),
        }
    }

    /// The first answer at once, then one for each revision in which it differs. Ends where there is nothing to tell.
    fn follow<T: Send + 'static>(
        &self,
        answer: fn(&Material) -> T,
        is_the_same: fn(&Material, &Material) -> bool,
    ) -> Answers<T> {
        let follower = Follower {
            offers: self.offers.clone(),
            answer,
            is_the_same,
            told: None,
            ended: false,
        };
        Box::pin(stream::unfold(follower, Follower::next))
    }
}

/// One stream's state.
struct Follower<T> {
    offers: watch::Receiver<Arc<Offer>>,
    answer: fn(&Material) -> T,
    /// Would the answer be?
    is_the_same: fn(&Material, &Material) -> bool,
    /// What the last answer was made of.
    told: Option<Arc<Offer>>,
    ended: bool,
}

impl<T> Follower<T> {
    async fn next(mut self) -> Option<(Result<T, Status>, Self)> {
        while !self.ended {
            let offer = Arc::clone(&self.offers.borrow_and_update());
            match &*offer {
                Offer::Held(material) => {
                    if !self.has_told(material) {
                        let answer = (self.answer)(material);
                        self.told = Some(offer);
                        return Some((Ok(answer), self));
                    }
                }
                Offer::Unavailable(why) => return Some((Err(self.end(Code::Unavailable, why)), self)),
                Offer::Denied(why) => return Some((Err(self.end(Code::PermissionDenied, why)), self)),
            }
            self.offers.changed().await.ok()?;
        }
        None
    }

    fn has_told(&self, material: &Material) -> bool {
        match self.told.as_deref() {
            Some(Offer::Held(told)) => (self.is_the_same)(told, material),
            Some(Offer::Unavailable(_) | Offer::Denied(_)) | None => false,
        }
    }

    fn end(&mut self, code: Code, why: &str) -> Status {
        self.ended = true;
        Status::new(code, why)
    }
}
