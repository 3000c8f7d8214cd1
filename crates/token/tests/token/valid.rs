//! What is believed, and what it becomes.

use postern_identity::SpiffeId;
use postern_token::{Caller, Refusal};
use serde_json::json;

use crate::mint::{
    ISSUER, NOW, OTHER_P256, P256, base64url, believing, claims, document, documents, every_algorithm, good_token,
    header, set, told, user, verified, with_fetched,
};

#[test]
fn a_token_of_each_algorithm_is_its_users() {
    let authenticator = believing(document(&json!({})));
    for (algorithm, signer, key) in every_algorithm() {
        let token = signer.token(&json!({"alg": algorithm, "kid": key, "typ": "JWT"}), &claims());
        let user = user(&authenticator, &token).unwrap();
        assert_eq!(user.principal(), format!("{ISSUER}/alice"), "{algorithm}");
        assert_eq!(user.presenter(), Some("web"));
    }
}

#[test]
fn a_document_may_believe_fewer_algorithms() {
    let authenticator = believing(document(&json!({"algorithms": ["ES256"]})));
    for (algorithm, signer, key) in every_algorithm() {
        let token = signer.token(&json!({"alg": algorithm, "kid": key}), &claims());
        let refused = user(&authenticator, &token).err();
        let wanted = (algorithm != "ES256").then_some(Refusal::Unsupported("`alg` is not one that is believed here"));
        assert_eq!(refused, wanted, "{algorithm}");
    }
}

#[test]
fn times_are_taken_with_the_skew_that_the_document_allows() {
    let authenticator = believing(document(&json!({"clockSkew": "60s"})));
    let at = |claim: &str, value: u64, now: u64| {
        let mut claims = claims();
        claims[claim] = json!(value);
        verified(&authenticator, &P256.token(&header(), &claims), now).map(|verified| verified.until())
    };
    assert_eq!(at("exp", NOW, NOW + 59), Ok(NOW + 60));
    assert_eq!(at("exp", NOW, NOW + 60), Err(Refusal::Expired));
    for claim in ["nbf", "iat", "auth_time"] {
        assert!(at(claim, NOW + 60, NOW).is_ok(), "{claim}");
        assert!(matches!(at(claim, NOW + 61, NOW), Err(Refusal::NotYet(_))), "{claim}");
    }
    assert_eq!(at("exp", u64::MAX, NOW), Ok(u64::MAX), "no overflow");
}

#[test]
fn one_audience_of_several_suffices_and_a_document_may_take_any() {
    let ours = believing(document(&json!({"audiences": ["shop", "cart"]})));
    let any = believing(document(&json!({"audiences": ["*"]})));
    for (audience, is_ours) in [
        (json!("cart"), true),
        (json!(["x", "shop"]), true),
        (json!("Shop"), false),
        (json!(["x"]), false),
        (json!([]), false),
    ] {
        let mut claims = claims();
        claims["aud"] = audience.clone();
        let token = P256.token(&header(), &claims);
        assert_eq!(user(&ours, &token).is_ok(), is_ours, "{audience}");
        assert!(user(&any, &token).is_ok(), "{audience}");
    }
    let mut none = claims();
    none.as_object_mut().unwrap().remove("aud");
    let token = P256.token(&header(), &none);
    assert_eq!(user(&ours, &token), Err(Refusal::Audience));
    assert!(user(&any, &token).is_ok());
}

#[test]
fn a_token_without_kid_is_verified_only_if_the_choice_is_no_guess() {
    let token = P256.token(&json!({"alg": "ES256"}), &claims());
    assert!(
        user(&believing(document(&json!({}))), &token).is_ok(),
        "one key of the set is for ES256"
    );
    let two = set(&[P256.jwk("a"), OTHER_P256.jwk("b")]);
    let authenticator = believing(document(&json!({ "jwks": two.to_string() })));
    assert_eq!(
        user(&authenticator, &token),
        Err(Refusal::UnknownKey { provider: None })
    );
}

