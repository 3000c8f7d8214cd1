//! Tokens that no honest client brings, each with what is made of it (THREAT_MODEL.md; ADVERSARIAL 4.6).

use aws_lc_rs::hmac;
use postern_token::{MAX_TOKEN, Refusal};
use serde_json::{Value, json};

use crate::mint::{
    NOW, OTHER_P256, P256, RSA, base64url, believing, claims, document, full_set, good_token, header, user, verified,
};

fn with(claim: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[claim] = value;
    claims
}

fn without(claim: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(claim);
    claims
}

/// The word of the refusal.
fn refused(token: &str) -> &'static str {
    match user(&believing(document(&json!({}))), token) {
        Ok(_) => "believed",
        Err(refusal) => refusal.as_str(),
    }
}

#[test]
fn t_jwt_a_header_cannot_choose_how_it_is_verified() {
    let sign = |header: Value| P256.token(&header, &claims());
    for (header, why) in [
        (json!({"alg": "none", "kid": "p256"}), "token_unsupported"),
        (json!({"alg": "None", "kid": "p256"}), "token_unsupported"),
        (json!({"alg": "", "kid": "p256"}), "token_unsupported"),
        (json!({"alg": "es256", "kid": "p256"}), "token_unsupported"),
        (json!({"alg": "ES512", "kid": "p256"}), "token_unsupported"),
        (json!({"alg": "ES256K", "kid": "p256"}), "token_unsupported"),
        (json!({"alg": "HS256", "kid": "p256"}), "token_unsupported"),
        (json!({"alg": ["ES256"], "kid": "p256"}), "token_malformed"),
        (json!({"kid": "p256"}), "token_malformed"),
        // The key is of another kind than the algorithm.
        (json!({"alg": "RS256", "kid": "p256"}), "token_unknown_key"),
        (json!({"alg": "ES384", "kid": "p256"}), "token_unknown_key"),
        (json!({"alg": "EdDSA", "kid": "p256"}), "token_unknown_key"),
        (json!({"alg": "ES256", "kid": "p384"}), "token_unknown_key"),
        (json!({"alg": "ES256", "kid": "P256"}), "token_unknown_key"),
        (
            json!({"alg": "ES256", "kid": "../../../../dev/null"}),
            "token_unknown_key",
        ),
        (
            json!({"alg": "ES256", "kid": "https://mallory.test/jwks"}),
            "token_unknown_key",
        ),
        (json!({"alg": "ES256", "kid": "' OR 1=1 --"}), "token_unknown_key"),
        (json!({"alg": "ES256", "kid": ""}), "token_unknown_key"),
        (json!({"alg": "ES256", "kid": 7}), "token_malformed"),
        (json!({"alg": "ES256", "kid": null}), "token_malformed"),
        (
            json!({"alg": "ES256", "kid": "p256", "crit": ["exp"], "exp": 1}),
            "token_unsupported",
        ),
        (json!({"alg": "ES256", "kid": "p256", "crit": []}), "token_unsupported"),
        (
            json!({"alg": "ES256", "kid": "p256", "b64": false}),
            "token_unsupported",
        ),
        (
            json!({"alg": "ES256", "kid": "p256", "zip": "DEF"}),
            "token_unsupported",
        ),
        (
            json!({"alg": "ES256", "kid": "p256", "enc": "A256GCM"}),
            "token_unsupported",
        ),
        (
            json!({"alg": "ES256", "kid": "p256", "cty": "JWT"}),
            "token_unsupported",
        ),
        (
            json!({"alg": "ES256", "kid": "p256", "typ": "logout+jwt"}),
            "token_unsupported",
        ),
        (
            json!({"alg": "ES256", "kid": "p256", "typ": "dpop+jwt"}),
            "token_unsupported",
        ),
        (json!({"alg": "ES256", "kid": "p256", "typ": 1}), "token_unsupported"),
    ] {
        assert_eq!(refused(&sign(header.clone())), why, "{header}");
    }
}

