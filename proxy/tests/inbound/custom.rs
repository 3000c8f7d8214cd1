//! CUSTOM policies: whom they name is asked before DENY and ALLOW, every failure denies, and what was allowed is asked about
//! again when the rules change.

use std::time::{Duration, Instant};

use postern_authorizer::envoy::service::auth::v3::{CheckResponse, OkHttpResponse};
use postern_policy::Mode;
use postern_proxy::outcome::Failure;
use postern_proxy::snapshot::{Door, Protocol};

use crate::live_policy::endless;
use crate::world::authorizer::{Authorizer, Says, field, no, ok, ok_with};
use crate::world::h2::{Client, get, grpc_app, request};
use crate::world::{CART, Canary, Conn, POLICY, Proxy, Shop, WEB, WEB_ONLY, endpoint, meshed, named, run, until};

/// What DESIGN section 4 promises.
const WITHIN: Duration = Duration::from_secs(1);
const OPA: &str = "spiffe://cluster.local/ns/policy/sa/opa";

pub(super) fn asks(name: &str, provider: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{action: CUSTOM, provider: {{name: {provider}}}, rules: [{rules}]}}\n"
    )
}

fn provider(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: postern.dev/v1alpha1\nkind: Authorizer\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

pub(super) fn server(authorizer: &Authorizer) -> String {
    provider("opa", &format!("{{extAuthz: {{address: '{}'}}}}", authorizer.address))
}

fn rego(text: &str) -> String {
    let indented: String = text.lines().map(|line| format!("        {line}\n")).collect();
    provider(
        "opa",
        &format!("\n  rego:\n    modules:\n    - name: authz.rego\n      text: |\n{indented}"),
    )
}

/// The web may do anything but see what is secret, if `opa` agrees about paths below `/asked`.
fn asked_below(provider: &str) -> String {
    let asks = asks("asks", "opa", "{to: [{operation: {paths: [/asked, /asked/*]}}]}");
    format!("{POLICY}{asks}{provider}")
}

/// The same of bytes.
fn asked_on_80(provider: &str) -> String {
    let asks = asks("asks", "opa", "{to: [{operation: {ports: ['80']}}]}");
    format!("{WEB_ONLY}{asks}{provider}")
}

fn get_path(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: cart\r\n\r\n")
}

fn denials(shop: &Shop, reason: &str) -> u64 {
    let reason = format!("reason=\"{reason}\"");
    shop.cart
        .metric("postern_proxy_denials_total", &["policy=\"shop/asks\"", &reason])
}

#[test]
fn what_no_custom_policy_matches_asks_nobody() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        let opa = Authorizer::saying(None).await;
        shop.cart.policy(&asked_below(&server(&opa)));
        let mut conn = shop.h1().await;
        for _ in 0..3 {
            conn.send(get_path("/free")).await;
            assert_eq!(conn.answer().await.status, 200);
        }
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        assert_eq!(client.get("/free").await.unwrap().status, 200);
        assert_eq!(opa.count(), 0);
    });
}

#[test]
fn a_server_is_told_the_request_as_the_app_will_see_it_and_who_was_proved_to_make_it() {
    run(async {
        let shop = Shop::new().await;
        let opa = Authorizer::saying(ok()).await;
        let told = provider(
            "opa",
            &format!(
                "{{extAuthz: {{address: '{}', contextExtensions: {{tenant: a}}}}}}",
                opa.address
            ),
        );
        shop.cart.policy(&asked_below(&told));
        let mut conn = shop.h1().await;
        conn.send(
            "POST /x/../asked/%7Ea?b=c HTTP/1.1\r\nHost: Cart\r\nX-A: 1\r\nX-A: 2\r\nConnection: x-gone\r\nX-Gone: 1\r\n\
             x-postern-source: spiffe://cluster.local/ns/shop/sa/evil\r\nContent-Length: 2\r\n\r\nhi",
        )
        .await;
        assert_eq!(conn.answer().await.status, 200);
        let seen = shop.app.only();
        assert_eq!((seen.target.as_str(), &*seen.body), ("/asked/~a?b=c", &b"hi"[..]));
        let asked = opa.asked().pop().unwrap().attributes.unwrap();
        assert_eq!(asked.source.unwrap().principal, WEB);
        assert_eq!(asked.destination.unwrap().principal, CART);
        assert_eq!(asked.context_extensions["tenant"], "a");
        let http = opa.http();
        assert_eq!(
            (&*http.method, &*http.path, &*http.host),
            ("POST", "/asked/~a?b=c", "cart")
        );
        assert_eq!((&*http.scheme, &*http.protocol, http.size), ("https", "HTTP/1.1", 2));
        assert_eq!(http.headers["x-a"], "1,2");
        assert_eq!(http.headers["x-postern-source"], WEB);
        assert!(http.headers["x-forwarded-client-cert"].contains(WEB));
        assert!(!http.headers.contains_key("x-gone") && !http.headers.contains_key("host"));
        assert_eq!(
            (&*http.headers[":method"], &*http.headers[":path"]),
            ("POST", "/asked/~a?b=c")
        );
        assert_eq!((&*http.body, &*http.raw_body), ("", &b""[..]), "bodies are not sent");
    });
}

