//! The same decision in words.

use crate::{Compiled, Request};

/// What decided, or for a denial the nearest ALLOW rule and which of its fields missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// One line: verdict, policy, rule and place.
    pub summary: String,
    /// For a denial without a DENY rule: the ALLOW rule that came closest, and the field that missed.
    pub nearest: Option<String>,
}

impl Compiled {
    /// Explains the decision that [`Compiled::decide`] makes; the verdict is that one.
    #[must_use]
    pub fn explain(&self, request: &Request<'_>) -> Explanation {
        let _ = request;
        todo!()
    }
}
