//! Where tokens are looked for, and that there is one only.

use postern_policy::RequestAuthentication;
use postern_policy::document::parse;
use postern_token::{Authenticator, Refusal, Spot};
use serde_json::{Value, json};

use crate::mint::{Head, ISSUER, NOW, P256, believing, claims, document, documents, full_set, good_token, header};

fn spot(authenticator: &Authenticator, head: &Head, query: Option<&str>) -> Result<Option<Spot>, Refusal> {
    Ok(authenticator.find(head, query)?.map(|token| token.spot().clone()))
}

#[test]
fn a_token_is_found_where_rfc_6750_puts_it() {
    let authenticator = believing(document(&json!({})));
    let header = Ok(Some(Spot::Header("authorization".into())));
    let param = Ok(Some(Spot::Param("access_token".into())));
    assert_eq!(spot(&authenticator, &Head::bearer("x"), None), header);
    assert_eq!(
        spot(&authenticator, &Head::of(&[("authorization", "bEaReR x")]), None),
        header
    );
    assert_eq!(
        spot(&authenticator, &Head::default(), Some("a=1&access_token=x")),
        param
    );
    for (fields, query) in [
        (vec![], None),
        (vec![("authorization", "Basic dTpw")], Some("a=1")),
        (vec![("x-authorization", "Bearer x")], Some("access_tokens=x")),
        (vec![("cookie", "access_token=x")], Some("")),
    ] {
        assert_eq!(spot(&authenticator, &Head::of(&fields), query), Ok(None), "{fields:?}");
    }
}

#[test]
fn t_jwt_two_tokens_are_an_error_wherever_they_stand() {
    let fields = json!({"fromHeaders": [{"name": "authorization", "prefix": "Bearer "}, {"name": "x-jwt"}],
                        "fromParams": ["t"], "fromCookies": ["c"]});
    let authenticator = believing(document(&fields));
    let good = good_token();
    let bearer = format!("Bearer {good}");
    for (fields, query) in [
        (
            vec![("authorization", bearer.as_str()), ("authorization", &bearer)],
            None,
        ),
        (vec![("authorization", &bearer), ("Authorization", "Basic dTpw")], None),
        (vec![("authorization", "Basic dTpw"), ("authorization", &bearer)], None),
        (vec![("authorization", &bearer), ("x-jwt", &good)], None),
        (vec![("x-jwt", &good), ("X_Jwt", &good)], None),
        (vec![("authorization", &bearer)], Some("t=x")),
        (vec![], Some("t=x&t=y")),
        (vec![], Some("%74=x&t=y")),
        (vec![], Some("t=&t=")),
        (vec![("cookie", "c=x; c=y")], None),
        (vec![("cookie", "c=x"), ("cookie", "c=y")], None),
        (vec![("cookie", "c=x")], Some("t=x")),
    ] {
        assert_eq!(
            spot(&authenticator, &Head::of(&fields), query),
            Err(Refusal::Several),
            "{query:?}"
        );
    }
}

#[test]
fn an_empty_token_is_a_malformed_one_and_not_none() {
    let authenticator = believing(document(&json!({})));
    for (head, query) in [
        (Head::bearer(""), None),
        (Head::of(&[("authorization", "Bearer")]), None),
        (Head::default(), Some("access_token")),
        (Head::default(), Some("access_token=")),
        (Head::default(), Some("access_token=%65")),
    ] {
        let token = authenticator.find(&head, query).unwrap().unwrap();
        assert!(
            matches!(authenticator.verify(&token, NOW), Err(Refusal::Malformed(_))),
            "{head:?}"
        );
    }
}

#[test]
fn a_rule_looks_only_where_it_says_and_believes_only_what_stands_there() {
    let inner = |issuer: &str, more: serde_json::Value| {
        let mut rule = json!({"issuer": issuer, "audiences": ["shop"], "jwks": full_set().to_string()});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        rule
    };
    let authenticator = believing(documents(&json!([
        inner(
            "https://sso.test",
            json!({"fromHeaders": [{"name": "x-user", "prefix": "JWT "}, {"name": "x-user"}]})
        ),
        inner("https://other.test", json!({"fromCookies": ["session"]})),
    ])));
    let good = good_token();
    assert_eq!(
        spot(
            &authenticator,
            &Head::bearer(&good),
            Some(&format!("access_token={good}"))
        ),
        Ok(None)
    );
    for value in [good.clone(), format!("JWT {good}"), format!("jwt {good}")] {
        let token = authenticator
            .find(&Head::of(&[("X-User", &value)]), None)
            .unwrap()
            .unwrap();
        assert!(authenticator.verify(&token, NOW).is_ok(), "the longer prefix first");
    }
    let token = authenticator
        .find(&Head::of(&[("cookie", &format!("session={good}"))]), None)
        .unwrap()
        .unwrap();
    assert_eq!(
        authenticator.verify(&token, NOW).unwrap_err(),
        Refusal::UnknownIssuer,
        "not of who looks there"
    );
    let mut other = claims();
    other["iss"] = json!("https://other.test");
    let cookie = format!("a=b; session={}", P256.token(&header(), &other));
    let token = authenticator
        .find(&Head::of(&[("cookie", &cookie)]), None)
        .unwrap()
        .unwrap();
    assert!(authenticator.verify(&token, NOW).is_ok());
}