#[test]
fn only_included_headers_are_told() {
    run(async {
        let shop = Shop::new().await;
        let opa = Authorizer::saying(ok()).await;
        let told = format!("{{extAuthz: {{address: '{}', includeHeaders: [X-Told]}}}}", opa.address);
        shop.cart.policy(&asked_below(&provider("opa", &told)));
        let mut conn = shop.h1().await;
        conn.send("GET /asked HTTP/1.1\r\nHost: cart\r\nX-Told: 1\r\nAuthorization: Bearer secret\r\n\r\n")
            .await;
        assert_eq!(conn.answer().await.status, 200);
        let names: Vec<String> = opa
            .http()
            .headers
            .into_keys()
            .filter(|name| !name.starts_with(':'))
            .collect();
        assert_eq!(names, ["x-told"]);
        assert_eq!(shop.app.only().field("authorization"), Some("Bearer secret"));
    });
}

#[test]
fn what_a_server_allows_goes_on_with_its_edits() {
    run(async {
        let shop = Shop::new().await;
        let opa = Authorizer::saying(ok_with(OkHttpResponse {
            headers: vec![field("x-user", "alice"), field("x-theirs", "ours")],
            headers_to_remove: vec!["x-gone".to_owned()],
            response_headers_to_add: vec![field("x-told", "yes")],
            query_parameters_to_remove: vec!["secret".to_owned()],
            ..OkHttpResponse::default()
        }))
        .await;
        shop.cart.policy(&asked_below(&server(&opa)));
        let mut conn = shop.h1().await;
        conn.send("GET /asked?secret=1&a=2 HTTP/1.1\r\nHost: cart\r\nX-Theirs: theirs\r\nX-Gone: 1\r\n\r\n")
            .await;
        let answer = conn.answer().await;
        assert_eq!((answer.status, answer.field("x-told")), (200, Some("yes")));
        let seen = shop.app.only();
        assert_eq!(seen.target, "/asked?a=2");
        assert_eq!(seen.all("x-user"), ["alice"]);
        assert_eq!(seen.all("x-theirs"), ["ours"]);
        assert_eq!(seen.field("x-gone"), None);
        assert_eq!(seen.all("x-postern-source"), [WEB]);
        // The connection serves on.
        conn.send(get_path("/free")).await;
        assert_eq!(conn.answer().await.status, 200);
    });
}

#[test]
fn an_edit_of_a_field_that_rules_look_at_is_no_answer() {
    run(async {
        let shop = Shop::new().await;
        let deny = "---\napiVersion: postern.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: risk, namespace: shop}\n\
                    spec: {action: DENY, rules: [{when: [{key: 'request.headers[x-risk]', values: [high]}]}]}\n";
        for edits in [
            OkHttpResponse {
                headers: vec![field("x-risk", "high")],
                ..OkHttpResponse::default()
            },
            OkHttpResponse {
                headers_to_remove: vec!["x_risk".to_owned()],
                ..OkHttpResponse::default()
            },
        ] {
            let opa = Authorizer::saying(ok_with(edits)).await;
            shop.cart.policy(&format!("{}{deny}", asked_below(&server(&opa))));
            let mut conn = shop.h1().await;
            conn.send(get_path("/asked")).await;
            let answer = conn.answer().await;
            assert!(
                answer.status == 403 && answer.text().starts_with("custom_error"),
                "{answer:?}"
            );
        }
        assert_eq!(shop.app.requests().len(), 0);
    });
}

