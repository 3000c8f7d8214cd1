//! Replies of ext_authz servers: what each means, and that none that is odd allows.
#![allow(clippy::unwrap_used)]

use postern_authorizer::envoy::config::core::v3::{HeaderValue, HeaderValueOption, QueryParameter};
use postern_authorizer::envoy::service::auth::v3::check_response::HttpResponse;
use postern_authorizer::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use postern_authorizer::envoy::r#type::v3::HttpStatus;
use postern_authorizer::google::rpc::Status;
use postern_authorizer::reply::{MAX_REPLY, decide, read};
use postern_authorizer::verdict::{MAX_BODY, MAX_FIELDS};
use postern_authorizer::{Append, Edits, Failure, Verdict};
use proptest::prelude::*;
use prost::Message as _;

fn reply(code: Option<i32>, http_response: Option<HttpResponse>) -> CheckResponse {
    CheckResponse {
        status: code.map(|code| Status {
            code,
            message: String::new(),
        }),
        http_response,
    }
}

fn header(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.into(),
            value: value.into(),
            raw_value: Vec::new(),
        }),
        append: None,
        append_action: 0,
    }
}

fn ok(response: OkHttpResponse) -> Result<Verdict, Failure> {
    decide(reply(Some(0), Some(HttpResponse::OkResponse(response))))
}

#[test]
fn a_reply_without_status_is_no_ok_although_envoy_takes_it_for_one() {
    assert_eq!(decide(reply(None, None)), Err(Failure::NoStatus));
    assert_eq!(read(&[]), Err(Failure::NoStatus));
    let allowing = HttpResponse::OkResponse(OkHttpResponse::default());
    assert_eq!(decide(reply(None, Some(allowing))), Err(Failure::NoStatus));
}

#[test]
fn ok_allows_and_every_other_code_denies() {
    assert_eq!(decide(reply(Some(0), None)), Ok(Verdict::Allow(Edits::default())));
    for code in [1, 2, 7, 16, 99, -1, i32::MAX] {
        let Ok(Verdict::Deny(bare)) = decide(reply(Some(code), None)) else {
            panic!("{code}")
        };
        assert_eq!(bare.status.as_u16(), 403);
        let ok = HttpResponse::OkResponse(OkHttpResponse::default());
        assert!(
            matches!(decide(reply(Some(code), Some(ok))), Ok(Verdict::Deny(_))),
            "{code}"
        );
    }
}

#[test]
fn an_error_response_is_a_failure_whatever_the_status() {
    for code in [0, 7] {
        let error = HttpResponse::ErrorResponse(DeniedHttpResponse::default());
        assert_eq!(decide(reply(Some(code), Some(error))), Err(Failure::ErrorResponse));
    }
}

#[test]
fn a_denial_brings_its_status_fields_and_body() {
    let denial = |code: Option<i32>, headers, body: String| {
        let status = code.map(|code| HttpStatus { code });
        decide(reply(
            Some(7),
            Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
                status,
                headers,
                body,
            })),
        ))
    };
    let Ok(Verdict::Deny(told)) = denial(Some(401), vec![header("www-authenticate", "Bearer")], "no".into()) else {
        panic!("denied")
    };
    assert_eq!(
        (told.status.as_u16(), &told.body[..], told.headers.len()),
        (401, &b"no"[..], 1)
    );
    let Ok(Verdict::Deny(bare)) = denial(None, Vec::new(), String::new()) else {
        panic!("denied")
    };
    assert_eq!(bare.status.as_u16(), 403);
    assert!(denial(Some(101), Vec::new(), String::new()).is_err());
    assert!(denial(Some(-5), Vec::new(), String::new()).is_err());
    assert!(denial(Some(403), vec![header("transfer-encoding", "chunked")], String::new()).is_err());
    assert!(denial(Some(403), Vec::new(), "x".repeat(MAX_BODY)).is_ok());
    assert!(denial(Some(403), Vec::new(), "x".repeat(MAX_BODY + 1)).is_err());
    assert!(denial(Some(403), vec![header("a", "b"); MAX_FIELDS], String::new()).is_ok());
    assert!(denial(Some(403), vec![header("a", "b"); MAX_FIELDS + 1], String::new()).is_err());
    let contradiction = HttpResponse::DeniedResponse(DeniedHttpResponse::default());
    assert!(decide(reply(Some(0), Some(contradiction))).is_err());
}

