#![allow(clippy::unwrap_used)]
mod apps;

use self::apps::{App, status};
use super::parse::{MAX_HEADERS, MAX_PATH, MAX_TARGETS, MAX_TEXT, MAX_TIMEOUT};
use super::*;

/// As in the contract between injector and proxy.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn pod() -> IpAddr {
    "127.0.0.1".parse().unwrap()
}

fn document(targets: &str) -> String {
    format!(r#"{{"token":"{TOKEN}","targets":{{{targets}}}}}"#)
}

fn parse(targets: &str) -> Result<Probes, String> {
    Probes::parse(&document(targets), pod()).map_err(|error| error.to_string())
}

fn request(path: &str) -> Parts {
    ::http::Request::get(path).body(()).unwrap().into_parts().0
}

/// `None`: 404. `Some(None)`: hung up.
async fn probe(probes: &Probes, path: &str) -> Option<Option<u16>> {
    let pending = probes.answer(&request(path))?;
    Some(pending.await.ok().map(|(status, _)| status.as_u16()))
}

#[test]
fn what_the_injector_writes_is_read() {
    let probes = parse(
        r#""web/liveness":{"kind":"http","scheme":"http","port":8080,"path":"/healthz?x=1","host":null,
             "headers":[["name","value"],["Host","shop"],["name","again"]],"timeout_seconds":1},
           "web/pre-stop":{"kind":"http","scheme":"https","port":8443,"path":"bye","host":"127.0.0.1","headers":[],
             "timeout_seconds":30},
           "db/readiness":{"kind":"tcp","port":3306,"host":null,"timeout_seconds":1},
           "rpc/startup":{"kind":"grpc","port":9000,"service":"","timeout_seconds":2}"#,
    )
    .unwrap();
    assert_eq!(probes.len(), 4);
    assert_eq!(probes.longest(), Duration::from_secs(30));
    let Asks::Http(http::Probe { question }) = &probes.targets["web/pre-stop"].asks else {
        panic!("not http");
    };
    assert_eq!(question.path.as_str(), "/bye");
    assert!(probes.targets["web/pre-stop"].hook && !probes.targets["db/readiness"].hook);
    let Asks::Http(http::Probe { question }) = &probes.targets["web/liveness"].asks else {
        panic!("not http");
    };
    assert_eq!(question.headers.get_all("name").iter().count(), 2);
    assert!(!format!("{probes:?}").contains(TOKEN), "a token is not shown");
}