#[test]
fn h1_08_trailers_of_a_request_that_was_asked_about_end_here() {
    run(async {
        let shop = Shop::new().await;
        let opa = Authorizer::saying(ok()).await;
        shop.cart.policy(&asked_below(&server(&opa)));
        for (path, trailers) in [("/free", 1), ("/asked", 0)] {
            let mut conn = shop.h1().await;
            conn.send(format!(
                "POST {path} HTTP/1.1\r\nHost: cart\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                 2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n"
            ))
            .await;
            assert_eq!(conn.answer().await.status, 200, "{path}");
            let seen = shop.app.requests().pop().unwrap();
            assert_eq!((&*seen.body, seen.trailers.len()), (&b"hi"[..], trailers), "{path}");
        }
    });
}

#[test]
fn no_server_tells_the_app_of_a_user_in_the_proxys_place() {
    run(async {
        let sso = "
apiVersion: postern.dev/v1alpha1
kind: RequestAuthentication
metadata: {name: sso, namespace: shop}
spec: {jwtRules: [{issuer: 'https://sso.test', jwksUri: 'https://sso.test/jwks', outputPayloadToHeader: x-user}]}
";
        let shop = Shop::new().await;
        let opa = Authorizer::saying(ok_with(OkHttpResponse {
            headers: vec![field("X_User", "root"), field("x-other", "fine")],
            ..OkHttpResponse::default()
        }))
        .await;
        shop.cart.believes(sso, None);
        shop.cart.policy(&asked_below(&server(&opa)));
        let mut conn = shop.h1().await;
        conn.send(get_path("/asked")).await;
        let answer = conn.answer().await;
        assert!(
            answer.status == 403 && answer.text().starts_with("custom_error"),
            "{answer:?}"
        );
        // Where that is only told of, the field does not go on all the same.
        shop.cart.policy_in(Mode::Monitor, &asked_below(&server(&opa)));
        let mut conn = shop.h1().await;
        conn.send(get_path("/asked")).await;
        assert_eq!(conn.answer().await.status, 200);
        let seen = shop.app.only();
        assert_eq!((seen.field("x-other"), seen.field("x_user")), (Some("fine"), None));
    });
}

#[test]
fn a_denial_is_answered_in_the_servers_words_and_the_connection_serves_on() {
    run(async {
        let shop = Shop::new().await;
        let opa = Authorizer::saying(no(401, &[("www-authenticate", "Bearer"), ("x-why", "a")], "log in")).await;
        shop.cart.policy(&asked_below(&server(&opa)));
        let mut conn = shop.h1().await;
        conn.send(get_path("/asked")).await;
        let answer = conn.answer().await;
        assert_eq!((answer.status, answer.text()), (401, "log in".to_owned()));
        assert_eq!(answer.field("www-authenticate"), Some("Bearer"));
        assert!(answer.field("x-postern-decision-id").is_some(), "{answer:?}");
        conn.send(get_path("/free")).await;
        assert_eq!(conn.answer().await.status, 200);
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        let answer = client.get("/asked").await.unwrap();
        assert_eq!((answer.status, &*answer.body), (401, &b"log in"[..]));
        assert_eq!(shop.app.requests().len(), 1);
        assert_eq!(denials(&shop, "custom_denied"), 2);
    });
}

#[test]
fn a_denial_to_a_grpc_caller_is_a_status_that_is_not_ok() {
    run(async {
        let shop = Shop::before(grpc_app().await, Protocol::Http2, POLICY).await;
        let opa = Authorizer::saying(no(200, &[], "")).await;
        shop.cart.policy(&asked_below(&server(&opa)));
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        let mut call = request(http::Method::POST, "/asked/Call");
        call.headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        let answer = client.request(call).await.unwrap();
        assert_eq!(
            (answer.status, &answer.fields["grpc-status"]),
            (200, &"7".parse().unwrap())
        );
        opa.says(no(401, &[("x-why", "a")], ""));
        let mut call = request(http::Method::POST, "/asked/Call");
        call.headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        let answer = client.request(call).await.unwrap();
        assert_eq!(answer.fields["grpc-status"], "16");
        assert_eq!(answer.fields["x-why"], "a");
    });
}