#[test]
fn t_jwt_keys_that_a_token_brings_along_are_not_looked_at() {
    let mallory = OTHER_P256.jwk("p256");
    for (name, value) in [
        ("jwk", mallory),
        ("jku", json!("https://mallory.test/jwks")),
        ("x5u", json!("https://mallory.test/cert")),
        ("x5c", json!(["MIIB"])),
    ] {
        let mut header = header();
        header[name] = value;
        assert_eq!(
            refused(&OTHER_P256.token(&header, &claims())),
            "token_bad_signature",
            "{name}"
        );
        assert_eq!(
            refused(&P256.token(&header, &claims())),
            "believed",
            "{name}: it is just not looked at"
        );
    }
}

#[test]
fn t_jwt_a_public_key_is_no_shared_secret() {
    let set = full_set();
    let rsa = &set["keys"][0];
    for secret in [rsa["n"].as_str().unwrap().to_owned(), rsa.to_string(), String::new()] {
        let signed = format!(
            "{}.{}",
            base64url(r#"{"alg":"HS256","kid":"rsa"}"#),
            base64url(claims().to_string())
        );
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), signed.as_bytes());
        assert_eq!(refused(&format!("{signed}.{}", base64url(tag))), "token_unsupported");
    }
}

#[test]
fn t_jwt_claims_of_another_kind_than_they_should_be_refuse_the_token() {
    for (claims, why) in [
        (with("iss", json!("https://mallory.test")), "token_unknown_issuer"),
        (with("iss", json!("https://sso.test/")), "token_unknown_issuer"),
        (with("iss", json!(["https://sso.test"])), "token_unknown_issuer"),
        (without("iss"), "token_unknown_issuer"),
        (without("exp"), "token_malformed"),
        (with("exp", json!(null)), "token_malformed"),
        (with("exp", json!((NOW + 300) as f64 + 0.5)), "token_malformed"),
        (with("exp", json!((NOW + 300) as f64)), "token_malformed"),
        (with("exp", json!((NOW + 300).to_string())), "token_malformed"),
        (with("exp", json!(-1)), "token_malformed"),
        (with("exp", json!(1e300)), "token_malformed"),
        (with("exp", json!(NOW - 61)), "token_expired"),
        (with("exp", json!(0)), "token_expired"),
        (with("nbf", json!("soon")), "token_malformed"),
        (with("nbf", json!(NOW + 3_600)), "token_not_yet_valid"),
        (with("iat", json!(NOW + 3_600)), "token_not_yet_valid"),
        (with("auth_time", json!(NOW + 3_600)), "token_not_yet_valid"),
        (with("auth_time", json!(true)), "token_malformed"),
        (with("aud", json!("other")), "token_wrong_audience"),
        (with("aud", json!({"shop": 1})), "token_wrong_audience"),
        (with("aud", json!(["shop", 7])), "token_names_nobody"),
        (without("aud"), "token_wrong_audience"),
        (without("sub"), "token_names_nobody"),
        (with("sub", json!("")), "token_names_nobody"),
        (with("sub", json!(7)), "token_names_nobody"),
        (with("azp", json!(["web"])), "token_malformed"),
        (with("client_id", json!("other")), "token_malformed"),
        (with("cnf", json!({"jkt": "x"})), "token_unsupported"),
        (
            with("cnf", json!({"x5t#S256": base64url([7; 32]), "jkt": "x"})),
            "token_unsupported",
        ),
        (with("cnf", json!({"x5t#S256": "short"})), "token_malformed"),
        (with("cnf", json!("x")), "token_unsupported"),
    ] {
        assert_eq!(refused(&P256.token(&header(), &claims)), why, "{claims}");
    }
}

