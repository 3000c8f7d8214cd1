//! An ext_authz server that answers as a test says, and remembers what it was asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use postern_authorizer::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use postern_authorizer::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use postern_authorizer::envoy::service::auth::v3::check_response::HttpResponse;
use postern_authorizer::envoy::service::auth::v3::{
    CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse, attribute_context::HttpRequest,
};
use postern_authorizer::envoy::r#type::v3::HttpStatus;
use postern_authorizer::google::rpc::Status;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

/// What it says; `None`: nothing, ever.
pub type Says = Option<Result<CheckResponse, tonic::Status>>;

#[derive(Clone)]
pub struct Authorizer {
    pub address: SocketAddr,
    says: Arc<Mutex<Says>>,
    asked: Arc<Mutex<Vec<CheckRequest>>>,
}

struct Server(Authorizer);

#[tonic::async_trait]
impl Authorization for Server {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        self.0.asked.lock().unwrap().push(request.into_inner());
        let says = self.0.says.lock().unwrap().clone();
        match says {
            Some(answer) => answer.map(tonic::Response::new),
            None => std::future::pending().await,
        }
    }
}

impl Authorizer {
    pub async fn saying(says: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authorizer = Self {
            address: listener.local_addr().unwrap(),
            says: Arc::new(Mutex::new(says)),
            asked: Arc::default(),
        };
        let service = AuthorizationServer::new(Server(authorizer.clone()));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        authorizer
    }

    pub fn says(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }

    pub fn asked(&self) -> Vec<CheckRequest> {
        self.asked.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// The HTTP part of what it was asked last.
    pub fn http(&self) -> HttpRequest {
        let asked = self.asked().pop().unwrap();
        asked.attributes.unwrap().request.unwrap().http.unwrap()
    }
}

pub fn ok() -> Says {
    ok_with(OkHttpResponse::default())
}

pub fn ok_with(ok: OkHttpResponse) -> Says {
    Some(Ok(CheckResponse {
        status: Some(Status::default()),
        http_response: Some(HttpResponse::OkResponse(ok)),
    }))
}

pub fn no(status: i32, fields: &[(&str, &str)], body: &str) -> Says {
    Some(Ok(CheckResponse {
        status: Some(Status {
            code: 7,
            message: String::new(),
        }),
        http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus { code: status }),
            headers: fields.iter().map(|(name, value)| field(name, value)).collect(),
            body: body.to_owned(),
        })),
    }))
}

pub fn field(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            raw_value: Vec::new(),
        }),
        ..HeaderValueOption::default()
    }
}
