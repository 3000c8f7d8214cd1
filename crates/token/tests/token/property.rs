//! Properties: no change of a good token is believed, and nothing that a client or an issuer sends makes us panic.

use std::sync::LazyLock;

use postern_token::{Authenticator, KeySet};
use proptest::prelude::*;
use serde_json::json;

use crate::mint::{Head, NOW, believing, claims, document, every_algorithm, good_token, verified};

static AUTHENTICATOR: LazyLock<Authenticator> = LazyLock::new(|| believing(document(&json!({}))));
/// A token of each algorithm.
static GOOD: LazyLock<Vec<String>> = LazyLock::new(|| {
    let tokens = every_algorithm().into_iter();
    tokens
        .map(|(alg, signer, kid)| signer.token(&json!({"alg": alg, "kid": kid}), &claims()))
        .collect()
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn no_other_text_is_believed_than_what_was_signed(which in 0..9_usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let good = &GOOD[which];
        let mut bytes = good.clone().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(changed) = String::from_utf8(bytes) {
            let believed = verified(&AUTHENTICATOR, changed.trim(), NOW).is_ok();
            prop_assert_eq!(believed, changed.trim() == good);
        }
    }

    #[test]
    fn no_part_of_one_token_is_believed_in_another(one in 0..9_usize, other in 0..9_usize, part in 0..3_usize) {
        let mut parts: Vec<&str> = GOOD[one].split('.').collect();
        parts[part] = GOOD[other].split('.').nth(part).unwrap();
        let mixed = parts.join(".");
        prop_assert_eq!(verified(&AUTHENTICATOR, &mixed, NOW).is_ok(), mixed == GOOD[one]);
    }

    #[test]
    fn nothing_that_is_no_token_is_believed(text in "[ -~]{0,200}") {
        let head = Head::of(&[("authorization", &format!("Bearer {text}"))]);
        if let Ok(Some(token)) = AUTHENTICATOR.find(&head, Some(&text)) {
            prop_assert!(AUTHENTICATOR.verify(&token, NOW).is_err());
        }
    }

    #[test]
    fn a_tokens_times_are_all_that_changes_with_time(now in any::<u64>()) {
        // 60 s of skew at either end.
        let valid = (NOW - 60..NOW + 360).contains(&now);
        prop_assert_eq!(verified(&AUTHENTICATOR, &good_token(), now).is_ok(), valid);
    }

    #[test]
    fn whatever_an_issuer_answers_is_a_set_or_an_error(text in any::<Vec<u8>>()) {
        let _ = KeySet::parse(&text);
    }
}