#[test]
fn every_way_in_which_a_server_fails_denies_and_says_which() {
    run(async {
        let shop = Shop::new().await;
        let opa = Authorizer::saying(ok()).await;
        let fast = provider(
            "opa",
            &format!("{{extAuthz: {{address: '{}', timeout: 100ms}}}}", opa.address),
        );
        shop.cart.policy(&asked_below(&fast));
        let cases: [(Says, &str); 5] = [
            (None, "custom_timeout"),
            (Some(Err(tonic::Status::unavailable("no"))), "custom_error"),
            (Some(Ok(CheckResponse::default())), "custom_error"),
            (
                ok_with(OkHttpResponse {
                    headers: vec![field("x-postern-source", "spiffe://evil/x")],
                    ..OkHttpResponse::default()
                }),
                "custom_error",
            ),
            (
                ok_with(OkHttpResponse {
                    headers_to_remove: vec!["x-forwarded-client-cert".to_owned()],
                    ..OkHttpResponse::default()
                }),
                "custom_error",
            ),
        ];
        let mut conn = shop.h1().await;
        for (says, reason) in cases {
            opa.says(says);
            let before = denials(&shop, reason);
            conn.send(get_path("/asked")).await;
            let answer = conn.answer().await;
            assert_eq!(answer.status, 403);
            assert!(answer.text().starts_with(reason), "{}", answer.text());
            assert_eq!(denials(&shop, reason), before + 1);
        }
        // Nobody listens.
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let nobody = provider("opa", &format!("{{extAuthz: {{address: '{closed}'}}}}"));
        shop.cart.policy(&asked_below(&nobody));
        conn.send(get_path("/asked")).await;
        assert!(conn.answer().await.text().starts_with("custom_error"));
        // Control names one that it has not sent.
        shop.cart.policy(&asked_below(""));
        conn.send(get_path("/asked")).await;
        assert!(conn.answer().await.text().starts_with("custom_error"));
        assert_eq!(shop.app.requests().len(), 0);
        // And it is as it was once it answers again.
        opa.says(ok());
        shop.cart.policy(&asked_below(&fast));
        conn.send(get_path("/asked")).await;
        assert_eq!(conn.answer().await.status, 200);
    });
}

#[test]
fn a_yes_of_custom_is_no_permit_and_its_no_comes_before_everything() {
    run(async {
        let shop = Shop::new().await;
        let opa = Authorizer::saying(ok()).await;
        let everything = format!("{POLICY}{}{}", asks("asks", "opa", "{}"), server(&opa));
        shop.cart.policy(&everything);
        let mut conn = shop.h1().await;
        conn.send(get_path("/secret")).await;
        let answer = conn.answer().await;
        assert!(
            answer.status == 403 && answer.text().starts_with("deny_rule"),
            "{answer:?}"
        );
        let mut mallory = shop.connect(crate::world::MALLORY, b"postern/h1").await;
        mallory.send(get_path("/a")).await;
        assert!(mallory.answer().await.text().starts_with("no_allow_rule"));
        assert_eq!(opa.count(), 2, "it is asked before the others decide");
        opa.says(no(418, &[], ""));
        conn.send(get_path("/secret")).await;
        assert_eq!(conn.answer().await.status, 418);
        assert_eq!(shop.app.requests().len(), 0);
    });
}

