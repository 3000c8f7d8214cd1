//! Rego: what is taken, what is refused and where, and what a decision becomes.
#![cfg(feature = "rego")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use postern_authorizer::rego::{MAX_BYTES, MAX_LIMIT, MAX_MODULES, Source};
use postern_authorizer::{Body, Check, Failure, Http, Peer, RegoError, RegoPolicy, Verdict};

fn source(text: &str) -> Source {
    Source {
        modules: [("policy.rego".to_owned(), text.to_owned())].into(),
        limit: MAX_LIMIT,
        ..Source::default()
    }
}

fn refused(text: &str) -> RegoError {
    RegoPolicy::load(&source(text)).expect_err(text)
}

fn check() -> Check {
    let mut http = Http {
        id: "7".into(),
        method: "GET".into(),
        headers: BTreeMap::new(),
        path: "/people/alice?full=1&full=2".into(),
        host: "orders:8080".into(),
        scheme: "https",
        protocol: "HTTP/1.1",
        size: -1,
        body: None,
    };
    http.add_header("x-team", b"blue");
    http.finish();
    Check {
        source: Peer {
            address: Some("10.0.0.7:4711".parse().unwrap()),
            principal: Some("spiffe://cluster.local/ns/shop/sa/web".into()),
        },
        destination: Peer {
            address: Some("10.0.0.8:8080".parse().unwrap()),
            principal: Some("spiffe://cluster.local/ns/shop/sa/orders".into()),
        },
        time: SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789),
        http: Some(http),
        sni: Some("orders".into()),
        context: [("tier".to_owned(), "gold".to_owned())].into(),
        facts: serde_json::json!({"source": {"namespace": "shop", "labels": {"app": "web"}}})
            .as_object()
            .unwrap()
            .clone(),
    }
}

fn decide(text: &str, check: &Check) -> Result<Verdict, Failure> {
    RegoPolicy::load(&source(text))
        .map_err(|error| panic!("{error}"))
        .unwrap()
        .evaluator()
        .decide(check)
}

fn decides(rule: &str) -> Result<Verdict, Failure> {
    decide(&format!("package envoy.authz\n{rule}"), &check())
}

fn allows(condition: &str) -> bool {
    matches!(
        decides(&format!("default allow := false\nallow if {{ {condition} }}")),
        Ok(Verdict::Allow(_))
    )
}

#[test]
fn the_input_is_the_document_of_opa_envoy() {
    for condition in [
        r#"input.attributes.request.http.method == "GET""#,
        r#"input.attributes.request.http.path == "/people/alice?full=1&full=2""#,
        r#"input.attributes.request.http.headers["x-team"] == "blue""#,
        r#"input.attributes.request.http.headers[":authority"] == "orders:8080""#,
        r#"input.attributes.request.http.size == "-1""#,
        r#"input.attributes.request.time == "2023-11-14T22:13:20.123456789Z""#,
        r#"input.parsed_path == ["people", "alice"]"#,
        r#"input.parsed_query.full == ["1", "2"]"#,
        r#"input.parsed_body == null; input.truncated_body == false"#,
        r#"input.attributes.source.principal == "spiffe://cluster.local/ns/shop/sa/web""#,
        r#"input.attributes.source.address.socketAddress == {"address": "10.0.0.7", "portValue": 4711}"#,
        r#"input.attributes.destination.address.socketAddress.portValue == 8080"#,
        r#"input.attributes.tlsSession.sni == "orders""#,
        r#"input.attributes.contextExtensions.tier == "gold""#,
        r#"input.attributes.metadataContext.filterMetadata.postern.source.labels.app == "web""#,
        r#"input.version == {"ext_authz": "v3", "encoding": "protojson"}"#,
        "not input.attributes.request.http.body",
        "not input.attributes.source.certificate",
        "time.now_ns() == 1700000000123456789",
    ] {
        assert!(allows(condition), "{condition}");
    }
}

fn with_body(kind: &str, length: Option<&str>, bytes: &[u8], cut: bool) -> Check {
    let mut check = check();
    let http = check.http.as_mut().unwrap();
    http.add_header("content-type", kind.as_bytes());
    if let Some(length) = length {
        http.add_header("content-length", length.as_bytes());
    }
    http.body = Some(Body {
        bytes: bytes.to_vec(),
        cut,
    });
    http.finish();
    check
}

