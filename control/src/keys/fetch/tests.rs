//! Against servers that answer as they please.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Mutex;

use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const SET: &str = r#"{"keys":[]}"#;

/// Answers each request with what `answer` says to its target; notes the heads.
struct Server {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(tls: Option<TlsAcceptor>, answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heads);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                match &tls {
                    None => serve(stream, &answer, &noted).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            serve(stream, &answer, &noted).await;
                        }
                    }
                }
            }
        });
        Self { address, heads }
    }

    fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    answer: &impl Fn(&str) -> String,
    heads: &Mutex<Vec<String>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let answer = answer(head.split(' ').nth(1).unwrap());
    heads.lock().unwrap().push(head);
    // The client may have heard enough.
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn to(location: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")
}

fn fetcher(allowed: &[&str], roots: Option<&Path>) -> Fetcher {
    Fetcher::new(&FetchConfig {
        allowed: allowed.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        roots: roots.map(Path::to_path_buf),
        ..FetchConfig::default()
    })
    .unwrap()
}

#[tokio::test]
async fn a_key_set_is_fetched_as_it_is() {
    let server = Server::start(None, |_| ok(SET)).await;
    let keys = fetcher(&["127.0.0.0/8"], None)
        .keys(&server.uri("/jwks?a=b"))
        .await
        .unwrap();
    assert_eq!(keys, SET.as_bytes());
    let heads = server.heads.lock().unwrap();
    assert!(heads[0].starts_with("GET /jwks?a=b HTTP/1.1\r\n"), "{heads:?}");
    assert!(heads[0].contains(&format!("host: {}\r\n", server.address)), "{heads:?}");
}

#[tokio::test]
async fn t_ssrf_what_is_not_allowed_is_not_called_by_address_name_or_redirect() {
    let server = Server::start(None, |path| match path {
        "/away" => to("http://localhost:1/jwks"),
        "/metadata" => to("http://169.254.169.254/latest"),
        "/scheme" => to("file:///etc/passwd"),
        "/user" => to("http://mallory@127.0.0.1/"),
        "/slashes" => to("//169.254.169.254/"),
        "/none" => to(""),
        "/round" => to("/round"),
        _ => ok(SET),
    })
    .await;
    let port = server.address.port();
    let strict = fetcher(&[], None);
    for uri in [
        server.uri("/jwks"),
        format!("http://localhost:{port}/jwks"),
        format!("http://[::ffff:127.0.0.1]:{port}/jwks"),
        format!("https://127.0.0.1:{port}/jwks"),
        format!("discovery:http://127.0.0.1:{port}"),
        "http://169.254.169.254/latest".to_owned(),
        "http://0.0.0.0:1/".to_owned(),
    ] {
        assert!(
            matches!(strict.keys(&uri).await, Err(FetchError::Forbidden { .. })),
            "{uri}"
        );
    }
    assert!(server.heads.lock().unwrap().is_empty(), "nobody was called");
    let open = fetcher(&["127.0.0.0/8", "::1"], None);
    for path in ["/away", "/metadata", "/scheme", "/user", "/slashes", "/none", "/round"] {
        let refused = open.keys(&server.uri(path)).await;
        assert!(
            matches!(refused, Err(FetchError::Redirect { .. })),
            "{path}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn t_ssrf_over_clear_http_only_allowed_addresses_are_called() {
    // Nothing is sent there: it is judged by its address.
    let refused = fetcher(&[], None).keys("http://1.1.1.1/jwks").await;
    assert!(matches!(refused, Err(FetchError::Clear { .. })), "{refused:?}");
    for odd in ["ftp://1.1.1.1/", "1.1.1.1", "", "/etc/passwd", "http://"] {
        assert!(
            matches!(fetcher(&[], None).keys(odd).await, Err(FetchError::Uri(_))),
            "{odd}"
        );
    }
}

#[tokio::test]
async fn a_redirect_within_the_host_is_followed() {
    let server = Server::start(None, |path| if path == "/old" { to("/new?x") } else { ok(path) }).await;
    let keys = fetcher(&["127.0.0.1"], None).keys(&server.uri("/old")).await.unwrap();
    assert_eq!(keys, b"/new?x");
}

#[tokio::test]
async fn an_answer_is_bounded_and_anything_but_200_is_none() {
    let server = Server::start(None, |path| match path {
        "/long" => ok(&"x".repeat(MAX_SET + 1)),
        "/most" => ok(&"x".repeat(MAX_SET)),
        "/endless" => format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}",
            "1\r\nx\r\n".repeat(MAX_SET + 1)
        ),
        "/cut" => "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nx".to_owned(),
        "/gone" => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "/empty" => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        _ => "no HTTP at all\r\n\r\n".to_owned(),
    })
    .await;
    let open = fetcher(&["127.0.0.1"], None);
    assert_eq!(open.keys(&server.uri("/most")).await.unwrap().len(), MAX_SET);
    for path in ["/long", "/endless", "/cut"] {
        let refused = open.keys(&server.uri(path)).await;
        assert!(matches!(refused, Err(FetchError::Body { .. })), "{path}: {refused:?}");
    }
    for path in ["/gone", "/empty"] {
        assert!(
            matches!(open.keys(&server.uri(path)).await, Err(FetchError::Status { .. })),
            "{path}"
        );
    }
    assert!(matches!(
        open.keys(&server.uri("/odd")).await,
        Err(FetchError::Http { .. })
    ));
}

