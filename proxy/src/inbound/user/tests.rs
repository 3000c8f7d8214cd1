//! What one worker remembers of tokens, at its bounds and one past each.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::json;

use super::*;

#[path = "../../../../crates/token/tests/token/mint/mod.rs"]
// The token crate's tests use other parts of it.
#[allow(dead_code)]
mod mint;

fn verified() -> Rc<Verified> {
    let authenticator = mint::believing(mint::document(&json!({})));
    Rc::new(mint::verified(&authenticator, &mint::good_token(), mint::NOW).unwrap())
}

fn fingerprint(n: usize) -> [u8; 32] {
    let mut fingerprint = [0; 32];
    fingerprint[..8].copy_from_slice(&n.to_be_bytes());
    fingerprint
}

#[test]
fn so_many_tokens_are_remembered_and_the_oldest_make_room() {
    let (mut remembered, verified) = (Remembered::default(), verified());
    for n in 0..MAX_VERIFIED_TOKENS {
        remembered.keep(fingerprint(n), 1, &verified);
    }
    // One that is verified anew takes no second place.
    remembered.keep(fingerprint(0), 1, &verified);
    assert_eq!(remembered.tokens.len(), MAX_VERIFIED_TOKENS);
    assert!(remembered.tokens.contains_key(&fingerprint(0)));
    remembered.keep(fingerprint(MAX_VERIFIED_TOKENS), 1, &verified);
    assert_eq!(remembered.tokens.len(), MAX_VERIFIED_TOKENS);
    assert!(!remembered.tokens.contains_key(&fingerprint(0)) && remembered.tokens.contains_key(&fingerprint(1)));
}

#[test]
fn long_tokens_are_remembered_up_to_so_many_bytes() {
    let (mut remembered, verified) = (Remembered::default(), verified());
    let length = MAX_VERIFIED_BYTES / 4;
    for n in 0..4 {
        remembered.keep(fingerprint(n), length, &verified);
    }
    assert_eq!((remembered.tokens.len(), remembered.bytes), (4, MAX_VERIFIED_BYTES));
    remembered.keep(fingerprint(4), 1, &verified);
    assert_eq!((remembered.tokens.len(), remembered.bytes), (4, 3 * length + 1));
    assert!(!remembered.tokens.contains_key(&fingerprint(0)));
}

#[test]
fn what_was_verified_counts_until_the_documents_or_keys_change() {
    let tokens = Tokens::default();
    let of = |audience: &str| Arc::new(mint::believing(mint::document(&json!({ "audiences": [audience] }))));
    let claims = {
        let mut claims = mint::claims();
        claims["iat"] = json!(0);
        claims["exp"] = json!(unix_seconds() + 100);
        claims
    };
    let token = mint::P256.token(&mint::header(), &claims);
    let (shop, bank) = (of("shop"), of("bank"));
    let found = shop.find(&mint::Head::bearer(&token), None).unwrap().unwrap();
    let verify = |authenticator| tokens.verify(authenticator, &found, found.fingerprint());
    let first = verify(&shop).unwrap();
    assert!(Rc::ptr_eq(&first, &verify(&shop).unwrap()), "it is remembered");
    assert_eq!(verify(&bank).unwrap_err(), Refusal::Audience);
    assert!(!Rc::ptr_eq(&first, &verify(&shop).unwrap()), "and not over a change");
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_known_not_to_be_there_are_asked_for_again_after_a_while() {
    let tokens = Tokens::default();
    for n in 0..=MAX_ABSENT_KEYS {
        tokens.remember_absent(fingerprint(n));
    }
    assert!(tokens.is_absent(&fingerprint(MAX_ABSENT_KEYS - 1)));
    assert!(
        !tokens.is_absent(&fingerprint(MAX_ABSENT_KEYS)),
        "past the bound it is asked for"
    );
    tokio::time::advance(KNOWN_ABSENT - Duration::from_millis(1)).await;
    assert!(tokens.is_absent(&fingerprint(0)));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(!tokens.is_absent(&fingerprint(0)));
    tokens.remember_absent(fingerprint(MAX_ABSENT_KEYS));
    assert!(
        tokens.is_absent(&fingerprint(MAX_ABSENT_KEYS)),
        "what is over makes room"
    );
}