#[test]
fn several_providers_must_all_agree_and_each_is_asked_once() {
    run(async {
        let shop = Shop::new().await;
        let (one, two) = (Authorizer::saying(ok()).await, Authorizer::saying(ok()).await);
        let policies = [
            POLICY.to_owned(),
            asks("first", "one", "{}"),
            asks("second", "two", "{}"),
            asks("third", "one", "{}"),
            provider("one", &format!("{{extAuthz: {{address: '{}'}}}}", one.address)),
            provider("two", &format!("{{extAuthz: {{address: '{}'}}}}", two.address)),
        ];
        shop.cart.policy(&policies.concat());
        let mut conn = shop.h1().await;
        conn.send(get_path("/a")).await;
        assert_eq!(conn.answer().await.status, 200);
        assert_eq!((one.count(), two.count()), (1, 1));
        two.says(no(403, &[], "two"));
        conn.send(get_path("/a")).await;
        assert_eq!(conn.answer().await.text(), "two");
        one.says(no(403, &[], "one"));
        conn.send(get_path("/a")).await;
        assert_eq!(conn.answer().await.text(), "one");
        assert_eq!((one.count(), two.count()), (3, 2), "the first no is enough");
    });
}

#[test]
fn in_monitor_a_no_is_counted_and_let_through_and_in_discover_nobody_is_asked() {
    run(async {
        let shop = Shop::new().await;
        let opa = Authorizer::saying(no(403, &[], "no")).await;
        shop.cart.policy_in(Mode::Monitor, &asked_below(&server(&opa)));
        let mut conn = shop.h1().await;
        conn.send(get_path("/asked")).await;
        assert_eq!(conn.answer().await.status, 200);
        let would = shop
            .cart
            .metric("postern_proxy_requests_total", &["inbound", "outcome=\"would_deny\""]);
        assert_eq!((opa.count(), would), (1, 1));
        shop.cart.policy_in(Mode::Discover, &asked_below(&server(&opa)));
        conn.send(get_path("/asked")).await;
        assert_eq!(conn.answer().await.status, 200);
        assert_eq!(opa.count(), 1);
    });
}

