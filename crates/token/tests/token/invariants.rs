//! What holds whatever comes: also the body of `fuzz/fuzz_targets/jwt.rs`.

use std::sync::LazyLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_policy::document::parse;
use postern_policy::{Headers, RequestAuthentication};
use postern_token::locate::{without_cookie, without_param};
use postern_token::{Authenticator, Caller, KeySet, answer};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://sso.test";
/// Shorter texts may stand in a message by chance.
const MANY: usize = 40;

/// An issuer's key that is the same in each run.
static KEY: LazyLock<Ed25519KeyPair> =
    LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("any seed is a key"));

static AUTHENTICATOR: LazyLock<Authenticator> = LazyLock::new(|| {
    let set =
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": URL_SAFE_NO_PAD.encode(KEY.public_key())}]});
    let document = json!({
        "apiVersion": "postern.dev/v1alpha1", "kind": "RequestAuthentication", "metadata": {"name": "sso", "namespace": "shop"},
        "spec": {"jwtRules": [{
            "issuer": ISSUER, "audiences": ["shop"], "jwks": set.to_string(), "spaceDelimitedClaims": ["roles"],
            "fromHeaders": [{"name": "authorization", "prefix": "Bearer "}, {"name": "x-jwt"}],
            "fromParams": ["access_token"], "fromCookies": ["session"],
            "outputPayloadToHeader": "x-payload",
            "outputClaimToHeaders": [{"header": "x-sub", "claim": "sub"}, {"header": "x-deep", "claim": "realm.roles"}],
        }]},
    });
    let object = parse("sso.json", &document.to_string()).expect("it is YAML").remove(0);
    Authenticator::new(
        &[RequestAuthentication::from_object(&object).expect("it is one")],
        |_| None,
    )
});

/// Everything that is made of a peer's or an issuer's bytes.
pub(crate) fn hold(data: &[u8]) {
    if let Ok(set) = KeySet::parse(data) {
        assert!(set.len() + set.left_out().len() <= postern_token::key_set::MAX_KEYS);
    }
    let _ = without_cookie(data, "session");
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some(left) = without_param(text, "access_token") {
        assert_eq!(
            without_param(&left, "access_token").as_deref(),
            Some(left.as_str()),
            "taken out once is taken out"
        );
    }
    of_a_request(text);
    if let Some((header, payload)) = text.split_once('\n') {
        of_a_signed_token(header, payload);
    }
}

/// As lines of a head, and as a query: who cannot sign is not believed.
fn of_a_request(text: &str) {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let head = Lines(
        lines
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect(),
    );
    let bearer = Lines(vec![("authorization".to_owned(), format!("Bearer {text}"))]);
    for (head, query) in [(&head, Some(text)), (&bearer, None)] {
        if let Ok(Some(token)) = AUTHENTICATOR.find(head, query)
            && !is_ours(token.text())
        {
            let refusal = AUTHENTICATOR.verify(&token, NOW).expect_err("nobody has signed it");
            assert!(answer::refused(&refusal).status >= 401);
            // A text that is one of our own sentences is no token that got into it.
            let is_a_sentence = text.contains(' ');
            assert!(
                text.len() < MANY || is_a_sentence || !refusal.to_string().contains(text),
                "a token in a log"
            );
        }
    }
}

/// A token that this very key signed may stand in the corpus.
fn is_ours(token: &str) -> bool {
    let Some((signed, signature)) = token.rsplit_once('.') else {
        return false;
    };
    URL_SAFE_NO_PAD
        .decode(signature)
        .is_ok_and(|signature| KEY.sign(signed.as_bytes()).as_ref() == signature)
}

/// As an issuer's header and payload: what is believed says what it must.
fn of_a_signed_token(header: &str, payload: &str) {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(KEY.sign(signed.as_bytes())));
    let head = Lines(vec![("x-jwt".to_owned(), token)]);
    let Ok(Some(token)) = AUTHENTICATOR.find(&head, None) else {
        return;
    };
    let Ok(verified) = AUTHENTICATOR.verify(&token, NOW) else {
        return;
    };
    let header: Value = serde_json::from_str(header).expect("it was read");
    assert_eq!(header.get("alg"), Some(&json!("EdDSA")));
    assert!(header.get("crit").is_none());
    assert!(verified.until() > NOW);
    for (name, value) in verified.told() {
        assert!(name.starts_with("x-") && !value.chars().any(char::is_control), "{name}");
    }
    if let Ok(user) = verified.admits(Caller::default()) {
        assert_eq!(user.issuer(), ISSUER);
        assert!(!user.subject().is_empty() && user.audiences().any(|audience| audience == "shop"));
        assert!(user.expires().is_some_and(|at| at + 60 > NOW));
    }
}

#[derive(Debug)]
struct Lines(Vec<(String, String)>);

impl Headers for Lines {
    fn each(&self, name: &str, found: &mut dyn FnMut(&[u8])) -> bool {
        for (given, value) in &self.0 {
            if postern_policy::request::is_same_field(given, name) {
                found(value.as_bytes());
            }
        }
        true
    }
}
