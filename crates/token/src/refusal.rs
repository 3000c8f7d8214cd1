//! Why a request's token is not believed.

use postern_policy::UserError;

/// Every reason. What it says is for logs; clients are told no more than RFC 6750's `invalid_token`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// More than one token, or more than one `Authorization`: the app might believe the other.
    #[error("the request holds more than one token")]
    Several,
    /// Longer than [`crate::MAX_TOKEN`].
    #[error("the token is longer than {} bytes", crate::MAX_TOKEN)]
    TooLong,
    /// No JWT in compact form.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// A JWT that asks for what is never done.
    #[error("the token asks for what is not supported: {0}")]
    Unsupported(&'static str),
    /// No rule that looks where the token stood believes its issuer.
    #[error("the token's issuer is not known here")]
    UnknownIssuer,
    /// The issuer's keys do not include it.
    #[error("the token's key is not among its issuer's")]
    UnknownKey {
        /// Where the keys are fetched; `None` if they are part of the document.
        provider: Option<String>,
    },
    /// The issuer's keys were never fetched, or too long ago. Not the token's fault.
    #[error("there are no keys of the token's issuer")]
    NoKeys {
        /// Where the keys are fetched; `None` if they are part of the document.
        provider: Option<String>,
    },
    /// Not signed by its issuer.
    #[error("the token's signature is wrong")]
    Signature,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// It is not valid yet.
    #[error("the token is not valid yet: {0}")]
    NotYet(&'static str),
    /// It is for somebody else.
    #[error("the token is for another audience")]
    Audience,
    /// It was issued to somebody else than who brings it.
    #[error("the token is not the caller's: {0}")]
    NotTheCallers(&'static str),
    /// It names nobody.
    #[error(transparent)]
    Nobody(#[from] UserError),
    /// A document that concerns the workload cannot be read, so that no token is believed.
    #[error("a RequestAuthentication of this workload cannot be read")]
    Unreadable,
}

impl Refusal {
    /// A closed set of words, for metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Several => "several_tokens",
            Self::TooLong | Self::Malformed(_) => "token_malformed",
            Self::Unsupported(_) => "token_unsupported",
            Self::UnknownIssuer => "token_unknown_issuer",
            Self::UnknownKey { .. } => "token_unknown_key",
            Self::NoKeys { .. } => "token_keys_missing",
            Self::Signature => "token_bad_signature",
            Self::Expired => "token_expired",
            Self::NotYet(_) => "token_not_yet_valid",
            Self::Audience => "token_wrong_audience",
            Self::NotTheCallers(_) => "token_wrong_caller",
            Self::Nobody(_) => "token_names_nobody",
            Self::Unreadable => "token_document_unreadable",
        }
    }

    /// Ours, not the token's: another token would fare no better now.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::NoKeys { .. } | Self::Unreadable)
    }
}
