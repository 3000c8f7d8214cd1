//! End users: their tokens, what the app is told of them, and what they may do. Over HTTP/1.1 (our relay) and HTTP/2
//! (hyper's) alike.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::Method;
use postern_policy::Mode;
use postern_proxy::limits::{KEYS_DEADLINE, MAX_WAITING_FOR_KEYS};
use postern_proxy::snapshot::Protocol;
use postern_token::{KeySet, Keys};
use serde_json::{Value, json};

use crate::live_policy::endless;
use crate::mint::{self, OTHER_P256, P256, Signer};
use crate::world::h2::{Client, get, request};
use crate::world::{Conn, MALLORY, POLICY, Received, Shop, WEB, WEB_ONLY, hostile_client, run, soon, until};

const SSO: &str = "
apiVersion: postern.dev/v1alpha1
kind: RequestAuthentication
metadata: {name: sso, namespace: shop}
spec:
  jwtRules:
  - issuer: https://sso.test
    audiences: [shop]
    jwksUri: https://sso.test/jwks
    clockSkew: 0s
";

/// The web may see what is open; the rest needs users.
const USERS: &str = "
apiVersion: postern.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
    to: [{operation: {paths: [/open, /probe]}}]
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web], requestPrincipals: ['https://sso.test/*']}}]
    to: [{operation: {paths: [/user]}}]
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
    to: [{operation: {paths: [/mfa]}}]
    when: [{key: 'request.auth.claims[amr]', values: [otp]}]
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
    to: [{operation: {paths: [/gold]}}]
    when: [{key: 'request.auth.claims[acr]', values: [gold]}, {key: request.auth.age, values: [15m]}]
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
    to: [{operation: {paths: [/write]}}]
    when: [{key: 'request.auth.claims[scope]', values: [write]}]
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
    to: [{operation: {paths: [/group]}}]
    when: [{key: 'request.headers[x-group]', values: [admins]}]
