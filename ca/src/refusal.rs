//! A refusal: a stable word for machines, a sentence for people, never a secret.

use postern_api::refusal::RefusalReason;
use tonic::Status;

const SCHEME: &str = "spiffe://";

/// Why a call was not answered with what it asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    reason: RefusalReason,
    message: String,
}

impl Refusal {
    /// `message` says what was wrong and, where there is one, the remedy.
    #[must_use]
    pub fn new(reason: RefusalReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
    /// What a log may say of it: whose identity it was about is in the ledger, which is sealed.
    #[must_use]
    pub(crate) fn without_identities(&self) -> String {
        if self.reason == RefusalReason::Quarantined {
            return "the caller is in quarantine".to_owned();
        }
        let (mut text, mut rest) = (String::new(), self.message.as_str());
        while let Some((before, after)) = rest.split_once(SCHEME) {
            text.push_str(before);
            text.push_str("(an identity)");
            // A path has nothing else (SPIFFE ID 2.2), whatever stands behind it in a sentence.
            rest = after.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "/._-".contains(c));
        }
        text + rest
    }
    /// The stable word.
    #[must_use]
    pub fn reason(&self) -> RefusalReason {
        self.reason
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal.reason {
            // Whoever is cut off need not hear that it was found out; operators read it in our log.
            RefusalReason::Quarantined => RefusalReason::Refused.status("this CA issues nothing to this caller"),
            reason => reason.status(refusal.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_logged_without_the_identity_that_it_is_about() {
        let logged = |reason, message: &str| Refusal::new(reason, message).without_identities();
        for (message, without) in [
            ("it is late", "it is late"),
            (
                "spiffe://cluster.local/ns/shop/sa/web is not renewed here",
                "(an identity) is not renewed here",
            ),
            (
                "asked as spiffe://a.b/c_d-e, not as spiffe://a.b/ns/x/sa/y: no",
                "asked as (an identity), not as (an identity): no",
            ),
        ] {
            assert_eq!(logged(RefusalReason::RenewalIdentity, message), without);
        }
        let quarantined = logged(
            RefusalReason::Quarantined,
            "instance web-1 of spiffe://a.b/c is quarantined",
        );
        assert!(
            !quarantined.contains("web-1") && !quarantined.contains("a.b"),
            "{quarantined}"
        );
    }
}