#[test]
fn what_does_not_hold_is_refused_with_the_target_and_never_the_token() {
    let http = |path: &str, more: &str| {
        format!(r#""a/liveness":{{"kind":"http","scheme":"http","port":1,"path":"{path}"{more},"timeout_seconds":1}}"#)
    };
    let tcp = |name: &str, port: u32, more: &str| {
        format!(r#""{name}":{{"kind":"tcp","port":{port}{more},"timeout_seconds":1}}"#)
    };
    for (targets, says) in [
        (tcp("a/lively", 1, ""), "target `a/lively`: expected `<container>/"),
        (tcp("liveness", 1, ""), "expected `<container>/"),
        (tcp("A/liveness", 1, ""), "expected `<container>/"),
        (tcp("a/b/liveness", 1, ""), "expected `<container>/"),
        (tcp("a/liveness", 0, ""), "port 0"),
        (tcp("a/liveness", 65_536, ""), "not the JSON that is expected"),
        (tcp("a/liveness", 1, r#","prot":2"#), "unknown field `prot`"),
        (
            tcp("a/liveness", 1, r#","host":"10.0.0.9""#),
            "host `10.0.0.9` is neither the pod's own address",
        ),
        (
            http("/", r#","host":"metadata.google.internal""#),
            "is neither the pod's own address",
        ),
        (http("/", r#","headers":[["a b","c"]]"#), "`a b` is no header name"),
        (
            http("/", r#","headers":[["a","secret\n"]]"#),
            "header `a`: the value is none",
        ),
        (http(r"/\u0000", ""), "control characters"),
        (
            r#""a/post-start":{"kind":"grpc","port":1,"service":"","timeout_seconds":1}"#.to_owned(),
            "no gRPC hooks",
        ),
        (
            r#""a/liveness":{"kind":"exec","port":1,"timeout_seconds":1}"#.to_owned(),
            "unknown variant `exec`",
        ),
        (
            r#""a/liveness":{"kind":"http","scheme":"ftp","port":1,"path":"/","timeout_seconds":1}"#.to_owned(),
            "`http` and `https` are possible",
        ),
    ] {
        let error = parse(&targets).unwrap_err();
        assert!(error.contains(says), "{targets}: {error}");
        assert!(!error.contains(TOKEN) && !error.contains("secret"), "{error}");
    }
    for token in ["", "0123", &TOKEN.to_uppercase(), &format!("{TOKEN}0")] {
        let text = format!(r#"{{"token":"{token}","targets":{{}}}}"#);
        assert!(
            matches!(Probes::parse(&text, pod()), Err(ProbesError::Token)),
            "{token}"
        );
    }
}

#[test]
fn each_bound_of_the_document_is_kept() {
    let tcp = |name: &str, timeout: u64| format!(r#""{name}":{{"kind":"tcp","port":1,"timeout_seconds":{timeout}}}"#);
    let many = |n: usize| {
        (0..n)
            .map(|i| tcp(&format!("c{i}/liveness"), 1))
            .collect::<Vec<_>>()
            .join(",")
    };
    assert_eq!(parse(&many(MAX_TARGETS)).unwrap().len(), MAX_TARGETS);
    assert!(parse(&many(MAX_TARGETS + 1)).unwrap_err().contains("501 targets"));
    assert!(parse(&tcp("a/liveness", MAX_TIMEOUT)).is_ok());
    for timeout in [0, MAX_TIMEOUT + 1] {
        assert!(
            parse(&tcp("a/liveness", timeout)).unwrap_err().contains("1 to 3600"),
            "{timeout}"
        );
    }
    let http = |path: usize, headers: usize| {
        let headers = vec![r#"["a","b"]"#; headers].join(",");
        let path = "/".repeat(path);
        let rest = format!(r#""path":"{path}","headers":[{headers}],"timeout_seconds":1}}"#);
        parse(&format!(
            r#""a/liveness":{{"kind":"http","scheme":"http","port":1,{rest}"#
        ))
    };
    assert!(http(MAX_PATH, MAX_HEADERS).is_ok());
    assert!(http(MAX_PATH + 1, 0).unwrap_err().contains("path has more than"));
    assert!(http(1, MAX_HEADERS + 1).unwrap_err().contains("more than 64 headers"));
    let long = format!("{}{}", document(""), " ".repeat(MAX_TEXT));
    assert!(matches!(Probes::parse(&long, pod()), Err(ProbesError::TooLong(_))));
}

#[tokio::test]
async fn only_the_whole_token_and_a_listed_target_lead_to_the_app() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let probes = parse(&format!(
        r#""db/readiness":{{"kind":"tcp","port":{port},"timeout_seconds":1}}"#
    ))
    .unwrap();
    let good = format!("/probe/{TOKEN}/db/readiness");
    assert_eq!(probe(&probes, &good).await, Some(Some(200)));
    for path in [
        "/probe/",
        "/probe//db/readiness",
        "/probe/db/readiness",
        &good[..good.len() - 1],
        &format!("{good}/"),
        &format!("{good}?x"),
        &format!("/{good}"),
        &good.replace("readiness", "liveness"),
        &good.replace(TOKEN, &TOKEN[1..]),
        &good.replace(TOKEN, &format!("{TOKEN}0")),
        &good.replace(TOKEN, &TOKEN.replace('f', "e")),
        &good.replace(TOKEN, &TOKEN.to_uppercase()),
    ] {
        assert_eq!(probe(&probes, path).await, None, "{path}");
    }
    drop(listener);
    assert_eq!(probe(&probes, &good).await, Some(Some(503)), "nobody listens");
}

#[test]
fn a_reason_is_one_short_line() {
    assert_eq!(one_line("a\r\nb\u{7}c"), "a  b c\n");
    assert_eq!(one_line(&"ä".repeat(MAX_REASON + 1)).chars().count(), MAX_REASON + 1);
}

fn http(port: u16, path: &str) -> Probes {
    http_with("a/liveness", port, "http", path, "")
}

fn http_with(name: &str, port: u16, scheme: &str, path: &str, headers: &str) -> Probes {
    let rest = format!(r#""path":"{path}","host":null,"headers":[{headers}],"timeout_seconds":1"#);
    parse(&format!(
        r#""{name}":{{"kind":"http","scheme":"{scheme}","port":{port},{rest}}}"#
    ))
    .unwrap()
}

/// What a kubelet gets for the probe `a/liveness`.
async fn asked(probes: &Probes) -> (u16, String) {
    let mut request = request(&format!("/probe/{TOKEN}/a/liveness"));
    request.headers.insert("user-agent", "kube-probe/1.33".parse().unwrap());
    request.headers.insert("cookie", "not the app's".parse().unwrap());
    let (status, text) = probes.answer(&request).unwrap().await.unwrap();
    (status.as_u16(), text)
}

#[tokio::test]
async fn a_status_from_200_to_399_is_a_success_as_for_a_kubelet() {
    for (given, gives) in [
        (200, 200),
        (204, 200),
        (304, 200),
        (301, 200),
        (399, 200),
        (400, 503),
        (404, 503),
        (500, 503),
    ] {
        let app = App::http(move |_| status(given, "")).await;
        let (got, text) = asked(&http(app.port, "/")).await;
        assert_eq!(got, gives, "{given}");
        assert_eq!(text == "ok\n", gives == 200, "{text}");
        assert!(gives == 200 || text == format!("the app answered {given}\n"), "{text}");
    }
    let app = App::http(|_| "220 mail.example ESMTP\r\n".into()).await;
    assert_eq!(asked(&http(app.port, "/")).await.0, 503, "not HTTP");
}

#[tokio::test]
async fn the_app_is_asked_what_the_manifest_says_and_nothing_of_the_kubelets_request_but_its_name() {
    let app = App::http(|_| status(200, "")).await;
    let headers =
        r#"["X-Custom","a"],["X-Custom","b"],["Host","shop.example"],["Connection","x"],["Content-Length","9"]"#;
    let probes = http_with("a/liveness", app.port, "http", "health z?q=ü&r=%2F#f", headers);
    assert_eq!(asked(&probes).await.0, 200);
    let head = app.asked().remove(0);
    assert!(
        head.starts_with("GET /health%20z?q=%C3%BC&r=%2F HTTP/1.1\r\n"),
        "{head}"
    );
    let lower = head.to_lowercase();
    for line in [
        "x-custom: a",
        "x-custom: b",
        "host: shop.example",
        "user-agent: kube-probe/1.33",
        "accept: */*",
        "connection: close",
    ] {
        assert_eq!(lower.matches(&format!("\r\n{line}\r\n")).count(), 1, "{line}: {head}");
    }
    for absent in ["cookie", "content-length", "connection: x"] {
        assert!(!lower.contains(absent), "{absent}: {head}");
    }
    // An empty value takes a default away; without a Host of its own it is address and port.
    let probes = http_with(
        "a/liveness",
        app.port,
        "http",
        "/",
        r#"["User-Agent",""],["Accept","text/plain"]"#,
    );
    assert_eq!(asked(&probes).await.0, 200);
    let lower = app.asked().remove(1).to_lowercase();
    assert!(
        !lower.contains("user-agent") && lower.contains("accept: text/plain"),
        "{lower}"
    );
    assert!(lower.contains(&format!("host: 127.0.0.1:{}\r\n", app.port)), "{lower}");
}

#[tokio::test]
async fn redirects_at_the_same_host_are_followed_ten_requests_far_and_another_host_is_a_success() {
    let app = App::http(|head| match head.split(' ').nth(1).unwrap() {
        "/well" => status(302, "location: /there?x\r\n"),
        "/there?x" => status(200, ""),
        "/ill" => status(307, "location: broken\r\n"),
        "/broken" => status(500, ""),
        "/away" => status(301, "location: https://login.example/\r\n"),
        "/nonsense" => status(301, "location: http://127.0.0.1:99999/\r\n"),
        _ => status(302, "location: /again\r\n"),
    })
    .await;
    for (path, gives) in [("/well", 200), ("/ill", 503), ("/away", 200), ("/nonsense", 503)] {
        assert_eq!(asked(&http(app.port, path)).await.0, gives, "{path}");
    }
    let before = app.asked().len();
    let (got, text) = asked(&http(app.port, "/again")).await;
    assert_eq!(
        (got, text.as_str()),
        (503, "stopped after 10 requests that were each redirected to another\n")
    );
    assert_eq!(app.asked().len() - before, 10);
}

#[tokio::test]
async fn a_long_answer_is_read_no_further_than_a_kubelet_reads_it_and_a_late_one_is_a_failure() {
    let long = "a".repeat(http::MAX_BODY + 1);
    let app = App::http(move |_| format!("HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n{long}...")).await;
    assert_eq!(asked(&http(app.port, "/")).await.0, 200, "past the bound");
    let short = "a".repeat(http::MAX_BODY);
    let app = App::http(move |_| format!("HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n{short}...")).await;
    let (got, text) = asked(&http(app.port, "/")).await;
    assert_eq!(
        (got, text.as_str()),
        (503, "the app took longer than 1s\n"),
        "at the bound: it waits for more"
    );
}

#[tokio::test]
async fn https_is_not_verified_and_tls_1_2_will_do() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let app = App::https(version, |_| status(200, "")).await;
        let probes = http_with("a/liveness", app.port, "https", "/", "");
        assert_eq!(asked(&probes).await, (200, "ok\n".to_owned()), "{version:?}");
    }
    let app = App::http(|_| status(200, "")).await;
    let probes = http_with("a/liveness", app.port, "https", "/", "");
    assert_eq!(asked(&probes).await.0, 503, "no TLS there");
}

#[tokio::test]
async fn a_hook_succeeds_if_the_app_answers_at_all_and_else_the_kubelet_is_hung_up_on() {
    let app = App::http(|_| status(500, "")).await;
    let probes = http_with("a/pre-stop", app.port, "http", "/bye", "");
    let path = format!("/probe/{TOKEN}/a/pre-stop");
    assert_eq!(probe(&probes, &path).await, Some(Some(200)));
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    assert_eq!(
        probe(&http_with("a/pre-stop", port, "http", "/", ""), &path).await,
        Some(None)
    );
}

#[tokio::test]
async fn a_grpc_server_must_say_serving() {
    let grpc = |port: u16, service: &str| {
        parse(&format!(
            r#""a/liveness":{{"kind":"grpc","port":{port},"service":"{service}","timeout_seconds":1}}"#
        ))
        .unwrap()
    };
    let app = App::grpc(Ok(1)).await;
    assert_eq!(asked(&grpc(app.port, "shop.Cart")).await, (200, "ok\n".to_owned()));
    let said = app.asked().remove(0);
    assert!(
        said.contains(&format!("http://127.0.0.1:{}/grpc.health.v1.Health/Check", app.port)),
        "{said}"
    );
    assert!(said.contains("kube-probe/1.33"), "{said}");
    let app = App::grpc(Ok(2)).await;
    let (got, text) = asked(&grpc(app.port, "")).await;
    assert!(got == 503 && text.contains("serving status 2"), "{got} {text}");
    let app = App::grpc(Err(12)).await;
    let (got, text) = asked(&grpc(app.port, "")).await;
    assert!(got == 503 && text.contains("Unimplemented"), "{got} {text}");
    let app = App::http(|_| status(200, "")).await;
    assert_eq!(asked(&grpc(app.port, "")).await.0, 503, "not HTTP/2");
}

#[tokio::test]
async fn so_many_probes_at_once_and_one_more_is_told_so() {
    let app = App::http(|_| "...".into()).await;
    let probes = http(app.port, "/");
    let path = request(&format!("/probe/{TOKEN}/a/liveness"));
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..MAX_AT_ONCE {
        waiting.spawn(probes.answer(&path).unwrap());
    }
    while probes.at_once.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    let (got, text) = asked(&probes).await;
    assert_eq!((got, text.as_str()), (503, "64 probes are in progress\n"));
    waiting.shutdown().await;
    assert_eq!(probes.at_once.available_permits(), MAX_AT_ONCE, "given back");
}
