//! What is wrong, said once: while an API server is away it is asked every second.

/// The last that was said.
#[derive(Debug, Default)]
pub(super) struct Complaint {
    last: Option<String>,
}

impl Complaint {
    pub(super) fn say(&mut self, why: &str) {
        if self.last.as_deref() != Some(why) {
            tracing::warn!(reason = "cluster", "{why}");
            self.last = Some(why.to_owned());
        }
    }

    /// It is well again.
    pub(super) fn over(&mut self) {
        self.last = None;
    }
}