#[test]
fn an_allowing_reply_edits_in_the_way_it_says() {
    let mut appended = header("x-b", "2");
    appended.append = Some(true);
    let mut raw = header("x-c", "");
    raw.header.as_mut().unwrap().raw_value = vec![0xe9];
    let mut absent = header("x-d", "4");
    absent.append_action = 1;
    let answer = ok(OkHttpResponse {
        headers: vec![header("x-a", "1"), appended, raw, absent],
        headers_to_remove: vec!["Cookie".into()],
        response_headers_to_add: vec![header("x-e", "5")],
        query_parameters_to_set: vec![QueryParameter {
            key: "q".into(),
            value: "1 2".into(),
        }],
        query_parameters_to_remove: vec!["r".into()],
    });
    let Ok(Verdict::Allow(edits)) = answer else {
        panic!("{answer:?}")
    };
    let how: Vec<_> = edits.request.iter().map(|(_, _, how)| *how).collect();
    assert_eq!(
        how,
        [Append::Overwrite, Append::Append, Append::Overwrite, Append::IfAbsent]
    );
    assert_eq!(edits.request[2].1.as_bytes(), [0xe9]);
    assert_eq!(edits.remove, ["cookie"]);
    assert_eq!(edits.answer[0].2, Append::Append);
    assert_eq!(edits.set_query, [("q".to_owned(), "1 2".to_owned())]);
}

#[test]
fn one_forbidden_or_malformed_field_makes_the_whole_reply_a_failure() {
    for (key, value) in [
        (":path", "/admin"),
        ("host", "x"),
        ("Content-Length", "0"),
        ("connection", "x"),
        ("x-postern-source", "x"),
        ("x_postern_source", "x"),
        ("x-forwarded-client-cert", "x"),
        ("a b", "x"),
        ("", "x"),
        ("x-a", "b\r\nc: d"),
        ("x-a", "\0"),
    ] {
        let good = header("x-good", "1");
        let request = OkHttpResponse {
            headers: vec![good.clone(), header(key, value)],
            ..Default::default()
        };
        assert!(matches!(ok(request), Err(Failure::Field(_))), "{key:?}");
        let answer = OkHttpResponse {
            response_headers_to_add: vec![good.clone(), header(key, value)],
            ..Default::default()
        };
        assert!(matches!(ok(answer), Err(Failure::Field(_))), "{key:?}");
    }
    let removal = OkHttpResponse {
        headers_to_remove: vec!["X-Postern-Source".into()],
        ..Default::default()
    };
    assert!(ok(removal).is_err());
    let mut two = header("x-a", "1");
    two.header.as_mut().unwrap().raw_value = vec![b'2'];
    assert!(
        ok(OkHttpResponse {
            headers: vec![two],
            ..Default::default()
        })
        .is_err()
    );
    let none = HeaderValueOption {
        header: None,
        append: None,
        append_action: 0,
    };
    assert!(
        ok(OkHttpResponse {
            headers: vec![none],
            ..Default::default()
        })
        .is_err()
    );
    let mut odd = header("x-a", "1");
    odd.append_action = 9;
    assert!(
        ok(OkHttpResponse {
            headers: vec![odd],
            ..Default::default()
        })
        .is_err()
    );
}

#[test]
fn a_reply_is_bounded_in_bytes_and_fields() {
    let many = |count| OkHttpResponse {
        headers: vec![header("a", "b"); count],
        ..Default::default()
    };
    assert!(ok(many(MAX_FIELDS)).is_ok());
    assert!(ok(many(MAX_FIELDS + 1)).is_err());
    let queries = |count: usize| OkHttpResponse {
        query_parameters_to_remove: vec!["a".into(); count],
        ..Default::default()
    };
    assert!(ok(queries(MAX_FIELDS)).is_ok());
    assert!(ok(queries(MAX_FIELDS + 1)).is_err());
    let mut padded = reply(Some(0), None);
    padded.status.as_mut().unwrap().message = "x".repeat(MAX_REPLY - 16);
    assert!(read(&padded.encode_to_vec()).is_ok());
    padded.status.as_mut().unwrap().message = "x".repeat(MAX_REPLY);
    assert_eq!(read(&padded.encode_to_vec()), Err(Failure::TooLarge("reply")));
}

/// The corpus of `fuzz/fuzz_targets/check_response.rs`.
#[test]
fn every_reply_of_the_fuzz_corpus_is_answered() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/check_response");
    let mut files = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        sound(&bytes);
        files += 1;
    }
    assert!(files >= 8, "{files} files");
}

fn sound(bytes: &[u8]) {
    if let Ok(Verdict::Allow(edits)) = read(bytes) {
        let parsed = CheckResponse::decode(bytes).unwrap();
        assert_eq!(parsed.status.map(|status| status.code), Some(0), "only OK allows");
        for (name, _, _) in edits.request.iter().chain(&edits.answer) {
            assert!(!name.as_str().starts_with("x-postern-") && name != "host" && name != "content-length");
        }
        assert!(edits.request.len() + edits.answer.len() + edits.remove.len() <= MAX_FIELDS);
    }
}

proptest! {
    #[test]
    fn no_bytes_allow_without_the_status_ok(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        sound(&bytes);
    }

    #[test]
    fn any_code_but_zero_denies(code in any::<i32>(), key in ".{0,12}", value in ".{0,12}") {
        let response = OkHttpResponse { headers: vec![header(&key, &value)], ..Default::default() };
        let answer = decide(reply(Some(code), Some(HttpResponse::OkResponse(response))));
        if code != 0 {
            prop_assert!(matches!(answer, Ok(Verdict::Deny(_))));
        }
    }
}
