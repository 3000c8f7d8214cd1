//! cart: HTTP/1.1, two pages, and two that are not counted (`/healthz`, `/metrics`). Its admin page is found by every spelling that a careless server accepts.

use std::convert::Infallible;
use std::io;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::canary::Canary;

/// The path of measurements without the mesh; not counted.
pub(crate) const DIRECT_PROBE: &str = "/direct-probe";

pub(crate) async fn serve(listener: TcpListener, canary: Canary) -> io::Result<()> {
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let canary = canary.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(&request, &canary))));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

fn answer(request: &Request<Incoming>, canary: &Canary) -> Response<Full<Bytes>> {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    if target == DIRECT_PROBE {
        return Response::new(Full::new(Bytes::from(items())));
    }
    let page = page(target);
    match page {
        "healthz" => return Response::new(Full::new(Bytes::from_static(b"ok\n"))),
        "metrics" => return metrics(canary),
        _ => {}
    }
    let caller = request
        .headers()
        .get("x-postern-source")
        .and_then(|value| value.to_str().ok());
    let nonce = target.find("nonce-").map(|at| &target[at..]);
    canary.request(caller, nonce, page);
    let (status, body) = match page {
        "admin" => (StatusCode::OK, "the admin page\n".to_owned()),
        "items" => (StatusCode::OK, items()),
        _ => (StatusCode::NOT_FOUND, "no such page\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

/// As lenient as the worst of servers: decodes twice, resolves dots after it, takes backslashes for slashes.
fn page(target: &str) -> &'static str {
    let mut path = target.split(['?', '#']).next().unwrap_or_default().to_owned();
    for _ in 0..2 {
        path = decode(&path);
    }
    let path = path.replace('\\', "/").to_lowercase();
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    match segments.first() {
        Some(&"admin") => "admin",
        Some(&"items") => "items",
        Some(&"healthz") => "healthz",
        Some(&"metrics") => "metrics",
        _ => "none",
    }
}

fn decode(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let byte = rest
            .get(at + 1..at + 3)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 3..];
            }
            None => {
                out.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// In Prometheus' text format, as any app has them.
fn metrics(canary: &Canary) -> Response<Full<Bytes>> {
    let text = format!(
        "# HELP shop_requests_total Requests that reached the app.\n# TYPE shop_requests_total counter\n\
         shop_requests_total {}\n",
        canary.requests()
    );
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/plain; version=0.0.4"),
    );
    response
}

fn items() -> String {
    let items: Vec<String> = (1..=24)
        .map(|n| format!("{{\"item\":{n},\"name\":\"lantern no. {n}\"}}"))
        .collect();
    format!("[{}]\n", items.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_page_is_found_by_every_careless_spelling() {
        for target in [
            "/admin",
            "//admin/x",
            "/%61dmin",
            "/items/..%2fadmin",
            "/items/%2e%2e/admin",
            "/items/%252e%252e/admin",
            "/items/..;/admin",
            "/items\\..\\admin",
            "/ADMIN",
        ] {
            assert_eq!(page(target), "admin", "{target}");
        }
        assert_eq!(page("/items/admin"), "items");
        assert_eq!(page("/x?/admin"), "none");
    }
}
