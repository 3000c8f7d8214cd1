//! Apps to probe: each answers every connection in one way, and keeps what it was asked.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub(super) struct App {
    pub(super) port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl App {
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Answers each head with what `answer` makes of it, which is not ended if it ends in `...`.
    pub(super) async fn http(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::serving(None, answer).await
    }

    /// The same in TLS of one version, with a certificate that nobody issued.
    pub(super) async fn https(
        version: &'static rustls::SupportedProtocolVersion,
        answer: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        let made = rcgen::generate_simple_self_signed(["nobody.invalid".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        Self::serving(Some(TlsAcceptor::from(Arc::new(config))), answer).await
    }

    async fn serving(tls: Option<TlsAcceptor>, answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (heard, answer) = (Arc::clone(&asked), Arc::new(answer));
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (heard, answer, tls) = (Arc::clone(&heard), Arc::clone(&answer), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => converse(socket, &heard, &*answer).await,
                        Some(tls) => converse(tls.accept(socket).await.unwrap(), &heard, &*answer).await,
                    }
                });
            }
        });
        Self { port, asked }
    }

    /// A gRPC health server: `status` as its answer's number, or as the gRPC error.
    pub(super) async fn grpc(status: Result<u8, u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let heard = Arc::clone(&heard);
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(socket).await.unwrap();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let (head, mut body) = request.into_parts();
                        heard.lock().unwrap().push(format!("{:?} {:?}", head.uri, head.headers));
                        // The body comes while the connection is driven.
                        tokio::spawn(async move {
                            while let Some(Ok(_)) = body.data().await {}
                            let head = ::http::Response::builder().header("content-type", "application/grpc");
                            let end = |code: u8| {
                                let mut trailers = ::http::HeaderMap::new();
                                trailers.insert("grpc-status", u16::from(code).into());
                                trailers
                            };
                            match status {
                                Ok(status) => {
                                    let mut send = respond.send_response(head.body(()).unwrap(), false).unwrap();
                                    let message = [0, 0, 0, 0, 2, 8, status];
                                    send.send_data(Bytes::copy_from_slice(&message), false).unwrap();
                                    send.send_trailers(end(0)).unwrap();
                                }
                                Err(code) => {
                                    let head = head.header("grpc-status", u16::from(code));
                                    respond.send_response(head.body(()).unwrap(), true).unwrap();
                                }
                            }
                        });
                    }
                });
            }
        });
        Self { port, asked }
    }
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    heard: &Mutex<Vec<String>>,
    answer: &(dyn Fn(&str) -> String + Send + Sync),
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    heard.lock().unwrap().push(head.clone());
    let answer = answer(&head);
    let (text, held) = match answer.strip_suffix("...") {
        Some(text) => (text, true),
        None => (answer.as_str(), false),
    };
    let _ = stream.write_all(text.as_bytes()).await;
    if held {
        std::future::pending::<()>().await;
    }
    let _ = stream.shutdown().await;
}

/// A whole answer without a body.
pub(super) fn status(status: u16, more: &str) -> String {
    format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n{more}\r\n")
}
