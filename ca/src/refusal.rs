//! A refusal: a stable word for machines, a sentence for people, never a secret.

use postern_api::refusal::RefusalReason;
use tonic::Status;

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
    /// The stable word.
    #[must_use]
    pub fn reason(&self) -> RefusalReason {
        self.reason
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        refusal.reason.status(refusal.message)
    }
}