#[tokio::test]
async fn an_issuer_says_where_its_keys_are() {
    let address = Arc::new(Mutex::new(String::new()));
    let own = Arc::clone(&address);
    let server = Server::start(None, move |path| match path {
        "/realm/.well-known/openid-configuration" => {
            let own = own.lock().unwrap();
            ok(&format!(r#"{{"issuer":"{own}/realm","jwks_uri":"{own}/keys"}}"#))
        }
        "/.well-known/openid-configuration" => {
            ok(r#"{"issuer":"https://other.test","jwks_uri":"https://other.test/keys"}"#)
        }
        "/keys" => ok(SET),
        other => ok(other),
    })
    .await;
    address.lock().unwrap().push_str(&server.uri(""));
    let open = fetcher(&["127.0.0.1"], None);
    let keys = open.keys(&format!("discovery:{}", server.uri("/realm"))).await.unwrap();
    assert_eq!(keys, SET.as_bytes());
    let other = open.keys(&format!("discovery:{}", server.uri(""))).await;
    assert!(matches!(other, Err(FetchError::Discovery { .. })), "{other:?}");
}

#[tokio::test]
async fn the_providers_certificate_is_verified_against_the_roots_that_were_given() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap();
    let issuer = Issuer::from_params(&params, &key);
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der())),
        )
        .unwrap();
    let server = Server::start(Some(TlsAcceptor::from(Arc::new(config))), |_| ok(SET)).await;
    let directory = tempfile::tempdir().unwrap();
    let roots = directory.path().join("roots.pem");
    std::fs::write(&roots, root.pem()).unwrap();
    let uri = format!("https://localhost:{}/jwks", server.address.port());
    let allowed = ["127.0.0.1", "::1"];
    assert_eq!(
        fetcher(&allowed, Some(&roots)).keys(&uri).await.unwrap(),
        SET.as_bytes()
    );
    let stranger = fetcher(&allowed, None).keys(&uri).await;
    assert!(matches!(stranger, Err(FetchError::Connect { .. })), "{stranger:?}");
    // Its certificate names no address.
    let by_address = fetcher(&allowed, Some(&roots))
        .keys(&uri.replace("localhost", "127.0.0.1"))
        .await;
    assert!(matches!(by_address, Err(FetchError::Connect { .. })), "{by_address:?}");
    std::fs::write(&roots, "no certificate").unwrap();
    let config = FetchConfig {
        roots: Some(roots),
        ..FetchConfig::default()
    };
    assert!(Fetcher::new(&config).is_err());
}

#[tokio::test]
async fn who_never_answers_is_given_up_by_the_callers_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}/jwks", listener.local_addr().unwrap());
    let open = fetcher(&["127.0.0.1"], None);
    let given_up = tokio::time::timeout(Duration::from_millis(50), open.keys(&uri)).await;
    assert!(given_up.is_err());
}