#[test]
fn several_issuers_and_several_rules_of_one_are_asked_in_turn() {
    let rule = |issuer: &str, audience: &str, keys| json!({"issuer": issuer, "audiences": [audience], "jwks": set(&[keys]).to_string()});
    let document = documents(&json!([
        rule("https://other.test", "shop", OTHER_P256.jwk("p256")),
        rule(ISSUER, "cart", P256.jwk("p256")),
        rule(ISSUER, "shop", P256.jwk("p256")),
    ]));
    let authenticator = believing(document);
    assert!(user(&authenticator, &good_token()).is_ok());
    let mut other = claims();
    other["iss"] = json!("https://other.test");
    assert!(user(&authenticator, &OTHER_P256.token(&header(), &other)).is_ok());
    assert_eq!(
        user(&authenticator, &P256.token(&header(), &other)),
        Err(Refusal::Signature),
        "an issuer's key is good for that issuer only"
    );
}

#[test]
fn a_token_bound_to_a_client_is_of_no_use_to_another_workload() {
    let bound = json!({"bindToWorkload": [{"clientId": "web", "principals": ["cluster.local/ns/shop/sa/web"]},
                                          {"clientId": "admin", "principals": ["cluster.local/ns/ops/*"]}]});
    let authenticator = believing(document(&bound));
    let id = |text: &str| SpiffeId::parse(text).unwrap();
    let (web, mallory) = (
        id("spiffe://cluster.local/ns/shop/sa/web"),
        id("spiffe://cluster.local/ns/shop/sa/mallory"),
    );
    let ops = id("spiffe://cluster.local/ns/ops/sa/x");
    let admitted = |claims: &serde_json::Value, id: Option<&SpiffeId>| {
        let verified = verified(&authenticator, &P256.token(&header(), claims), NOW).unwrap();
        let caller = Caller {
            id,
            ..Caller::default()
        };
        verified.admits(caller).map(|user| user.subject().to_owned())
    };
    assert_eq!(admitted(&claims(), Some(&web)), Ok("alice".to_owned()));
    for other in [Some(&mallory), Some(&ops), None] {
        assert!(
            matches!(admitted(&claims(), other), Err(Refusal::NotTheCallers(_))),
            "{other:?}"
        );
    }
    let mut by_client_id = claims();
    by_client_id.as_object_mut().unwrap().remove("azp");
    assert!(
        matches!(admitted(&by_client_id, Some(&web)), Err(Refusal::NotTheCallers(_))),
        "it says no client"
    );
    by_client_id["client_id"] = json!("admin");
    assert!(admitted(&by_client_id, Some(&ops)).is_ok());
    by_client_id["client_id"] = json!("unlisted");
    assert!(matches!(
        admitted(&by_client_id, Some(&web)),
        Err(Refusal::NotTheCallers(_))
    ));
}

#[test]
fn a_token_bound_to_any_workload_is_of_no_use_to_one_of_another_trust_domain_that_is_not_named() {
    let by = |principal: &str, id: &str, is_foreign: bool| {
        let bound = json!({"bindToWorkload": [{"clientId": "web", "principals": [principal]}]});
        let authenticator = believing(document(&bound));
        let id = SpiffeId::parse(id).unwrap();
        let caller = Caller {
            id: Some(&id),
            is_foreign,
            ..Caller::default()
        };
        let verified = verified(&authenticator, &P256.token(&header(), &claims()), NOW).unwrap();
        verified.admits(caller).is_ok()
    };
    let [home, partner] = ["cluster.local", "partner.example"].map(|name| format!("spiffe://{name}/ns/shop/sa/web"));
    for (principal, of_partner) in [
        ("*", false),
        ("*/sa/web", false),
        ("partner.example/*", true),
        ("partner.example/ns/shop/sa/web", true),
    ] {
        assert_eq!(by(principal, &partner, true), of_partner, "{principal}");
        assert_eq!(by(principal, &home, false), !of_partner, "{principal}");
    }
}

