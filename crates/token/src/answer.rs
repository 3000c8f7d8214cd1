//! What a client is told: RFC 6750 section 3 and RFC 9470 section 3. Never which policy is behind it.

use crate::Refusal;

/// The protection space. The same everywhere: a name of the workload would be told to everybody.
const REALM: &str = "mesh";

/// Status, and the value of `WWW-Authenticate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 400, 401, 403 or 503.
    pub status: u16,
    /// What to bring; `None` if nothing that the client could bring would help.
    pub challenge: Option<String>,
}

/// For a token that is not believed. What is not the token's fault asks for no other token.
#[must_use]
pub fn refused(refusal: &Refusal) -> Answer {
    if refusal.is_ours() {
        return Answer {
            status: 503,
            challenge: None,
        };
    }
    // RFC 6750 section 3.1.
    if *refusal == Refusal::Several {
        challenge(400, &[("error", "invalid_request")])
    } else {
        challenge(401, &[("error", "invalid_token")])
    }
}

/// For a request without a token that would be let through with one. No error: nothing was wrong (RFC 6750 section 3.1).
#[must_use]
pub fn no_token() -> Answer {
    challenge(401, &[])
}

/// For a login that is too weak, or too long ago: what `acr` must be one of, and how old it may be, in seconds.
#[must_use]
pub fn stronger_login<'a>(acr_values: impl IntoIterator<Item = &'a str>, max_age: Option<u64>) -> Answer {
    let acr_values = words(acr_values);
    let max_age = max_age.map(|seconds| seconds.to_string());
    let mut fields = vec![
        ("error", "insufficient_user_authentication"),
        ("error_description", "A different authentication level is required"),
    ];
    if !acr_values.is_empty() {
        fields.push(("acr_values", &acr_values));
    }
    if let Some(max_age) = &max_age {
        fields.push(("max_age", max_age));
    }
    challenge(401, &fields)
}

/// For a token that does not reach far enough.
#[must_use]
pub fn more_scope<'a>(scope: impl IntoIterator<Item = &'a str>) -> Answer {
    let scope = words(scope);
    let mut fields = vec![("error", "insufficient_scope")];
    if !scope.is_empty() {
        fields.push(("scope", &scope));
    }
    challenge(403, &fields)
}

/// Values as RFC 6750's grammar has them (`scope-token`): what is no word of it cannot be asked for.
fn words<'a>(values: impl IntoIterator<Item = &'a str>) -> String {
    let word =
        |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\'));
    values.into_iter().filter(word).collect::<Vec<_>>().join(" ")
}

fn challenge(status: u16, fields: &[(&str, &str)]) -> Answer {
    let mut text = format!("Bearer realm=\"{REALM}\"");
    for (name, value) in fields {
        text.push_str(&format!(", {name}=\"{value}\""));
    }
    Answer {
        status,
        challenge: Some(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(answer: &Answer) -> String {
        format!("{} {}", answer.status, answer.challenge.as_deref().unwrap_or("-"))
    }

    #[test]
    fn answers_are_those_of_the_rfcs() {
        let none = None;
        for (answer, wanted) in [
            (no_token(), r#"401 Bearer realm="mesh""#),
            (
                refused(&Refusal::Expired),
                r#"401 Bearer realm="mesh", error="invalid_token""#,
            ),
            (
                refused(&Refusal::Several),
                r#"400 Bearer realm="mesh", error="invalid_request""#,
            ),
            (refused(&Refusal::NoKeys { provider: none }), "503 -"),
            (refused(&Refusal::Unreadable), "503 -"),
            (
                stronger_login(["otp", "urn:x"], Some(300)),
                "401 Bearer realm=\"mesh\", error=\"insufficient_user_authentication\", error_description=\"A different \
                 authentication level is required\", acr_values=\"otp urn:x\", max_age=\"300\"",
            ),
            (
                stronger_login([], None),
                "401 Bearer realm=\"mesh\", error=\"insufficient_user_authentication\", error_description=\"A different \
                 authentication level is required\"",
            ),
            (
                more_scope(["read", "write"]),
                r#"403 Bearer realm="mesh", error="insufficient_scope", scope="read write""#,
            ),
        ] {
            assert_eq!(text(&answer), wanted);
        }
    }

    #[test]
    fn a_value_cannot_end_its_quotes_or_its_line() {
        let answer = text(&more_scope(["a\"", "b\\", "c\r\nx: y", "d e", "é", "", "ok"]));
        assert_eq!(
            answer,
            r#"403 Bearer realm="mesh", error="insufficient_scope", scope="ok""#
        );
    }
}
