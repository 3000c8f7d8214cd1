#![allow(clippy::unwrap_used)]
use std::sync::atomic::AtomicUsize;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// An app that answers every request with these bytes; and how many it got.
async fn app(answer: impl Into<Vec<u8>>) -> (Arc<AppMetrics>, Arc<AtomicUsize>) {
    let (answer, asked) = (answer.into(), Arc::new(AtomicUsize::new(0)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let answer = answer.clone();
            tokio::spawn(async move {
                let _ = socket.read(&mut [0; 4096]).await;
                let _ = socket.write_all(&answer).await;
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    let text = format!(r#"{{"port":{port},"path":"/metrics","scheme":"http"}}"#);
    let metrics = AppMetrics::parse(&text, "127.0.0.1".parse().unwrap(), Arc::default()).unwrap();
    (Arc::new(metrics), asked)
}

fn answer(more: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{more}\r\n{body}")
}

fn shown(app: &AppMetrics) -> String {
    postern_telemetry::exposition::render(&app.metrics.registry(), Format::Text)
}

#[tokio::test]
async fn the_apps_lines_are_given_in_the_format_that_it_speaks() {
    let (app, _) = app(answer("", "# TYPE a counter\na 1\npostern_x 2\n")).await;
    for wanted in [Format::Text, Format::OpenMetrics] {
        let part = app.part(wanted).await.unwrap();
        assert_eq!(
            (part.format, &*part.body),
            (Format::Text, &b"# TYPE a counter\na 1\n"[..])
        );
    }
    assert!(
        shown(&app).contains("\npostern_app_scrape_dropped_samples_total 2\n"),
        "{}",
        shown(&app)
    );
    let open_metrics = "content-type: application/openmetrics-text; version=1.0.0\r\n";
    let (app, _) = self::app(answer(open_metrics, "# TYPE a counter\na_total 1 2\n# EOF\n")).await;
    let part = app.part(Format::OpenMetrics).await.unwrap();
    assert_eq!(
        (part.format, &*part.body),
        (Format::OpenMetrics, &b"# TYPE a counter\na_total 1 2\n"[..])
    );
    let part = app.part(Format::Text).await.unwrap();
    assert_eq!(
        (part.format, &*part.body),
        (Format::Text, &b"# TYPE a_total counter\na_total 1 2000\n"[..])
    );
}

#[tokio::test]
async fn an_app_that_fails_costs_a_count_by_its_reason_and_nothing_of_ours() {
    let large = |n: usize| format!("a{{x=\"{}\"}} 1\n", "x".repeat(n));
    for (given, reason) in [
        ("HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n".to_owned(), "status"),
        (answer("", "<html>\n"), "malformed"),
        (answer("content-encoding: gzip\r\n", "a 1\n"), "encoding"),
        (answer("", &large(MAX_EXPOSITION)), "too_large"),
        ("nonsense\r\n\r\n".to_owned(), "http"),
        (
            "HTTP/1.1 302 X\r\nlocation: http://[/\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "redirect",
        ),
    ] {
        let (app, _) = app(given).await;
        assert_eq!(app.part(Format::Text).await, None, "{reason}");
        let counted = format!("\npostern_app_scrape_failures_total{{reason=\"{reason}\"}} 1\n");
        assert!(shown(&app).contains(&counted), "{reason}: {}", shown(&app));
    }
    // At the bound it is read, beside the main thread.
    let (app, _) = app(answer("", &large(MAX_EXPOSITION - 10))).await;
    assert_eq!(app.part(Format::Text).await.unwrap().body.len(), MAX_EXPOSITION);
}

#[tokio::test]
async fn whoever_asks_within_a_second_shares_one_fetch_and_nothing_is_kept_longer() {
    let (app, asked) = app(answer("", "a 1\n")).await;
    let parts = futures_util::future::join_all((0..20).map(|_| app.part(Format::Text))).await;
    assert!(parts.iter().all(Option::is_some));
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    while app.kept.lock().await.is_some() {
        sleep(Duration::from_millis(20)).await;
    }
    assert!(app.part(Format::Text).await.is_some());
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn an_app_that_says_nothing_is_given_up_at_the_deadline() {
    let (app, _) = app("").await;
    let asked = tokio::spawn({
        let app = Arc::clone(&app);
        async move { app.part(Format::Text).await }
    });
    sleep(Duration::from_millis(50)).await;
    tokio::time::pause();
    assert_eq!(asked.await.unwrap(), None);
    assert!(shown(&app).contains("reason=\"timeout\""), "{}", shown(&app));
}