";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Of Alice, good for five minutes, but for what `changes` says.
fn claims(changes: &Value) -> Value {
    let mut claims =
        json!({ "iss": mint::ISSUER, "sub": "alice", "aud": "shop", "exp": now() + 300, "iat": now(), "azp": "web" });
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn token(changes: &Value) -> String {
    P256.token(&mint::header(), &claims(changes))
}

fn signed(signer: &Signer, id: &str) -> String {
    signer.token(&json!({ "alg": "ES256", "kid": id }), &claims(&json!({})))
}

fn keys(of: &[(&Signer, &str)]) -> Keys {
    let set: Vec<Value> = of.iter().map(|(signer, id)| signer.jwk(id)).collect();
    Keys {
        set: Arc::new(KeySet::parse(mint::set(&set).to_string().as_bytes()).unwrap()),
        fetched: now(),
    }
}

fn rule(more: &str) -> String {
    format!("{SSO}    {more}\n")
}

async fn shop() -> Shop {
    believing(SSO).await
}

async fn believing(documents: &str) -> Shop {
    let shop = Shop::with(Protocol::Http1, USERS).await;
    shop.cart.believes(documents, Some(&keys(&[(&P256, "p256")])));
    shop.cart.policy(USERS);
    shop
}

/// What came of a request.
#[derive(Debug)]
struct Outcome {
    status: u16,
    challenge: Option<String>,
    text: String,
}

/// Sends it over HTTP/1.1, and over HTTP/2; both must fare alike.
async fn ask(shop: &Shop, id: &str, target: &str, fields: &[(&str, &str)]) -> Outcome {
    let mut conn = shop.connect(id, b"postern/h1").await;
    let mut head = format!("GET {target} HTTP/1.1\r\nHost: cart\r\n");
    for (name, value) in fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    conn.send(format!("{head}\r\n")).await;
    let answer = conn.answer().await;
    let mut client = Client::over(shop.connect(id, b"postern/h2").await).await;
    let mut again = get(target);
    for (name, value) in fields
        .iter()
        .filter(|(name, _)| !name.eq_ignore_ascii_case("connection"))
    {
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        again.headers_mut().append(name, value.parse().unwrap());
    }
    let over_h2 = client.request(again).await.unwrap();
    let of_h2 = |name: &str| over_h2.fields.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(answer.status, over_h2.status, "{target} {fields:?}");
    assert_eq!(answer.field("www-authenticate"), of_h2("www-authenticate"));
    assert_eq!(answer.field("retry-after"), of_h2("retry-after"));
    Outcome {
        status: answer.status,
        challenge: answer.field("www-authenticate").map(ToOwned::to_owned),
        text: answer.text(),
    }
}

async fn with_token(shop: &Shop, target: &str, token: &str) -> Outcome {
    ask(shop, WEB, target, &[("authorization", &format!("Bearer {token}"))]).await
}

/// What the app saw of the last request, over both ways.
fn seen(shop: &Shop) -> [Received; 2] {
    let requests = shop.app.requests();
    let [.., one, other] = &requests[..] else { panic!() };
    [one.clone(), other.clone()]
}

#[test]
fn a_token_makes_its_user_and_stays_with_the_proxy() {
    run(async {
        let shop = shop().await;
        let alice = token(&json!({}));
        assert_eq!(with_token(&shop, "/user", &alice).await.status, 200);
        for request in seen(&shop) {
            assert_eq!(request.field("authorization"), None);
            assert!(!request.head.contains(&alice));
        }
        // And once more: what was verified is remembered.
        assert_eq!(with_token(&shop, "/user", &alice).await.status, 200);
        // The user stands beside the workload, not in its place.
        let bearer = format!("Bearer {alice}");
        let other = ask(&shop, MALLORY, "/user", &[("authorization", &bearer)]).await;
        assert_eq!((other.status, other.challenge), (403, None));
        let nobody = ask(&shop, WEB, "/open", &[]).await;
        assert_eq!(nobody.status, 200);
        shop.cart
            .believes(&rule("forwardOriginalToken: true"), Some(&keys(&[(&P256, "p256")])));
        shop.cart.policy(USERS);
        assert_eq!(with_token(&shop, "/user", &alice).await.status, 200);
        for request in seen(&shop) {
            assert_eq!(request.field("authorization"), Some(bearer.as_str()));
        }
    });
}

#[test]
fn without_documents_tokens_are_the_apps_business() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        let answer = with_token(&shop, "/user", "anything").await;
        assert_eq!(answer.status, 200);
        for request in seen(&shop) {
            assert_eq!(request.field("authorization"), Some("Bearer anything"));
        }
    });
}

#[test]
fn a_token_that_is_not_believed_is_refused_wherever_it_would_go() {
    run(async {
        let shop = shop().await;
        let public = P256.jwk("p256").to_string();
        let hmac = {
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, public.as_bytes());
            let head = mint::base64url(json!({ "alg": "HS256", "kid": "p256" }).to_string());
            let signed = format!("{head}.{}", mint::base64url(claims(&json!({})).to_string()));
            format!(
                "{signed}.{}",
                mint::base64url(aws_lc_rs::hmac::sign(&key, signed.as_bytes()))
            )
        };
        let none = format!(
            "{}.{}.",
            mint::base64url(json!({ "alg": "none" }).to_string()),
            mint::base64url(claims(&json!({})).to_string())
        );
        for (token, reason) in [
            (token(&json!({ "exp": now() - 1 })), "token_expired"),
            (token(&json!({ "nbf": now() + 60 })), "token_not_yet_valid"),
            (token(&json!({ "aud": "bank" })), "token_wrong_audience"),
            (token(&json!({ "iss": "https://evil.test" })), "token_unknown_issuer"),
            (token(&json!({ "sub": null })), "token_names_nobody"),
            (signed(&OTHER_P256, "p256"), "token_bad_signature"),
            (hmac, "token_unsupported"),
            (none, "token_unsupported"),
            ("x".to_owned(), "token_malformed"),
        ] {
            let answer = with_token(&shop, "/open", &token).await;
            assert_eq!(answer.status, 401, "{reason}");
            assert_eq!(
                answer.challenge.as_deref(),
                Some(r#"Bearer realm="mesh", error="invalid_token""#),
                "{reason}"
            );
            assert!(answer.text.starts_with(reason), "{reason}: {}", answer.text);
            let labels = [&*format!("reason=\"{reason}\""), "enforced=\"true\""];
            assert!(
                shop.cart.metric("postern_proxy_denials_total", &labels) >= 2,
                "{reason}"
            );
        }
        assert_eq!(shop.app.count(), 0);
        // The connection serves on.
        let mut conn = shop.h1().await;
        for (head, status) in [("Authorization: Bearer x\r\n", 401), ("", 200)] {
            conn.send(format!("GET /open HTTP/1.1\r\nHost: cart\r\n{head}\r\n"))
                .await;
            assert_eq!(conn.answer().await.status, status);
        }
    });
}

