//! A join token from a file: one that passes has one spelling, and shows no secret.

use postern_api::ca_client::JoinToken;

/// Panics where it does not hold; is it a token?
pub fn check(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let token = match JoinToken::parse(text) {
        Ok(token) => token,
        Err(error) => {
            // Most of a token may be one: it is not repeated.
            let said = error.to_string();
            assert!(text.trim().len() < 20 || !said.contains(text.trim()), "{said}");
            return false;
        }
    };
    assert_eq!(token.expose(), text.trim());
    let secret: &[u8; 32] = token.secret().try_into().expect("32 bytes");
    let fields: Vec<&str> = token.expose().split('.').collect();
    let [_, _, id, shown, _] = fields[..] else {
        panic!("{} fields", fields.len())
    };
    assert_eq!(id, token.id());
    assert!(!format!("{token:?}").contains(shown), "a secret is shown");
    let again = JoinToken::parse(token.expose()).expect("it was one");
    assert_eq!(
        (again.secret(), again.root_sha256()),
        (&secret[..], token.root_sha256())
    );
    true
}