#[test]
fn t_jwt_a_payload_with_two_meanings_is_refused() {
    let good = claims().to_string();
    let twice = good.replacen('{', r#"{"sub":"root","#, 1);
    let escaped = good.replacen('{', r#"{"\u0073ub":"root","#, 1);
    let header = header().to_string();
    for (header, payload) in [
        (header.as_str(), twice.as_str()),
        (&header, &escaped),
        (&header, &format!("{good}{good}")),
        (&header, &format!("[{good}]")),
        (&header, "\"text\""),
        (&header, ""),
        // A token in a token.
        (&header, &good_token()),
        (r#"{"alg":"ES256","alg":"none","kid":"p256"}"#, &good),
        (r#"{"alg":"none","alg":"ES256","kid":"p256"}"#, &good),
    ] {
        assert_eq!(
            refused(&P256.raw("ES256", header.as_bytes(), payload.as_bytes())),
            "token_malformed",
            "{payload}"
        );
    }
    assert_eq!(
        refused(&P256.raw("ES256", header.as_bytes(), b"{\"iss\":\"\xff\"}")),
        "token_malformed"
    );
}

#[test]
fn t_jwt_another_shape_than_three_parts_is_refused() {
    let good = good_token();
    let parts: Vec<&str> = good.split('.').collect();
    let [header, payload, signature] = parts.as_slice() else {
        unreachable!()
    };
    for token in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        format!("{header}.{payload}"),
        format!("{header}.{payload}.{signature}.x"),
        format!("{header}.{payload}.{signature}.x.y"),
        format!("{header}.{payload}.{signature}="),
        format!("{header}.{payload}.{signature}, {good}"),
        format!("{header}. {payload}.{signature}"),
        format!(r#"{{"payload":"{payload}","signatures":[]}}"#),
        "x".repeat(100),
    ] {
        assert_eq!(refused(&token), "token_malformed", "{token}");
    }
    for token in [
        format!("{header}.{payload}."),
        format!("{header}.{payload}.{}", base64url([0; 64])),
    ] {
        assert_eq!(refused(&token), "token_bad_signature");
    }
    // In ASN.1, as X.509 has it, and with a zero in front: not what RFC 7518 section 3.4 says.
    let long = format!("{header}.{payload}.{}", base64url([0; 72]));
    assert_eq!(refused(&long), "token_bad_signature");
}

#[test]
fn t_jwt_a_signature_of_another_key_or_text_is_wrong() {
    let good = good_token();
    let other = P256.token(&header(), &with("sub", json!("root")));
    let stolen: Vec<&str> = good.split('.').collect();
    let forged: Vec<&str> = other.split('.').collect();
    assert_eq!(
        refused(&format!("{}.{}.{}", stolen[0], forged[1], stolen[2])),
        "token_bad_signature"
    );
    assert_eq!(refused(&OTHER_P256.token(&header(), &claims())), "token_bad_signature");
    let rsa = json!({"alg": "PS256", "kid": "rsa"});
    assert_eq!(
        refused(&RSA.raw("RS256", rsa.to_string().as_bytes(), claims().to_string().as_bytes())),
        "token_bad_signature"
    );
}

#[test]
fn t_jwt_a_huge_token_is_refused_before_it_is_read() {
    let authenticator = believing(document(&json!({})));
    let of_length = |length: usize| {
        // Two steps: base64 takes four characters for three bytes.
        let padded = |padding: usize| P256.token(&header(), &with("pad", json!("x".repeat(padding))));
        let base = padded(0).len();
        (0..8)
            .map(|more| padded((length - base) * 3 / 4 + more))
            .filter(|token| token.len() <= length)
            .max_by_key(String::len)
    };
    let longest = of_length(MAX_TOKEN).unwrap();
    assert!(longest.len() > MAX_TOKEN - 4, "{}", longest.len());
    assert!(verified(&authenticator, &longest, NOW).is_ok());
    let too_long = format!("{longest}{}", "x".repeat(MAX_TOKEN + 1 - longest.len()));
    assert_eq!(verified(&authenticator, &too_long, NOW).unwrap_err(), Refusal::TooLong);
}