#[test]
fn two_tokens_in_one_request_are_refused_with_400() {
    run(async {
        let shop = shop().await;
        let bearer = format!("Bearer {}", token(&json!({})));
        let query = format!("/user?access_token={}", token(&json!({})));
        for (target, fields) in [
            (
                "/user",
                vec![("authorization", bearer.as_str()), ("authorization", &bearer)],
            ),
            ("/user", vec![("authorization", &bearer), ("authorization", "Basic x")]),
            (&query, vec![("authorization", &bearer)]),
        ] {
            let answer = ask(&shop, WEB, target, &fields).await;
            assert_eq!(answer.status, 400, "{fields:?}");
            assert_eq!(
                answer.challenge.as_deref(),
                Some(r#"Bearer realm="mesh", error="invalid_request""#)
            );
        }
        assert_eq!(shop.app.count(), 0);
    });
}

#[test]
fn a_token_is_found_where_the_document_says_and_taken_out_there_alone() {
    run(async {
        let places = "fromHeaders: [{name: x-jwt, prefix: 'JWT '}]\n    fromParams: [jwt]\n    fromCookies: [session]";
        let shop = believing(&rule(places)).await;
        let alice = token(&json!({}));
        let in_query = format!("/user?a=1&jwt={alice}&b=%2F");
        let only_query = format!("/user?jwt={alice}");
        let cookie = format!("a=1; session={alice}; b=2");
        let prefixed = format!("JWT {alice}");
        for (target, fields, seen_target, seen_fields) in [
            (
                "/user",
                vec![("x-jwt", prefixed.as_str())],
                "/user",
                vec![("x-jwt", None)],
            ),
            ("/user", vec![("X_Jwt", &prefixed)], "/user", vec![("x_jwt", None)]),
            (&in_query, vec![], "/user?a=1&b=%2F", vec![]),
            (&only_query, vec![], "/user", vec![]),
            (
                "/user?x=1",
                vec![("cookie", &cookie)],
                "/user?x=1",
                vec![("cookie", Some("a=1; b=2"))],
            ),
            // Nobody's business here: not looked at, and left where it is.
            (
                "/open?access_token=x",
                vec![("authorization", "Bearer x")],
                "/open?access_token=x",
                vec![("authorization", Some("Bearer x"))],
            ),
        ] {
            let answer = ask(&shop, WEB, target, &fields).await;
            assert_eq!(answer.status, 200, "{target} {fields:?} {answer:?}");
            for request in seen(&shop) {
                assert_eq!(request.target, seen_target);
                for (name, value) in &seen_fields {
                    assert_eq!(request.field(name), *value, "{fields:?}");
                }
                assert!(!request.head.contains(&alice), "{}", request.head);
            }
        }
    });
}

#[test]
fn what_the_app_is_told_of_a_user_no_client_can_say() {
    run(async {
        let told = "outputPayloadToHeader: x-user\n    outputClaimToHeaders: [{header: x-group, claim: realm.group}]";
        let shop = believing(&rule(told)).await;
        let alice = token(&json!({ "realm": { "group": "admins" } }));
        let bearer = format!("Bearer {alice}");
        let forged = [
            ("x-user", "root"),
            ("X_User", "root"),
            ("x-group", "root"),
            ("X.Group", "root"),
            ("connection", "x-group, x-user"),
        ];
        let without = ask(&shop, WEB, "/open", &forged).await;
        assert_eq!(without.status, 200);
        for request in seen(&shop) {
            assert!(!request.head.contains("root"), "{}", request.head);
        }
        let with: Vec<_> = forged.into_iter().chain([("authorization", bearer.as_str())]).collect();
        assert_eq!(ask(&shop, WEB, "/user", &with).await.status, 200);
        let payload = alice.split('.').nth(1).unwrap();
        for request in seen(&shop) {
            assert_eq!(request.all("x-group"), ["admins"]);
            assert_eq!(request.all("x-user"), [payload]);
            assert!(!request.head.contains("root"), "{}", request.head);
        }
        // Policy sees what the app sees.
        assert_eq!(ask(&shop, WEB, "/group", &[("x-group", "admins")]).await.status, 403);
        assert_eq!(ask(&shop, WEB, "/group", &[("x_group", "admins")]).await.status, 403);
        assert_eq!(with_token(&shop, "/group", &alice).await.status, 200);
    });
}

#[test]
fn a_denial_that_a_login_would_change_says_which() {
    run(async {
        let shop = shop().await;
        let pwd = token(&json!({ "amr": ["pwd"], "acr": "silver", "auth_time": now() - 3600, "scope": "read" }));
        let answer = ask(&shop, WEB, "/user", &[]).await;
        assert_eq!(
            (answer.status, answer.challenge.as_deref()),
            (401, Some(r#"Bearer realm="mesh""#))
        );
        let stronger = "Bearer realm=\"mesh\", error=\"insufficient_user_authentication\", \
                        error_description=\"A different authentication level is required\"";
        for (path, status, challenge) in [
            ("/mfa", 401, stronger.to_owned()),
            (
                "/gold",
                401,
                format!("{stronger}, acr_values=\"gold\", max_age=\"900\""),
            ),
            (
                "/write",
                403,
                r#"Bearer realm="mesh", error="insufficient_scope", scope="write""#.to_owned(),
            ),
        ] {
            let answer = with_token(&shop, path, &pwd).await;
            assert_eq!((answer.status, answer.challenge), (status, Some(challenge)), "{path}");
            assert!(answer.text.starts_with("no_allow_rule"), "{}", answer.text);
        }
        let strong =
            token(&json!({ "amr": ["pwd", "otp"], "acr": "gold", "auth_time": now() - 60, "scope": "read write" }));
        for path in ["/mfa", "/gold", "/write"] {
            assert_eq!(with_token(&shop, path, &strong).await.status, 200, "{path}");
        }
        // What no login changes asks for none.
        let answer = with_token(&shop, "/elsewhere", &strong).await;
        assert_eq!((answer.status, answer.challenge), (403, None));
        // Where no token would be looked at none is asked for.
        shop.cart.believes("", None);
        shop.cart.policy(USERS);
        let answer = ask(&shop, WEB, "/user", &[]).await;
        assert_eq!((answer.status, answer.challenge), (403, None));
    });
}

#[test]
fn a_grpc_caller_is_told_in_grpcs_way() {
    run(async {
        let shop = shop().await;
        let mut client = Client::over(shop.connect(WEB, b"postern/h2").await).await;
        let mut call = request(Method::POST, "/user");
        call.headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        let answer = client.request(call).await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.fields["grpc-status"], "16");
        assert_eq!(answer.fields["www-authenticate"], r#"Bearer realm="mesh""#);
    });
}

#[test]
fn a_token_is_of_no_use_to_a_workload_that_it_was_not_issued_to() {
    run(async {
        let shop = believing(&rule(
            "bindToWorkload: [{clientId: web, principals: [cluster.local/ns/shop/sa/web]}]",
        ))
        .await;
        let bearer = format!("Bearer {}", token(&json!({})));
        assert_eq!(
            ask(&shop, WEB, "/user", &[("authorization", &bearer)]).await.status,
            200
        );
        // The same token, remembered by now.
        let stolen = ask(&shop, MALLORY, "/user", &[("authorization", &bearer)]).await;
        assert_eq!(stolen.status, 401);
        assert!(stolen.text.starts_with("token_wrong_caller"), "{}", stolen.text);
        let other = token(&json!({ "azp": "mobile" }));
        assert_eq!(with_token(&shop, "/user", &other).await.status, 401);
    });
}

#[test]
fn a_token_bound_to_a_certificate_is_good_over_that_certificates_connections_alone() {
    run(async {
        let shop = shop().await;
        let card = shop.authority.card(WEB, |_| {});
        let leaf = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &card.chain[0]);
        let bound = token(&json!({ "cnf": { "x5t#S256": mint::base64url(leaf) } }));
        let ask = format!("GET /user HTTP/1.1\r\nHost: cart\r\nAuthorization: Bearer {bound}\r\n\r\n");
        let its = hostile_client(Some(card), &[b"postern/h1"]);
        let mut own = Conn::tls(shop.door, its).await.unwrap();
        own.send(&ask).await;
        assert_eq!(own.answer().await.status, 200);
        // Another certificate of the same workload.
        let mut other = shop.h1().await;
        other.send(&ask).await;
        let answer = other.answer().await;
        assert_eq!(answer.status, 401);
        assert!(answer.text().starts_with("token_wrong_caller"), "{}", answer.text());
    });
}

#[test]
fn an_issuer_that_is_away_for_an_hour_locks_nobody_out_and_one_for_longer_than_is_allowed_does() {
    run(async {
        let shop = shop().await;
        let alice = token(&json!({}));
        for (away, status) in [(3_600, 200), (24 * 3_600 + 1, 503)] {
            let mut keys = keys(&[(&P256, "p256")]);
            keys.fetched -= away;
            shop.cart.believes(SSO, Some(&keys));
            shop.cart.policy(USERS);
            assert_eq!(with_token(&shop, "/user", &alice).await.status, status, "{away}");
        }
    });
}

/// What control does with questions: it answers each with these keys after a moment. Returns how many there were.
async fn answer_questions(shop: &Shop, keys: &Keys, after: Duration) -> u64 {
    let mut missed = shop.cart.shared.missed_keys.subscribe();
    missed.changed().await.unwrap();
    tokio::time::sleep(after).await;
    let mut asked = Vec::new();
    shop.cart.shared.missed_keys.send_if_modified(|missed| {
        asked.extend(missed.take());
        false
    });
    let [(provider, number)] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!(provider, "https://sso.test/jwks");
    shop.cart.believes(SSO, Some(keys));
    shop.cart.answered(provider, *number);
    shop.cart.policy(USERS);
    *number
}

#[test]
fn a_key_that_is_new_is_waited_for_and_no_good_token_is_refused() {
    run(async {
        let shop = shop().await;
        let fresh = signed(&OTHER_P256, "new");
        let bearer = format!("Bearer {fresh}");
        let both = keys(&[(&P256, "p256"), (&OTHER_P256, "new")]);
        let mut conns = Vec::new();
        for _ in 0..5 {
            conns.push(shop.h1().await);
        }
        let mut h2 = Client::over(shop.connect(WEB, b"postern/h2").await).await;
        for conn in &mut conns {
            conn.send(format!(
                "GET /user HTTP/1.1\r\nHost: cart\r\nAuthorization: {bearer}\r\n\r\n"
            ))
            .await;
        }
        let over_h2 = async {
            let mut get = get("/user");
            get.headers_mut().insert("authorization", bearer.parse().unwrap());
            h2.request(get).await.unwrap().status
        };
        let (number, status) = tokio::join!(answer_questions(&shop, &both, Duration::from_millis(200)), over_h2);
        assert_eq!((number, status), (1, 200), "one question for all");
        for conn in &mut conns {
            assert_eq!(conn.answer().await.status, 200);
            // And the connection serves on.
            conn.send("GET /open HTTP/1.1\r\nHost: cart\r\n\r\n").await;
            assert_eq!(conn.answer().await.status, 200);
        }
        let refused = ["outcome=\"denied\""];
        assert_eq!(shop.cart.metric("postern_proxy_requests_total", &refused), 0);
    });
}

#[test]
fn a_key_that_its_issuer_does_not_have_is_refused_once_that_is_known_and_not_asked_for_again_at_once() {
    run(async {
        let shop = shop().await;
        let bearer = format!(
            "GET /open HTTP/1.1\r\nHost: cart\r\nAuthorization: Bearer {}\r\n\r\n",
            signed(&OTHER_P256, "gone")
        );
        let mut conn = shop.h1().await;
        conn.send(&bearer).await;
        answer_questions(&shop, &keys(&[(&P256, "p256")]), Duration::from_millis(50)).await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, 401);
        assert!(answer.text().starts_with("token_unknown_key"), "{}", answer.text());
        let missed = shop.cart.shared.missed_keys.subscribe();
        let began = Instant::now();
        for _ in 0..3 {
            let mut conn = shop.h1().await;
            conn.send(&bearer).await;
            assert_eq!(conn.answer().await.status, 401);
        }
        assert!(began.elapsed() < KEYS_DEADLINE && !missed.has_changed().unwrap());
        shop.probe().await;
    });
}

#[test]
fn a_key_of_which_nothing_is_heard_is_not_the_tokens_fault() {
    run(async {
        let shop = shop().await;
        let began = Instant::now();
        let mut conn = shop.h1().await;
        let token = signed(&OTHER_P256, "new");
        conn.send(format!(
            "GET /user HTTP/1.1\r\nHost: cart\r\nAuthorization: Bearer {token}\r\n\r\n"
        ))
        .await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.field("retry-after"), Some("2"));
        assert_eq!(answer.field("www-authenticate"), None);
        assert!(answer.text().starts_with("token_key_awaited"), "{}", answer.text());
        assert!(began.elapsed() >= KEYS_DEADLINE);
        // Keys that were never there: the same, under its own word.
        shop.cart.believes(SSO, None);
        shop.cart.policy(USERS);
        conn.send(format!(
            "GET /user HTTP/1.1\r\nHost: cart\r\nAuthorization: Bearer {token}\r\n\r\n"
        ))
        .await;
        let answer = conn.answer().await;
        assert_eq!((answer.status, answer.field("retry-after")), (503, Some("2")));
        assert!(answer.text().starts_with("token_keys_missing"), "{}", answer.text());
        // Whoever brings none is served.
        shop.probe().await;
    });
}

