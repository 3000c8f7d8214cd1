//! Asking real ext_authz servers over real sockets: every failure is one, in time.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use postern_authorizer::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use postern_authorizer::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use postern_authorizer::google::rpc::Status;
use postern_authorizer::{Address, AuthorizationClient, Check, Failure, Http, Peer, Verdict};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};

type Answer = fn() -> Result<CheckResponse, tonic::Status>;

struct Server {
    answer: Option<Answer>,
    asked: Arc<Mutex<Vec<CheckRequest>>>,
}

#[tonic::async_trait]
impl Authorization for Server {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        self.asked.lock().unwrap().push(request.into_inner());
        match self.answer {
            Some(answer) => answer().map(tonic::Response::new),
            None => std::future::pending().await,
        }
    }
}

fn ok() -> Result<CheckResponse, tonic::Status> {
    Ok(CheckResponse {
        status: Some(Status::default()),
        http_response: None,
    })
}

fn check() -> Check {
    Check {
        source: Peer {
            address: Some("[2001:db8::1]:4711".parse().unwrap()),
            principal: Some("spiffe://td/ns/a/sa/b".into()),
        },
        destination: Peer::default(),
        time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
        http: Some(Http {
            id: "1".into(),
            method: "GET".into(),
            headers: [("a".to_owned(), "b".to_owned())].into(),
            path: "/?x".into(),
            host: "h".into(),
            scheme: "https",
            protocol: "HTTP/2",
            size: 0,
            body: None,
        }),
        sni: None,
        context: BTreeMap::new(),
        facts: serde_json::json!({"n": 1, "l": [true, null]})
            .as_object()
            .unwrap()
            .clone(),
    }
}

/// A server on a port of its own, and what it was asked.
async fn serve(answer: Option<Answer>) -> (String, Arc<Mutex<Vec<CheckRequest>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::default();
    let server = Server {
        answer,
        asked: Arc::clone(&asked),
    };
    let service = tonic::transport::Server::builder().add_service(AuthorizationServer::new(server));
    tokio::spawn(service.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, asked)
}

async fn ask(address: &str) -> Result<Verdict, Failure> {
    AuthorizationClient::plain(Address::Tcp(address.to_owned()), Duration::from_secs(5))
        .decide(&check())
        .await
}

#[tokio::test]
async fn a_server_is_told_the_whole_question_and_its_ok_allows() {
    let (address, asked) = serve(Some(ok)).await;
    assert!(matches!(ask(&address).await, Ok(Verdict::Allow(_))));
    let asked = asked.lock().unwrap().pop().unwrap();
    assert_eq!(asked, check().message());
    let attributes = asked.attributes.unwrap();
    assert_eq!(attributes.source.unwrap().principal, "spiffe://td/ns/a/sa/b");
    let request = attributes.request.unwrap();
    assert_eq!(
        (request.time.unwrap().seconds, request.http.unwrap().protocol.as_str()),
        (1, "HTTP/2")
    );
}

#[tokio::test]
async fn a_server_on_a_unix_socket_is_asked_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("authz.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = Server {
        answer: Some(ok),
        asked: Arc::default(),
    };
    let service = tonic::transport::Server::builder().add_service(AuthorizationServer::new(server));
    tokio::spawn(service.serve_with_incoming(UnixListenerStream::new(listener)));
    let client = AuthorizationClient::plain(Address::Unix(path), Duration::from_secs(5));
    assert!(matches!(client.decide(&check()).await, Ok(Verdict::Allow(_))));
}

#[tokio::test]
async fn every_way_in_which_a_server_fails_is_a_failure() {
    let (no_status, _) = serve(Some(|| Ok(CheckResponse::default()))).await;
    assert_eq!(ask(&no_status).await, Err(Failure::NoStatus));
    let (unknown, _) = serve(Some(|| Err(tonic::Status::unknown("no")))).await;
    assert_eq!(ask(&unknown).await, Err(Failure::Grpc(2)));
    let (large, _) = serve(Some(|| {
        let status = Status {
            code: 0,
            message: "x".repeat(200 * 1024),
        };
        Ok(CheckResponse {
            status: Some(status),
            http_response: None,
        })
    }))
    .await;
    assert!(matches!(ask(&large).await, Err(Failure::Grpc(_))));
    // Nobody there.
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    assert_eq!(ask(&closed).await, Err(Failure::Unreachable));
    // Somebody who does not speak HTTP/2, and hangs up.
    let odd = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = odd.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = odd.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 200 OK\r\n\r\n").await;
        }
    });
    assert_eq!(ask(&address).await, Err(Failure::Unreachable));
}

#[tokio::test]
async fn a_server_that_says_nothing_is_waited_for_as_long_as_the_deadline() {
    let (silent, _) = serve(None).await;
    let deadline = Duration::from_millis(50);
    let client = AuthorizationClient::plain(Address::Tcp(silent), deadline);
    assert_eq!(client.decide(&check()).await, Err(Failure::Timeout));
    // Accepts, and never speaks.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = AuthorizationClient::plain(Address::Tcp(mute.local_addr().unwrap().to_string()), deadline);
    assert_eq!(client.decide(&check()).await, Err(Failure::Timeout));
}

#[tokio::test]
async fn a_server_that_comes_back_is_asked_again_over_the_same_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = AuthorizationClient::plain(Address::Tcp(address.to_string()), Duration::from_secs(5));
    assert_eq!(client.decide(&check()).await, Err(Failure::Unreachable));
    let listener = TcpListener::bind(address).await.unwrap();
    let server = Server {
        answer: Some(ok),
        asked: Arc::default(),
    };
    let service = tonic::transport::Server::builder().add_service(AuthorizationServer::new(server));
    tokio::spawn(service.serve_with_incoming(TcpListenerStream::new(listener)));
    assert!(matches!(client.decide(&check()).await, Ok(Verdict::Allow(_))));
}