#[test]
fn embedded_rego_decides_on_the_worker_and_its_failures_deny() {
    run(async {
        let shop = Shop::new().await;
        let allow_gets = "package envoy.authz\nimport input.attributes.request.http\ndefault allow := false\n\
                          allow := {\"allowed\": true, \"headers\": {\"x-path\": concat(\"/\", input.parsed_path)}} if {\n\
                          \u{20}http.method == \"GET\"\n input.source_principal == \"spiffe://cluster.local/ns/shop/sa/web\"\n}";
        shop.cart.policy(&asked_below(&rego(allow_gets)));
        let mut conn = shop.h1().await;
        conn.send(get_path("/asked/a")).await;
        assert_eq!(conn.answer().await.status, 200);
        assert_eq!(shop.app.only().field("x-path"), Some("asked/a"));
        conn.send("DELETE /asked/a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        let answer = conn.answer().await;
        assert_eq!((answer.status, denials(&shop, "custom_denied")), (403, 1));
        for (text, reason) in [
            ("package envoy.authz\nallow := true if input.nothing", "custom_error"),
            ("package envoy.authz\nallow := \"yes\"", "custom_error"),
            (
                "package envoy.authz\ndefault allow := false\nallow if {\n count([x | some a in numbers.range(1, 4000); some b in numbers.range(1, 4000); x := a * b]) > 1\n}",
                "custom_timeout",
            ),
        ] {
            shop.cart.policy(&asked_below(&rego(text)));
            conn.send(get_path("/asked/a")).await;
            let answer = conn.answer().await;
            assert!(answer.text().starts_with(reason), "{text}: {answer:?}");
        }
        assert_eq!(shop.app.requests().len(), 1);
    });
}

async fn start(shop: &Shop, path: &str) -> Conn {
    let mut conn = shop.h1().await;
    conn.send(format!(
        "POST {path} HTTP/1.1\r\nHost: cart\r\nX-Kept: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    ))
    .await;
    assert_eq!(conn.head().await.status, 200);
    assert_eq!(conn.chunk().await, b"hi");
    conn
}

async fn goes_on(conn: &mut Conn) {
    conn.send("1\r\nx\r\n").await;
    assert_eq!(conn.chunk().await, b"tick");
}

#[test]
fn a_live_stream_is_asked_about_again_when_the_rules_change_and_ends_unless_it_is_allowed() {
    run(async {
        let shop = Shop::before(endless().await, Protocol::Http1, POLICY).await;
        let opa = Authorizer::saying(ok()).await;
        let policy = asked_below(&server(&opa));
        shop.cart.policy(&policy);
        let mut conn = start(&shop, "/asked/a").await;
        let mut free = start(&shop, "/free").await;
        assert_eq!(opa.count(), 1);
        // Any change of policies; the question is the same.
        shop.cart.policy(&format!(
            "{policy}{}",
            asks("other", "opa", "{to: [{operation: {paths: [/other]}}]}")
        ));
        until("it is asked again", || opa.count() == 2).await;
        let [first, again] = opa.asked().try_into().unwrap();
        assert_eq!(first, again);
        goes_on(&mut conn).await;
        // Now it says no.
        opa.says(no(403, &[], ""));
        let changed = Instant::now();
        shop.cart.policy(&policy);
        assert_eq!(conn.rest().await, b"");
        assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());
        assert_eq!(denials(&shop, "custom_denied"), 1);
        goes_on(&mut free).await;
    });
}

#[test]
fn a_live_stream_ends_within_a_second_of_a_change_if_its_authorizer_is_silent() {
    run(async {
        let shop = Shop::before(endless().await, Protocol::Http1, POLICY).await;
        let opa = Authorizer::saying(ok()).await;
        let slow = provider(
            "opa",
            &format!("{{extAuthz: {{address: '{}', timeout: 10s}}}}", opa.address),
        );
        shop.cart.policy(&asked_below(&slow));
        let mut conn = start(&shop, "/asked/a").await;
        opa.says(None);
        let changed = Instant::now();
        shop.cart.policy(&asked_below(&slow));
        assert_eq!(conn.rest().await, b"");
        assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());
        assert_eq!(denials(&shop, "custom_timeout"), 1);
    });
}

#[test]
fn a_live_stream_that_a_new_custom_policy_matches_and_nobody_can_ask_about_ends() {
    run(async {
        let shop = Shop::before(endless().await, Protocol::Http1, POLICY).await;
        let opa = Authorizer::saying(ok()).await;
        let mut conn = start(&shop, "/asked/a").await;
        let mut free = start(&shop, "/free").await;
        shop.cart.policy(&asked_below(&server(&opa)));
        assert_eq!(conn.rest().await, b"");
        assert_eq!((opa.count(), denials(&shop, "custom_error")), (0, 1));
        goes_on(&mut free).await;
    });
}

#[test]
fn a_stream_that_monitor_let_through_is_asked_about_when_protect_begins() {
    run(async {
        let shop = Shop::before(endless().await, Protocol::Http1, POLICY).await;
        let opa = Authorizer::saying(no(403, &[], "")).await;
        let policy = asked_below(&server(&opa));
        shop.cart.policy_in(Mode::Monitor, &policy);
        let mut denied = start(&shop, "/asked/a").await;
        shop.cart.policy_in(Mode::Monitor, &policy);
        goes_on(&mut denied).await;
        let changed = Instant::now();
        shop.cart.policy_in(Mode::Protect, &policy);
        assert_eq!(denied.rest().await, b"");
        assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());
    });
}

#[test]
fn bytes_are_asked_about_by_who_calls_whom_and_again_when_the_rules_change() {
    run(async {
        let app = Canary::serving(|mut stream, _, _| async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        })
        .await;
        let shop = Shop::before(app, Protocol::Tcp, WEB_ONLY).await;
        let opa = Authorizer::saying(ok()).await;
        let policy = asked_on_80(&server(&opa));
        // One that began before there was anybody to ask, and one after.
        let mut early = shop.web(b"postern/tcp").await;
        early.send("a").await;
        assert_eq!(early.exactly(1).await, b"a");
        shop.cart.policy(&policy);
        until("it is asked about", || opa.count() == 1).await;
        let mut late = shop.web(b"postern/tcp").await;
        for conn in [&mut early, &mut late] {
            conn.send("b").await;
            assert_eq!(conn.exactly(1).await, b"b");
        }
        for asked in opa.asked() {
            let attributes = asked.attributes.unwrap();
            assert_eq!(attributes.source.unwrap().principal, WEB);
            assert!(attributes.request.unwrap().http.is_none());
        }
        assert_eq!(opa.count(), 2);
        opa.says(no(403, &[], "not for bytes"));
        let changed = Instant::now();
        shop.cart.policy(&policy);
        early.ends().await;
        late.ends().await;
        assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());
        let mut refused = shop.web(b"postern/tcp").await;
        refused.send("c").await;
        refused.ends().await;
        assert_eq!(denials(&shop, "custom_denied"), 3);
    });
}