#[test]
fn so_many_wait_for_keys_and_not_one_more() {
    run(async {
        let shop = shop().await;
        let bearer = format!("Bearer {}", signed(&OTHER_P256, "new"));
        let asking = || {
            let mut get = get("/user");
            get.headers_mut().insert("authorization", bearer.parse().unwrap());
            get
        };
        let mut waiting = Vec::new();
        let mut client = Client::over(shop.connect(WEB, b"postern/h2").await).await;
        for n in 0..MAX_WAITING_FOR_KEYS {
            if n % 90 == 89 {
                client = Client::over(shop.connect(WEB, b"postern/h2").await).await;
            }
            soon(
                "room for a stream",
                std::future::poll_fn(|cx| client.send.poll_ready(cx)),
            )
            .await
            .unwrap();
            waiting.push((client.send.clone(), client.send.send_request(asking(), true).unwrap().0));
        }
        until("all wait", || shop.cart.worker.tokens.waiting() == MAX_WAITING_FOR_KEYS).await;
        let began = Instant::now();
        let mut conn = shop.h1().await;
        conn.send(format!(
            "GET /user HTTP/1.1\r\nHost: cart\r\nAuthorization: {bearer}\r\n\r\n"
        ))
        .await;
        assert_eq!(conn.answer().await.status, 503);
        assert!(began.elapsed() < KEYS_DEADLINE / 2, "{:?}", began.elapsed());
        for (_, answer) in waiting {
            assert_eq!(soon("an answer", answer).await.unwrap().status(), 503);
        }
        assert_eq!(shop.cart.worker.tokens.waiting(), 0);
        shop.probe().await;
    });
}