#[test]
fn a_token_bound_to_a_certificate_is_good_with_that_certificate_only() {
    let authenticator = believing(document(&json!({})));
    let mut bound = claims();
    bound["cnf"] = json!({"x5t#S256": base64url([7; 32])});
    let verified = verified(&authenticator, &P256.token(&header(), &bound), NOW).unwrap();
    let by = |certificate: Option<&[u8; 32]>| {
        let caller = Caller {
            certificate_sha256: certificate,
            ..Caller::default()
        };
        verified.admits(caller).is_ok()
    };
    assert!(by(Some(&[7; 32])));
    assert!(!by(Some(&[8; 32])) && !by(None));
}

#[test]
fn the_app_is_told_what_the_document_says_and_nothing_that_would_break_its_head() {
    let fields = json!({
        "outputPayloadToHeader": "X-Payload",
        "outputClaimToHeaders": [
            {"header": "x-sub", "claim": "sub"}, {"header": "x-admin", "claim": "admin"}, {"header": "x-n", "claim": "n"},
            {"header": "x-deep", "claim": "realm.role"}, {"header": "x-list", "claim": "amr"},
            {"header": "x-break", "claim": "break"}, {"header": "x-long", "claim": "long"}, {"header": "x-none", "claim": "none"},
            {"header": "x-null", "claim": "null"},
        ],
    });
    let authenticator = believing(document(&fields));
    let mut rich = claims();
    for (name, value) in [
        ("admin", json!(true)),
        ("n", json!(-7)),
        ("realm", json!({"role": "clinician"})),
        ("break", json!("a\r\nx-sub: root")),
        ("long", json!("x".repeat(4_097))),
        ("null", json!(null)),
    ] {
        rich[name] = value;
    }
    let token = P256.token(&header(), &rich);
    let verified = verified(&authenticator, &token, NOW).unwrap();
    let told = told(&verified);
    let wanted = [
        ("x-sub", "alice"),
        ("x-admin", "true"),
        ("x-n", "-7"),
        ("x-deep", "clinician"),
        // ["pwd"]
        ("x-list", "WyJwd2QiXQ=="),
        ("x-payload", token.split('.').nth(1).unwrap()),
    ];
    assert_eq!(told.len(), wanted.len(), "{told:?}");
    for (name, value) in wanted {
        assert_eq!(told.get(name).map(String::as_str), Some(value));
    }
    // Whatever is not told goes as well, whoever sent it.
    for name in ["x-break", "x-long", "x-none", "x-null", "x-payload"] {
        assert!(authenticator.told_headers().any(|told| told == name), "{name}");
    }
}

#[test]
fn claims_of_words_become_lists_if_the_document_says_so() {
    let authenticator = believing(document(&json!({"spaceDelimitedClaims": ["roles"]})));
    let mut spoken = claims();
    spoken["roles"] = json!("nurse  doctor");
    spoken["other"] = json!("a b");
    let user = user(&authenticator, &P256.token(&header(), &spoken)).unwrap();
    assert_eq!(user.claims()["roles"], json!(["nurse", "doctor"]));
    assert_eq!(user.claims()["other"], json!("a b"));
}

#[test]
fn keys_that_were_fetched_too_long_ago_or_never_are_not_believed() {
    let fields = json!({"jwks": null, "jwksUri": "https://sso.test/jwks", "maxStale": "24h"});
    let keys = set(&[P256.jwk("p256")]);
    let provider = Some("https://sso.test/jwks".to_owned());
    let no_keys = Refusal::NoKeys {
        provider: provider.clone(),
    };
    assert_eq!(
        user(&believing(document(&fields)), &good_token()),
        Err(no_keys.clone()),
        "never fetched"
    );
    let day = 24 * 3_600;
    let fresh = with_fetched(document(&fields), &keys, NOW - day + 1);
    assert!(user(&fresh, &good_token()).is_ok());
    let found = verified(&fresh, &good_token(), NOW).unwrap();
    assert_eq!(found.until(), NOW + 1, "no longer than the keys");
    let stale = with_fetched(document(&fields), &keys, NOW - day);
    assert_eq!(user(&stale, &good_token()), Err(no_keys));
    let unknown = OTHER_P256.token(&json!({"alg": "ES256", "kid": "new"}), &claims());
    assert_eq!(
        user(&fresh, &unknown),
        Err(Refusal::UnknownKey { provider }),
        "so that it can be fetched"
    );
}
