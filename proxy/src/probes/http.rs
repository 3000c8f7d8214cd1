//! An `httpGet`, as a kubelet does it (pkg/probe/http): 200 to 399 is a success, a redirect to another host included.

use http::header::{ACCEPT, HeaderValue, USER_AGENT};

use crate::app_client::{Question, ask};
use crate::status::error_chain;

/// A kubelet reads so much of an answer.
pub(super) const MAX_BODY: usize = 10 * 1024;

#[derive(Debug)]
pub(super) struct Probe {
    pub(super) question: Question,
}

impl Probe {
    pub(super) async fn run(&self, agent: Option<HeaderValue>, hook: bool) -> Result<(), String> {
        let mut question = self.question.clone();
        let headers = &mut question.headers;
        // As in net/http: the manifest's own value wins, and an empty one takes the field away.
        for (name, default) in [(USER_AGENT, agent), (ACCEPT, Some(HeaderValue::from_static("*/*")))] {
            match (headers.get(&name).map(HeaderValue::is_empty), default) {
                (None, Some(default)) => _ = headers.insert(name, default),
                (Some(true), _) => _ = headers.remove(name),
                (Some(false), _) | (None, None) => {}
            }
        }
        let answer = ask(&question).await.map_err(|error| error_chain(&error))?;
        let status = answer.status.as_u16();
        // Of a hook only the asking counts (pkg/kubelet/lifecycle).
        if hook || (200..400).contains(&status) {
            Ok(())
        } else {
            Err(format!("the app answered {status}"))
        }
    }
}
