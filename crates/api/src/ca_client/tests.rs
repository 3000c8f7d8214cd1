#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

#[test]
fn a_join_token_survives_its_text_and_shows_no_secret() {
    let token = JoinToken::assemble([7; 16], &[0xAB; 32], [9; 32]);
    let again = JoinToken::parse(&format!("  {}\n", token.expose())).unwrap();
    assert_eq!(again.secret(), &[0xAB; 32]);
    assert_eq!(again.root_sha256(), [9; 32]);
    assert_eq!(again.id(), token.id());
    let secret = URL_SAFE_NO_PAD.encode([0xAB; 32]);
    assert!(token.expose().contains(&secret));
    assert!(!format!("{again:?}").contains(&secret));
}

#[test]
fn what_is_no_join_token_is_refused_and_not_repeated() {
    let good = JoinToken::assemble([7; 16], &[0xAB; 32], [9; 32]).expose().to_owned();
    let with = |n: usize, field: &str| {
        let mut fields: Vec<&str> = good.split('.').collect();
        fields[n] = field;
        fields.join(".")
    };
    for bad in [
        String::new(),
        "postern-join".to_owned(),
        format!("{good}."),
        with(0, "Postern-Join"),
        with(1, "2"),
        with(2, "AAAA"),
        with(3, "AAAA"),
        with(3, "!"),
        with(4, ""),
        with(4, &format!("{}=", good.rsplit('.').next().unwrap())),
        "x".repeat(MAX_TOKEN_LEN + 1),
    ] {
        let error = JoinToken::parse(&bad).unwrap_err();
        assert!(bad.len() < 20 || !error.to_string().contains(&bad), "{error}");
    }
}

#[test]
fn waits_double_to_their_limit_and_start_again_after_a_success() {
    let mut backoff = Backoff::up_to(Duration::from_secs(2));
    let waits: Vec<u128> = (0..4).map(|_| backoff.after_failure(1.0).as_millis()).collect();
    assert_eq!(waits, [500, 1000, 2000, 2000]);
    assert_eq!(backoff.after_failure(0.0), Duration::from_secs(1));
    backoff.reset();
    assert_eq!(backoff.after_failure(1.0), Backoff::FIRST);
}

proptest! {
    #[test]
    fn no_text_makes_the_token_parser_panic(text in "(postern-join\\.1\\.)?[A-Za-z0-9_.=-]{0,300}|\\PC{0,300}") {
        prop_assert!(JoinToken::parse(&text).is_err());
    }
}