/// A server behind a proxy of its own, which lets only the cart in.
async fn opa_in_the_mesh(shop: &Shop, opa: &Authorizer) -> (Proxy, std::net::SocketAddr) {
    let proxy = Proxy::new(&shop.authority, OPA, "opa-1");
    let door = proxy.door(9191, Protocol::Http2, opa.address).await;
    proxy.policy(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]
",
    );
    (proxy, door)
}

#[test]
fn a_server_of_the_mesh_is_asked_over_mutual_tls_as_whom_it_should_be() {
    run(async {
        let shop = Shop::new().await;
        let opa = Authorizer::saying(ok()).await;
        let (proxy, door) = opa_in_the_mesh(&shop, &opa).await;
        let known = |id: &str| {
            let end = endpoint(door, id, Some("opa-1"), Protocol::Http2, Door::Sidecar);
            shop.cart
                .knows(named("opa.policy", 9191), meshed(Protocol::Http2, vec![end]));
        };
        known(OPA);
        let in_mesh = provider("opa", "{extAuthz: {address: 'opa.policy:9191', timeout: 5s}}");
        shop.cart.policy(&asked_below(&in_mesh));
        let mut conn = shop.h1().await;
        for _ in 0..2 {
            conn.send(get_path("/asked")).await;
            assert_eq!(conn.answer().await.status, 200);
        }
        assert_eq!(opa.count(), 2);
        let as_cart = format!("source=\"{CART}\"");
        let served = proxy.metric(
            "postern_proxy_requests_total",
            &["inbound", &as_cart, "outcome=\"allowed\""],
        );
        assert_eq!(served, 2, "asked under our own identity");
        // Somebody else answers there now.
        known(CART);
        conn.send(get_path("/asked")).await;
        let answer = conn.answer().await;
        assert!(answer.text().starts_with("custom_error"), "{answer:?}");
        assert_eq!(opa.count(), 2);
    });
}

#[test]
fn a_server_that_would_be_reached_in_clear_is_not_asked() {
    run(async {
        let shop = Shop::new().await;
        let opa = Authorizer::saying(ok()).await;
        let in_mesh = provider("opa", "{extAuthz: {address: 'opa.policy:9191', timeout: 5s}}");
        shop.cart.policy(&asked_below(&in_mesh));
        let mut open = endpoint(opa.address, OPA, None, Protocol::Http2, Door::Open);
        open.expected.ids.clear();
        let unmeshed = postern_proxy::snapshot::Destination::Unmeshed {
            service: "opa.policy".into(),
            addresses: vec![opa.address],
        };
        let unknown = postern_proxy::snapshot::Destination::Unreachable(Failure::UnknownDestination, String::new());
        let mut conn = shop.h1().await;
        for destination in [meshed(Protocol::Http2, vec![open]), unmeshed, unknown] {
            shop.cart.knows(named("opa.policy", 9191), destination);
            conn.send(get_path("/asked")).await;
            let answer = conn.answer().await;
            assert!(answer.text().starts_with("custom_error"), "{answer:?}");
        }
        assert_eq!((opa.count(), shop.app.requests().len()), (0, 0));
    });
}

#[test]
fn a_client_that_goes_while_somebody_is_asked_leaves_nothing_behind() {
    run(async {
        let shop = Shop::new().await;
        let opa = Authorizer::saying(None).await;
        let slow = provider(
            "opa",
            &format!("{{extAuthz: {{address: '{}', timeout: 10s}}}}", opa.address),
        );
        shop.cart.policy(&asked_below(&slow));
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        let (answer, mut stream) = client.send.send_request(get("/asked"), true).unwrap();
        until("it is asked", || opa.count() == 1).await;
        stream.send_reset(h2::Reason::CANCEL);
        drop((answer, stream, client));
        until("nothing is left", || shop.cart.serving() == 0).await;
        shop.probe().await;
    });
}