#[test]
fn bodies_are_parsed_by_their_type_and_never_in_part() {
    let seen = |condition: &str, check: &Check| {
        let text = format!("package envoy.authz\ndefault allow := false\nallow if {{ {condition} }}");
        matches!(decide(&text, check), Ok(Verdict::Allow(_)))
    };
    let json = with_body(
        "application/json; charset=utf-8",
        Some("15"),
        br#"{"a": [1, "b"]}"#,
        false,
    );
    assert!(seen(
        r#"input.parsed_body.a == [1, "b"]; input.truncated_body == false"#,
        &json
    ));
    assert!(seen(
        r#"input.attributes.request.http.body == "{\"a\": [1, \"b\"]}""#,
        &json
    ));
    let form = with_body("application/x-www-form-urlencoded", None, b"a=1&b=x+y&a=%32", false);
    assert!(seen(r#"input.parsed_body == {"a": ["1", "2"], "b": ["x y"]}"#, &form));
    let cut = with_body("application/json", Some("100"), br#"{"a": 1"#, true);
    assert!(seen("input.parsed_body == null; input.truncated_body == true", &cut));
    let chunked = with_body("application/json", None, br#"{"a": 1"#, true);
    assert!(seen(
        "input.parsed_body == null; input.truncated_body == true",
        &chunked
    ));
    let other = with_body("text/plain", Some("3"), b"a\xffb", false);
    assert!(seen(
        r#"input.parsed_body == null; input.attributes.request.http.rawBody == "Yf9i""#,
        &other
    ));
    for (kind, bytes) in [
        ("application/json", &b"{"[..]),
        ("application/json", b"{} {}"),
        ("application/x-www-form-urlencoded", b"a=%zz"),
        ("multipart/form-data; boundary=x", b"--x--"),
    ] {
        let bad = with_body(kind, None, bytes, false);
        let answer = decide("package envoy.authz\nallow := true", &bad);
        assert!(matches!(answer, Err(Failure::Unaskable(_))), "{kind}: {answer:?}");
    }
}

#[test]
fn a_path_whose_escapes_are_broken_is_not_asked_about() {
    let mut bad = check();
    bad.http.as_mut().unwrap().path = "/a%zz".into();
    assert!(matches!(
        decide("package envoy.authz\nallow := true", &bad),
        Err(Failure::Unaskable(_))
    ));
}

#[test]
fn a_decision_is_a_boolean_or_the_object_of_opa_envoy() {
    assert_eq!(decides("allow := true"), Ok(Verdict::Allow(Default::default())));
    let Ok(Verdict::Deny(bare)) = decides("allow := false") else {
        panic!("denied")
    };
    assert_eq!((bare.status.as_u16(), bare.body.len()), (403, 0));

    let Ok(Verdict::Allow(edits)) = decides(
        r#"allow := {"allowed": true, "headers": {"x-user": "alice", "x-many": ["a", "b"]},
        "request_headers_to_remove": ["cookie"], "response_headers_to_add": [{"x-told": "yes"}],
        "query_parameters_to_remove": ["full"], "query_parameters_to_set": {"who": "alice"}, "dynamic_metadata": {"a": 1}}"#,
    ) else {
        panic!("allowed")
    };
    let shown: Vec<_> = edits
        .request
        .iter()
        .map(|(n, v, _)| format!("{n}={}", v.to_str().unwrap()))
        .collect();
    assert_eq!(shown, ["x-many=a", "x-many=b", "x-user=alice"]);
    assert_eq!(edits.remove, ["cookie"]);
    assert_eq!(edits.answer.len(), 1);
    assert_eq!(edits.set_query, [("who".to_owned(), "alice".to_owned())]);
    assert_eq!(edits.remove_query, ["full"]);

    let Ok(Verdict::Deny(told)) = decides(
        r#"allow := {"allowed": false, "http_status": 401, "body": "who are you?", "headers": {"www-authenticate": "Bearer"}}"#,
    ) else {
        panic!("denied")
    };
    assert_eq!(
        (told.status.as_u16(), &told.body[..], told.headers.len()),
        (401, &b"who are you?"[..], 1)
    );
}

#[test]
fn whatever_else_a_policy_says_is_a_failure() {
    for (rule, reason) in [
        ("allow if false", "undefined"),
        ("allow := 1", "nonsense"),
        (r#"allow := "true""#, "nonsense"),
        ("allow contains true", "nonsense"),
        (r#"allow := {"headers": {}}"#, "nonsense"),
        (r#"allow := {"allowed": "true"}"#, "nonsense"),
        (r#"allow := {"allowed": true, "headers": {"a": 1}}"#, "nonsense"),
        (r#"allow := {"allowed": true, "headers": "a"}"#, "nonsense"),
        (
            r#"allow := {"allowed": true, "headers": {":path": "/"}}"#,
            "forbidden_field",
        ),
        (
            r#"allow := {"allowed": true, "headers": {"x-postern-source": "spiffe://x"}}"#,
            "forbidden_field",
        ),
        (
            r#"allow := {"allowed": true, "headers": {"X_Forwarded.Client-Cert": "x"}}"#,
            "forbidden_field",
        ),
        (
            r#"allow := {"allowed": true, "headers": {"a": "b\r\nc: d"}}"#,
            "forbidden_field",
        ),
        (
            r#"allow := {"allowed": true, "request_headers_to_remove": ["host"]}"#,
            "forbidden_field",
        ),
        (
            r#"allow := {"allowed": true, "response_headers_to_add": {"content-length": "1"}}"#,
            "forbidden_field",
        ),
        (r#"allow := {"allowed": false, "http_status": "403"}"#, "nonsense"),
        (r#"allow := {"allowed": false, "http_status": 99}"#, "nonsense"),
        (r#"allow := {"allowed": false, "body": 1}"#, "nonsense"),
        (
            "allow := true if input.parsed_path\nallow := false if input.parsed_query",
            "evaluation",
        ),
        ("allow if { b }\nb if { allow }", "evaluation"),
    ] {
        let answer = decides(rule);
        assert_eq!(
            answer.as_ref().err().map(Failure::reason),
            Some(reason),
            "{rule}: {answer:?}"
        );
    }
}

#[test]
fn a_policy_that_runs_on_is_stopped_at_its_limit() {
    let endless = "allow if { some i in numbers.range(1, 9999); some j in numbers.range(1, 9999); i * j == 0.5 }";
    assert_eq!(decides(endless), Err(Failure::Timeout));
    assert!(matches!(
        decides("allow if numbers.range(1, 1000000000)"),
        Err(Failure::Evaluation(_))
    ));
}

#[test]
fn an_evaluator_remembers_nothing_of_the_request_before() {
    let text = "package envoy.authz\ndefault allow := false\nallow if input.attributes.request.http.method == \"GET\"";
    let mut evaluator = RegoPolicy::load(&source(text)).unwrap().evaluator();
    let mut post = check();
    post.http.as_mut().unwrap().method = "POST".into();
    for _ in 0..3 {
        assert!(matches!(evaluator.decide(&check()), Ok(Verdict::Allow(_))));
        assert!(matches!(evaluator.decide(&post), Ok(Verdict::Deny(_))));
    }
}

#[test]
fn data_and_several_modules_work_together() {
    let policy = Source {
        modules: [
            (
                "a.rego".to_owned(),
                "package envoy.authz\nimport data.teams\ndefault allow := false\nallow if teams.may(input)".to_owned(),
            ),
            (
                "b.rego".to_owned(),
                "package teams\nmay(i) if i.attributes.request.http.headers[\"x-team\"] in data.known".to_owned(),
            ),
        ]
        .into(),
        data: serde_json::json!({"known": ["blue"]}).as_object().unwrap().clone(),
        ..Source::default()
    };
    let mut evaluator = RegoPolicy::load(&policy).unwrap().evaluator();
    assert!(matches!(evaluator.decide(&check()), Ok(Verdict::Allow(_))));
}

#[test]
fn a_policy_of_the_old_language_is_read_if_it_says_so() {
    let old = "package envoy.authz\ndefault allow = false\nallow { input.attributes.request.http.method == \"GET\" }";
    assert!(RegoPolicy::load(&source(old)).is_err());
    let mut evaluator = RegoPolicy::load(&Source {
        v0: true,
        ..source(old)
    })
    .unwrap()
    .evaluator();
    assert!(matches!(evaluator.decide(&check()), Ok(Verdict::Allow(_))));
}

#[test]
fn the_stock_policy_of_opa_envoys_quick_start_runs_as_it_is() {
    // "alice", role "guest", no expiry, HS256 under "secret", as in the quick start.
    let stock = r#"package envoy.authz
import rego.v1
import input.attributes.request.http as http_request
default allow := false
allow if { is_token_valid; action_allowed }
is_token_valid if {
    token.valid
    now := time.now_ns() / 1000000000
    token.payload.nbf <= now
    now < token.payload.exp
}
action_allowed if {
    http_request.method == "GET"
    token.payload.role == "guest"
    glob.match("/people*", ["/"], http_request.path)
}
action_allowed if {
    http_request.method == "POST"
    token.payload.role == "admin"
    lower(input.parsed_body.firstname) != base64url.decode(token.payload.sub)
}
token := {"valid": valid, "payload": payload} if {
    [_, encoded] := split(http_request.headers.authorization, " ")
    [valid, _, payload] := io.jwt.decode_verify(encoded, {"secret": "secret"})
}
"#;
    let mut asked = check();
    let http = asked.http.as_mut().unwrap();
    http.path = "/people".into();
    let token = token(
        &serde_json::json!({"alg": "HS256", "typ": "JWT"}),
        &serde_json::json!({"role": "guest", "sub": "YWxpY2U=", "nbf": 1_514_851_139, "exp": 2_641_081_539u64}),
        b"secret",
    );
    http.add_header("authorization", format!("Bearer {token}").as_bytes());
    assert!(matches!(decide(stock, &asked), Ok(Verdict::Allow(_))));
    asked.http.as_mut().unwrap().method = "POST".into();
    assert!(matches!(decide(stock, &asked), Ok(Verdict::Deny(_))));
}

fn token(header: &serde_json::Value, payload: &serde_json::Value, secret: &[u8]) -> String {
    use base64::Engine as _;
    let encode = |bytes: &[u8]| base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let signed = format!(
        "{}.{}",
        encode(header.to_string().as_bytes()),
        encode(payload.to_string().as_bytes())
    );
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    format!(
        "{signed}.{}",
        encode(aws_lc_rs::hmac::sign(&key, signed.as_bytes()).as_ref())
    )
}

#[test]
fn tokens_are_verified_and_what_is_not_valid_shows_nothing() {
    let header = serde_json::json!({"alg": "HS256"});
    let good = token(
        &header,
        &serde_json::json!({"iss": "me", "aud": ["a", "b"], "exp": 1_700_000_001, "nbf": 1_700_000_000}),
        b"k",
    );
    let verified = |token: &str, constraints: &str, valid: bool| {
        let want = if valid { "p.iss == \"me\"" } else { "h == {}; p == {}" };
        allows(&format!(
            "[v, h, p] := io.jwt.decode_verify(\"{token}\", {constraints}); v == {valid}; {want}"
        ))
    };
    assert!(verified(
        &good,
        r#"{"secret": "k", "iss": "me", "aud": "b", "alg": "HS256"}"#,
        true
    ));
    for constraints in [
        r#"{"secret": "x", "aud": "b"}"#,
        r#"{"secret": "k"}"#,
        r#"{"secret": "k", "aud": "c"}"#,
        r#"{"secret": "k", "aud": "b", "iss": "you"}"#,
        r#"{"secret": "k", "aud": "b", "alg": "HS512"}"#,
        r#"{"secret": "k", "aud": "b", "time": 1700000001000000000}"#,
        r#"{"secret": "k", "aud": "b", "time": 1699999999999999999}"#,
    ] {
        assert!(verified(&good, constraints, false), "{constraints}");
    }
    // Without a key, with an unknown constraint, or not a token: undefined.
    for call in [
        format!(r#"io.jwt.decode_verify("{good}", {{"aud": "b"}})"#),
        format!(r#"io.jwt.decode_verify("{good}", {{"secret": "k", "audience": "b"}})"#),
        r#"io.jwt.decode_verify("a.b", {"secret": "k"})"#.to_owned(),
        r#"io.jwt.decode("e30.e30")"#.to_owned(),
    ] {
        assert!(allows(&format!("not {call}")), "{call}");
    }
    for unsigned in [
        serde_json::json!({"alg": "none"}),
        serde_json::json!({}),
        serde_json::json!({"alg": "HS256", "crit": ["x"]}),
    ] {
        let token = token(&unsigned, &serde_json::json!({"iss": "me"}), b"k");
        assert!(verified(&token, r#"{"secret": "k"}"#, false), "{unsigned}");
    }
    assert!(allows(&format!(
        r#"io.jwt.verify_hs256("{good}", "k"); not io.jwt.verify_hs384("{good}", "k")"#
    )));
    assert!(allows(&format!(
        r#"[h, p, s] := io.jwt.decode("{good}"); h.alg == "HS256"; p.iss == "me"; count(s) == 64"#
    )));
}

#[test]
fn a_signature_is_checked_with_keys_of_its_kind_only() {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use base64::Engine as _;
    let encode = |bytes: &[u8]| base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let point = pair.public_key().as_ref();
    let signed = format!(
        "{}.{}",
        encode(br#"{"alg":"ES256","kid":"1"}"#),
        encode(br#"{"iss":"me"}"#)
    );
    let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    let es = format!("{signed}.{}", encode(signature.as_ref()));
    let jwks = |kid: &str, alg: &str| {
        serde_json::json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": kid, "alg": alg, "x": encode(&point[1..33]), "y": encode(&point[33..])}]})
            .to_string()
            .replace('"', "\\\"")
    };
    assert!(allows(&format!(
        r#"io.jwt.verify_es256("{es}", "{}")"#,
        jwks("1", "ES256")
    )));
    assert!(allows(&format!(
        r#"[true, _, p] := io.jwt.decode_verify("{es}", {{"cert": "{}"}}); p.iss == "me""#,
        jwks("1", "ES256")
    )));
    assert!(allows(&format!(
        r#"io.jwt.verify_es256("{es}", "{}") == false"#,
        jwks("2", "ES256")
    )));
    assert!(allows(&format!(
        r#"io.jwt.verify_es256("{es}", "{}") == false"#,
        jwks("1", "ES384")
    )));
    // The public key's text as an HMAC secret: the classic confusion.
    let spki = aws_lc_rs::signature::KeyPair::public_key(&pair);
    let confused = token(
        &serde_json::json!({"alg": "HS256"}),
        &serde_json::json!({"iss": "me"}),
        spki.as_ref(),
    );
    assert!(allows(&format!(
        r#"[false, _, _] = io.jwt.decode_verify("{confused}", {{"cert": "{}"}})"#,
        jwks("1", "ES256")
    )));
}

#[test]
fn built_ins_that_policies_use_are_there() {
    for condition in [
        r#"net.cidr_contains("10.0.0.0/8", input.attributes.source.address.socketAddress.address)"#,
        r#"net.cidr_intersects("10.0.0.0/8", "10.1.0.0/16")"#,
        r#"net.cidr_merge(["10.0.0.0/9", "10.128.0.0/9"]) == {"10.0.0.0/8"}"#,
        r#"urlquery.decode_object("a=1&a=2&b=") == {"a": ["1", "2"], "b": [""]}"#,
        r#"urlquery.encode("a b/ü") == "a+b%2F%C3%BC"; urlquery.decode("a+b%2F") == "a b/""#,
        r#"urlquery.encode_object({"a": ["1", "2"], "b": "x y"}) == "a=1&a=2&b=x+y""#,
        r#"crypto.sha256("a") == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb""#,
        r#"crypto.hmac.equal(crypto.hmac.sha256("m", "k"), crypto.hmac.sha256("m", "k"))"#,
        r#"base64url.decode("YQ") == "a"; base64.encode("a") == "YQ==""#,
        r#"regex.match("^/people/[a-z]+", input.attributes.request.http.path)"#,
        r#"glob.match("/people/*", ["/"], "/people/alice")"#,
        r#"json.unmarshal("{\"a\": 1}").a == 1"#,
        r#"startswith("abc", "a"); trim_prefix("abc", "a") == "bc"; lower("A") == "a""#,
        r#"object.get({"a": 1}, "b", 2) == 2; count({1, 2}) == 2"#,
        r#"sprintf("%s-%d-%05d", ["a", 1, 7]) == "a-1-00007""#,
        r#"semver.compare("1.2.3", "1.10.0") == -1"#,
        "time.weekday(time.now_ns()) == \"Tuesday\"; time.clock(time.now_ns())[0] == 22",
        r#"units.parse_bytes("1Ki") == 1024"#,
    ] {
        assert!(allows(condition), "{condition}");
    }
}

#[test]
fn what_a_policy_may_not_call_is_refused_with_its_line_wherever_it_stands() {
    let rare = "package envoy.authz\ndefault allow := false\nallow if {\n  input.never == 1\n  every x in [y | y := object.keys(http.send({}))] { x }\n}";
    let error = refused(rare);
    assert_eq!(
        (error.module.as_deref(), error.place.map(|(line, _)| line)),
        (Some("policy.rego"), Some(5)),
        "{error}"
    );
    assert!(error.message.starts_with("`http.send` is not allowed"), "{error}");

    for (rule, words) in [
        (
            "allow if startwith(\"a\", \"b\")",
            "there is no function `startwith`; did you mean `startswith`?",
        ),
        (
            "allow if io.jwt.decode_verfy(\"a\", {})",
            "did you mean `io.jwt.decode_verify`?",
        ),
        ("allow if foo.bar.baz(1)", "there is no function `foo.bar.baz`"),
        ("allow if opa.runtime().env", "`opa.runtime` is not allowed"),
        ("allow if rand.intn(\"a\", 2) == 1", "`rand.intn` is not allowed"),
        (
            "allow if net.cidr_expand(\"10.0.0.0/8\")",
            "`net.cidr_expand` is not allowed",
        ),
        ("allow if bits.lsh(1, 99999999999)", "`bits.lsh` is not allowed"),
        (
            "allow if true with time.now_ns as 1",
            "`with` may replace parts of input and data only",
        ),
        (
            "allow if trim(\"a\", \"b\") with trim as http.send",
            "`with` may replace parts of input and data only",
        ),
        (
            "allow if io.jwt.decode(\"a\", x)",
            "`io.jwt.decode` takes 1 arguments, not 2",
        ),
        ("allow if sprintf(\"%999999999d\", [1])", "at most three digits"),
        ("allow if sprintf(\"%*d\", [9, 1])", "at most three digits"),
        ("allow if sprintf(input.x, [1])", "must be a literal string"),
        ("allow if f(1)\nf(x) := f(x + 1)", "`envoy.authz.f` calls itself"),
        (
            "allow if f(1)\nf(x) := g(x)\ng(x) := data.envoy.authz.f(x)",
            "calls itself",
        ),
        ("allow if f(1)\nf(x) := [f(y) | some y in x][0]", "calls itself"),
    ] {
        let error = refused(&format!("package envoy.authz\n{rule}"));
        assert!(error.to_string().contains(words), "{rule}: {error}");
    }
}

#[test]
fn what_does_not_parse_names_module_line_and_column() {
    let error = refused("package envoy.authz\n\nallow if input.x ==");
    assert_eq!(
        (error.module.as_deref(), error.place.map(|(line, _)| line)),
        (Some("policy.rego"), Some(3)),
        "{error}"
    );
    assert!(
        error.to_string().starts_with("module `policy.rego`, line 3, column "),
        "{error}"
    );
    let error = refused("package envoy.authz\nallowed := true");
    assert_eq!(
        error.to_string(),
        "query `data.envoy.authz.allow` names no rule of these modules"
    );
}

#[test]
fn chains_of_rules_and_functions_end_before_the_stack_does() {
    let rules = |deep: usize| {
        let mut text = "package envoy.authz\nallow if r1\n".to_owned();
        (1..deep).for_each(|n| text.push_str(&format!("r{n} if r{}\n", n + 1)));
        text + &format!("r{deep} := true")
    };
    let functions = |deep: usize| {
        let mut text = "package envoy.authz\nallow if f1(1)\n".to_owned();
        (1..deep).for_each(|n| text.push_str(&format!("f{n}(x) if f{}(x)\n", n + 1)));
        text + &format!("f{deep}(x) := x == 1")
    };
    for text in [rules(31), functions(31)] {
        // A worker's thread has as much.
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        let decided = thread.spawn(move || decide(&text, &check())).unwrap().join().unwrap();
        assert!(matches!(decided, Ok(Verdict::Allow(_))), "{decided:?}");
    }
    for text in [rules(32), functions(32), rules(500)] {
        assert!(refused(&text).message.contains("more than 32 deep"));
    }
}

#[test]
fn a_policy_has_bounds_in_every_direction() {
    let fine = "package envoy.authz\nallow := true";
    let with = |change: &dyn Fn(&mut Source)| {
        let mut changed = source(fine);
        change(&mut changed);
        RegoPolicy::load(&changed).map(drop)
    };
    assert_eq!(with(&|_| {}), Ok(()));
    let numbered = |count: usize| {
        (0..count)
            .map(|n| (format!("{n}.rego"), format!("package a{n}\nb := 1")))
            .collect::<BTreeMap<_, _>>()
    };
    assert_eq!(with(&|s| s.modules.extend(numbered(MAX_MODULES - 1))), Ok(()));
    assert!(with(&|s| s.modules.extend(numbered(MAX_MODULES))).is_err());
    assert!(with(&|s| s.modules.clear()).is_err());
    let padded = |bytes: usize| {
        let line = format!("\n#{}", "x".repeat(98));
        let mut text = fine.to_owned();
        while text.len() + line.len() <= bytes {
            text.push_str(&line);
        }
        text.push_str(&"\n".repeat(bytes - text.len()));
        text
    };
    assert_eq!(
        with(&|s| s.modules = [("a".to_owned(), padded(MAX_BYTES))].into()),
        Ok(())
    );
    assert!(with(&|s| s.modules = [("a".to_owned(), padded(MAX_BYTES + 1))].into()).is_err());
    let data = |bytes: usize| {
        serde_json::json!({"a": "x".repeat(bytes - 8)})
            .as_object()
            .unwrap()
            .clone()
    };
    assert_eq!(with(&|s| s.data = data(MAX_BYTES)), Ok(()));
    assert!(with(&|s| s.data = data(MAX_BYTES + 1)).is_err());
    assert_eq!(with(&|s| s.limit = MAX_LIMIT), Ok(()));
    assert!(with(&|s| s.limit = MAX_LIMIT + Duration::from_nanos(1)).is_err());
    assert!(with(&|s| s.limit = Duration::ZERO).is_err());
    for query in [
        "data",
        "data.",
        "input.allow",
        "data.envoy.authz.allow; http.send({})",
        "data.envoy..allow",
        "data.envoy[\"authz\"].allow",
        "",
    ] {
        assert!(with(&|s| s.query = query.to_owned()).is_err(), "{query}");
    }
}

/// The corpus of `fuzz/fuzz_targets/rego_load.rs`.
#[test]
fn every_module_of_the_fuzz_corpus_is_taken_or_refused_in_words() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/rego_load");
    let (mut taken, mut refused) = (0, 0);
    for file in std::fs::read_dir(folder).unwrap() {
        let Ok(text) = String::from_utf8(std::fs::read(file.unwrap().path()).unwrap()) else {
            continue;
        };
        match RegoPolicy::load(&source(&text)) {
            Ok(policy) => {
                taken += 1;
                let _ = policy.evaluator().decide(&check());
            }
            Err(error) => {
                refused += 1;
                assert!(!error.message.is_empty());
            }
        }
    }
    assert!(taken >= 8 && refused >= 3, "{taken} taken, {refused} refused");
}
