#![allow(clippy::unwrap_used)]
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::bounds::MAX_PER_ADDRESS;
use super::*;
use crate::exposition::foreign::Part;

struct Extra;

impl More for Extra {
    fn answer(&self, request: &Parts) -> Option<Pending> {
        match request.uri.path() {
            "/extra" => Some(Box::pin(async { Ok((StatusCode::OK, "more\n".to_owned())) })),
            "/hang-up" => Some(Box::pin(async { Err(HangUp) })),
            _ => None,
        }
    }
    fn longest(&self) -> Duration {
        Duration::from_secs(1)
    }
}

struct App(Option<Part>, AtomicUsize);

impl Foreign for App {
    fn scrape(&self, _: Format) -> Pin<Box<dyn Future<Output = Option<Part>> + Send + '_>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { self.0.clone() })
    }
}

fn endpoint() -> Endpoint {
    let mut registry = Registry::default();
    let counter = prometheus_client::metrics::counter::Counter::<u64>::default();
    registry.register("postern_things", "Things", counter);
    Endpoint::new(registry, Arc::new(|| Err("not yet".into())), || {})
}

async fn served(endpoint: Endpoint) -> SocketAddr {
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(endpoint.serve(listener));
    address
}

async fn ask(at: SocketAddr, request: &str) -> String {
    let mut socket = TcpStream::connect(at).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // What the endpoint refuses it may also reset.
    let _ = socket.read_to_string(&mut answer).await;
    answer
}

async fn get(at: SocketAddr, path: &str, more: &str) -> String {
    ask(
        at,
        &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}\r\n"),
    )
    .await
}

fn part(format: Format, body: &'static str) -> Arc<App> {
    let body = Bytes::from_static(body.as_bytes());
    Arc::new(App(Some(Part { format, body }), AtomicUsize::new(0)))
}

#[tokio::test]
async fn what_is_switched_off_or_unknown_is_404_and_only_get_is_served() {
    let at = served(endpoint().without_liveness().and(Arc::new(Extra))).await;
    for (path, status) in [
        ("/metrics", "200"),
        ("/readyz", "503"),
        ("/livez", "404"),
        ("/extra", "200"),
        ("/extra/", "404"),
        ("/", "404"),
        ("/hang-up", ""),
    ] {
        let answer = get(at, path, "").await;
        let got = answer.split(' ').nth(1).unwrap_or_default();
        assert_eq!(got, status, "{path}: {answer}");
    }
    assert!(
        ask(at, "POST /extra HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 405")
    );
    let at = served(endpoint().without_metrics()).await;
    assert!(get(at, "/metrics", "").await.starts_with("HTTP/1.1 404"));
    assert!(get(at, "/livez", "").await.starts_with("HTTP/1.1 200"));
    let at = served(endpoint().and(Arc::new(Extra)).only_metrics()).await;
    for path in ["/readyz", "/livez", "/extra"] {
        assert!(get(at, path, "").await.starts_with("HTTP/1.1 404"), "{path}");
    }
    assert!(get(at, "/metrics", "").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn two_sources_of_metrics_make_one_answer_with_one_end_in_the_format_that_both_have() {
    let wants = "accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let at = served(endpoint().with_foreign(part(Format::OpenMetrics, "app_total 1\n"))).await;
    let answer = get(at, "/metrics", wants).await;
    assert!(answer.contains("application/openmetrics-text"), "{answer}");
    assert!(
        answer.ends_with("postern_things_total 0\napp_total 1\n# EOF\n"),
        "{answer}"
    );
    assert_eq!(answer.matches("# EOF").count(), 1);

    let at = served(endpoint().with_foreign(part(Format::Text, "app 1\n"))).await;
    let answer = get(at, "/metrics", wants).await;
    assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
    assert!(
        answer.ends_with("# TYPE postern_things_total counter\npostern_things_total 0\napp 1\n"),
        "{answer}"
    );

    let nothing = Arc::new(App(None, AtomicUsize::new(0)));
    let at = served(endpoint().with_foreign(nothing)).await;
    let answer = get(at, "/metrics", wants).await;
    assert!(answer.ends_with("postern_things_total 0\n# EOF\n"), "{answer}");
}

#[tokio::test]
async fn one_address_has_a_bounded_number_of_connections_and_gets_them_back() {
    let at = served(endpoint()).await;
    let mut held = Vec::new();
    for _ in 0..MAX_PER_ADDRESS {
        held.push(TcpStream::connect(at).await.unwrap());
    }
    assert_eq!(get(at, "/readyz", "").await, "", "one past the bound is closed");
    held.clear();
    while !get(at, "/readyz", "").await.starts_with("HTTP/1.1 503") {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_head_past_its_bound_is_refused() {
    let at = served(endpoint()).await;
    let long = |n| format!("x-long: {}\r\n", "a".repeat(n));
    assert!(
        get(at, "/readyz", &long(MAX_HEAD / 2))
            .await
            .starts_with("HTTP/1.1 503")
    );
    let answer = get(at, "/readyz", &long(MAX_HEAD + 1)).await;
    assert!(!answer.starts_with("HTTP/1.1 503"), "{answer}");
}

#[tokio::test]
async fn everywhere_means_both_families_or_the_one_that_is_there() {
    let listener = bind("[::]:0".parse().unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_ok());
}