fn unreadable() -> RequestAuthentication {
    let text = "apiVersion: postern.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {name: sso, namespace: shop}\nspec:\n  \
                jwtRules: [{isuer: x, outputPayloadToHeader: X-Told}]";
    let object = parse("sso.yaml", text).unwrap().remove(0);
    RequestAuthentication::refusing_tokens_for(&object, "shop")
}

#[test]
fn a_document_that_cannot_be_read_refuses_every_token_and_takes_back_what_others_believe() {
    let authenticator = Authenticator::new(&[document(&json!({})), unreadable()], |_| None);
    assert!(!authenticator.is_idle());
    for (head, query) in [
        (Head::bearer(&good_token()), None),
        (Head::bearer("x"), None),
        (Head::default(), Some("access_token=x")),
        (
            Head::of(&[("authorization", "Bearer a"), ("authorization", "Bearer b")]),
            None,
        ),
    ] {
        assert_eq!(spot(&authenticator, &head, query), Err(Refusal::Unreadable));
    }
    assert_eq!(
        spot(&authenticator, &Head::of(&[("authorization", "Basic dTpw")]), None),
        Ok(None)
    );
    assert!(authenticator.told_headers().any(|name| name == "x-told"));
}

#[test]
fn a_workload_without_documents_looks_for_nothing() {
    let authenticator = Authenticator::default();
    assert!(authenticator.is_idle());
    assert_eq!(
        spot(&authenticator, &Head::bearer("x"), Some("access_token=y")),
        Ok(None)
    );
}

/// Of a document that has been replaced while its request goes on.
#[test]
fn a_token_is_found_again_where_another_document_looks_and_nowhere_else() {
    let of = |places: &Value| believing(document(places));
    let before = of(&json!({"fromHeaders": [{"name": "x-jwt", "prefix": "JWT "}], "fromCookies": ["session"]}));
    let good = good_token();
    let in_header = Head::of(&[("x-jwt", &format!("JWT {good}"))]);
    let in_cookie = Head::of(&[("cookie", &format!("session={good}"))]);
    for (head, again, lost) in [
        (
            &in_header,
            json!({"fromHeaders": [{"name": "X_JWT", "prefix": "JWT "}]}),
            json!({"fromHeaders": [{"name": "x-jwt"}], "fromCookies": ["session"]}),
        ),
        (
            &in_cookie,
            json!({"fromCookies": ["session"]}),
            json!({"fromParams": ["session"]}),
        ),
    ] {
        let token = before.find(head, None).unwrap().unwrap();
        let now = of(&again);
        let found = now.found_again(&token).unwrap();
        assert!(now.verify(&found, NOW).is_ok());
        assert!(of(&lost).found_again(&token).is_none());
        assert!(Authenticator::default().found_again(&token).is_none());
        let unreadable = Authenticator::new(&[unreadable()], |_| None);
        let refused = unreadable
            .found_again(&token)
            .map(|token| unreadable.verify(&token, NOW).err());
        assert_eq!(refused, Some(Some(Refusal::Unreadable)));
    }
}

#[test]
fn what_a_verification_depends_on_is_in_a_tokens_fingerprint() {
    let rules = |first: &str, second: &str| {
        let rule = |issuer: &str, place: &str| json!({"issuer": issuer, "audiences": ["shop"], "jwks": full_set().to_string(), "fromParams": [place]});
        believing(documents(&json!([
            rule(ISSUER, first),
            rule("https://other.test", second)
        ])))
    };
    let (one, both) = (rules("a", "b"), rules("a", "a"));
    let at = |authenticator: &Authenticator, query: &str| {
        authenticator
            .find(&Head::of(&[]), Some(query))
            .unwrap()
            .unwrap()
            .fingerprint()
    };
    assert_eq!(at(&one, "a=x"), at(&one, "z=1&a=x"));
    let all = [at(&one, "a=x"), at(&one, "a=y"), at(&one, "b=x"), at(&both, "a=x")];
    for (position, fingerprint) in all.iter().enumerate() {
        assert!(!all[..position].contains(fingerprint), "{position}");
    }
}