#[test]
fn a_document_that_cannot_be_read_refuses_tokens_and_nobody_else() {
    run(async {
        let shop = believing(&SSO.replace("audiences", "audience")).await;
        let answer = with_token(&shop, "/open", &token(&json!({}))).await;
        assert_eq!((answer.status, answer.challenge), (503, None));
        assert!(answer.text.starts_with("token_document_unreadable"), "{}", answer.text);
        assert_eq!(ask(&shop, WEB, "/open", &[]).await.status, 200);
        assert_eq!(ask(&shop, WEB, "/user", &[]).await.status, 401);
    });
}

#[test]
fn in_monitor_a_bad_token_is_reported_and_in_discover_it_passes() {
    run(async {
        let shop = believing(&rule("outputPayloadToHeader: x-user")).await;
        let fields = [("authorization", "Bearer x"), ("x-user", "root")];
        shop.cart.policy_in(Mode::Monitor, USERS);
        assert_eq!(ask(&shop, WEB, "/open", &fields).await.status, 200);
        for request in seen(&shop) {
            // What is not believed is not ours to take; what is told never is a client's.
            assert_eq!(request.field("authorization"), Some("Bearer x"));
            assert_eq!(request.field("x-user"), None);
        }
        let labels = ["reason=\"token_malformed\"", "enforced=\"false\""];
        assert_eq!(shop.cart.metric("postern_proxy_denials_total", &labels), 2);
        assert_eq!(
            shop.cart
                .metric("postern_proxy_requests_total", &["outcome=\"would_deny\""]),
            2
        );
        // A key that is missed is asked for, and nobody waits.
        let began = Instant::now();
        assert_eq!(
            with_token(&shop, "/open", &signed(&OTHER_P256, "new")).await.status,
            200
        );
        assert!(began.elapsed() < KEYS_DEADLINE);
        shop.cart.shared.missed_keys.send_if_modified(|missed| {
            assert_eq!(missed.take().len(), 1);
            false
        });
        shop.cart.policy_in(Mode::Discover, USERS);
        assert_eq!(ask(&shop, WEB, "/user", &fields).await.status, 200);
        assert_eq!(shop.cart.metric("postern_proxy_denials_total", &labels), 2);
    });
}

#[test]
fn bytes_do_not_pass_by_where_tokens_are_looked_for() {
    run(async {
        let shop = Shop::with(Protocol::Detect, WEB_ONLY).await;
        let forged = "GET /user HTTP/1.1\r\nHost: cart\r\nAuthorization: Bearer forged\r\n\r\n";
        let mut before = shop.web(b"postern/tcp").await;
        before.send(forged).await;
        assert_eq!(before.answer().await.status, 200);
        shop.cart.believes(SSO, Some(&keys(&[(&P256, "p256")])));
        shop.cart.policy(WEB_ONLY);
        assert_eq!(soon("the open stream is cut", before.rest()).await, b"");
        let mut after = shop.web(b"postern/tcp").await;
        after.send(forged).await;
        assert_eq!(soon("the new one is refused", after.rest()).await, b"");
        assert_eq!(shop.app.requests().len(), 1);
    });
}

/// Sends a request with `trailers`, over HTTP/1.1 and over HTTP/2, and what the app got of them.
async fn trailers_seen(shop: &Shop, trailers: &[(&'static str, &str)]) -> Vec<(String, String)> {
    let section: String = trailers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let mut conn = shop.h1().await;
    conn.send(format!(
        "POST /open HTTP/1.1\r\nHost: cart\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n{section}\r\n"
    ))
    .await;
    assert_eq!(conn.answer().await.status, 200);
    let mut client = Client::over(shop.web(b"postern/h2").await).await;
    let map = trailers
        .iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
        .collect();
    let mut call = request(Method::POST, "/open");
    // What hyper writes of them over HTTP/1.1 is what was announced.
    let names: Vec<&str> = trailers.iter().map(|(name, _)| *name).collect();
    call.headers_mut().insert("trailer", names.join(", ").parse().unwrap());
    assert_eq!(client.post(call, b"hi", Some(map)).await.unwrap().status, 200);
    let [one, other] = seen(shop);
    assert_eq!((&*one.body, &*other.body), (&b"hi"[..], &b"hi"[..]));
    assert_eq!(one.trailers, other.trailers);
    one.trailers
}

#[test]
fn h1_08_no_trailer_tells_the_app_of_users_or_what_rules_would_look_at() {
    run(async {
        let forged = [("x-user", "root"), ("x-checksum", "good")];
        let told = believing(&rule("outputPayloadToHeader: x-user")).await;
        assert_eq!(trailers_seen(&told, &forged).await, []);
        // Rules look at fields: USERS names x-group.
        let fields = Shop::with(Protocol::Http1, USERS).await;
        assert_eq!(trailers_seen(&fields, &forged).await, []);
        // Nobody looks at any, and nobody tells any.
        let plain = Shop::with(Protocol::Http1, WEB_ONLY).await;
        assert_eq!(
            trailers_seen(&plain, &forged).await,
            forged.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    });
}

async fn streaming(shop: &Shop, token: &str) -> Conn {
    let mut conn = shop.h1().await;
    conn.send(format!(
        "POST /user HTTP/1.1\r\nHost: cart\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
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
fn z_07_a_stream_ends_with_the_token_that_it_was_admitted_on() {
    run(async {
        let shop = Shop::before(endless().await, Protocol::Http1, USERS).await;
        shop.cart.believes(SSO, Some(&keys(&[(&P256, "p256")])));
        shop.cart.policy(USERS);
        let end = now() + 2;
        let mut short = streaming(&shop, &token(&json!({ "exp": end }))).await;
        let mut long = streaming(&shop, &token(&json!({}))).await;
        goes_on(&mut short).await;
        assert_eq!(short.rest().await, b"");
        let over = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let ends = Duration::from_secs(end);
        assert!(
            over >= ends && over < ends + Duration::from_secs(1),
            "{over:?} {ends:?}"
        );
        goes_on(&mut long).await;
        let labels = ["reason=\"token_expired\"", "enforced=\"true\""];
        assert_eq!(shop.cart.metric("postern_proxy_denials_total", &labels), 1);
    });
}

#[test]
fn z_07_a_stream_ends_when_its_users_keys_or_documents_are_withdrawn_and_not_when_they_are_renewed() {
    run(async {
        let shop = Shop::before(endless().await, Protocol::Http1, USERS).await;
        let both = keys(&[(&P256, "p256"), (&OTHER_P256, "other")]);
        let other = signed(&OTHER_P256, "other");
        let believe = |documents: &str, keys: &Keys| {
            shop.cart.believes(documents, Some(keys));
            shop.cart.policy(USERS);
        };
        believe(SSO, &both);
        let mut of_other = streaming(&shop, &other).await;
        let mut of_first = streaming(&shop, &token(&json!({}))).await;
        // Fetched anew, and under another document that says the same and more.
        believe(&format!("\n\n{}", rule("timeout: 7s")), &both);
        goes_on(&mut of_other).await;
        goes_on(&mut of_first).await;
        // One key is withdrawn.
        let changed = Instant::now();
        believe(SSO, &keys(&[(&P256, "p256")]));
        assert_eq!(of_other.rest().await, b"");
        assert!(changed.elapsed() < Duration::from_secs(1), "{:?}", changed.elapsed());
        goes_on(&mut of_first).await;
        // The audience is another one.
        believe(&SSO.replace("[shop]", "[bank]"), &keys(&[(&P256, "p256")]));
        assert_eq!(of_first.rest().await, b"");
        // No document: nobody is a user.
        believe(SSO, &keys(&[(&P256, "p256")]));
        let mut again = streaming(&shop, &token(&json!({}))).await;
        shop.cart.believes("", None);
        shop.cart.policy(USERS);
        assert_eq!(again.rest().await, b"");
    });
}
