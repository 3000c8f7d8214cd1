//! `explanations`: a question is posted and comes back with its answer, as a SubjectAccessReview does. Nothing of it is kept,
//! and nothing is logged: it may hold fields of a real head and the claims of a real token.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Body;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::access::{Access, Asked, Denied};
use super::front_proxy::User;
use super::objects::{API_VERSION, Resource};
use crate::explain::{MAX_QUESTION, Question, Unanswerable, answer, misshapen};
use crate::hub::Hub;

/// A question with what is around it; whoever has a longest question has little around it.
const MAX_BODY: usize = MAX_QUESTION;
/// The API server passes on what its client sends at once.
const BODY_DEADLINE: Duration = Duration::from_secs(4);
/// Questions that are read and answered at once: so many bodies are held, 2 MiB, and so many threads may be busy; a question
/// is answered in milliseconds.
const AT_ONCE: usize = 8;
/// What Kubernetes has in the metadata of any object.
const METADATA: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// See the module.
pub(crate) struct Explaining {
    hub: Arc<Hub>,
    room: Semaphore,
}

/// Why there is no answer. Messages repeat what was asked, to whoever asked, and are for nobody else.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExplainError {
    #[error("the body is longer than the {MAX_BODY} bytes of an Explanation")]
    TooLong,
    #[error("the body did not come whole, or not within {BODY_DEADLINE:?}")]
    Body,
    #[error("an Explanation is read as application/json only")]
    MediaType,
    #[error("this is no Explanation: {0}")]
    Unreadable(String),
    #[error("metadata.namespace is `{given}`, and the request is for namespace `{of_path}`")]
    OtherNamespace { given: String, of_path: String },
    #[error(
        "spec.to is of namespace `{called}`: an answer speaks of that namespace's policies, so it is asked for there, \
         not in `{of_path}`"
    )]
    Elsewhere { called: String, of_path: String },
    #[error("{0}")]
    Unanswerable(Unanswerable),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("the question could not be answered")]
    Lost,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    api_version: String,
    kind: String,
    metadata: Option<ObjectMeta>,
    spec: Question,
}

impl Explaining {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self {
            hub,
            room: Semaphore::new(AT_ONCE),
        }
    }

    /// The document that was sent, with its answer. The body is read only for who may ask in this namespace.
    pub(crate) async fn explained<B>(
        &self,
        access: &Access,
        user: &User,
        namespace: &str,
        headers: &HeaderMap,
        body: B,
    ) -> Result<Value, ExplainError>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        access.check(user, &asked(namespace)).await?;
        if !is_json(headers) {
            return Err(ExplainError::MediaType);
        }
        let _place = self.room.acquire().await.map_err(|_| ExplainError::Lost)?;
        let (mut document, question) = read(&whole(body).await?, namespace)?;
        let of_caller = question.namespace_that_describes_caller();
        let of_caller = of_caller.map_err(ExplainError::Unanswerable)?.unwrap_or(namespace);
        // Its identity and its labels are that namespace's to tell.
        if of_caller != namespace {
            access.check(user, &asked(of_caller)).await?;
        }
        let seen = [namespace.to_owned(), of_caller.to_owned()];
        let state = self.hub.state();
        // Not on the one thread that serves proxies: a large mesh has many policies.
        let answered = tokio::task::spawn_blocking(move || answer(&state.model, &question));
        let answered = answered.await.map_err(|_| ExplainError::Lost)?;
        let answer = answered.map_err(|error| {
            let seen = seen.each_ref().map(String::as_str);
            ExplainError::Unanswerable(error.seen_from(&seen))
        })?;
        document.insert("status".to_owned(), json!(answer));
        Ok(Value::Object(document))
    }
}

fn asked(namespace: &str) -> Asked {
    Asked {
        resource: Resource::Explanations,
        namespace: Some(namespace.to_owned()),
        name: None,
    }
}

/// Without a word it is JSON, as for the API server itself.
fn is_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_none_or(|value| {
        let kind = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
        kind.trim().eq_ignore_ascii_case("application/json")
    })
}

async fn whole<B>(body: B) -> Result<Bytes, ExplainError>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let collected = timeout(BODY_DEADLINE, Limited::new(body, MAX_BODY).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ExplainError::TooLong),
        Ok(Err(_)) | Err(_) => Err(ExplainError::Body),
    }
}

/// What was sent, which goes back as it is, and the question in it.
fn read(text: &[u8], namespace: &str) -> Result<(Map<String, Value>, Question), ExplainError> {
    let no_json = |error: serde_json::Error| ExplainError::Unreadable(error.to_string());
    let value: Value = serde_json::from_slice(text).map_err(no_json)?;
    if let Some(says) = misshapen(&value, &fields(), "") {
        return Err(ExplainError::Unreadable(says));
    }
    // Not from the value: a field that is there twice would be the last one.
    let Document {
        api_version,
        kind,
        metadata,
        spec,
    } = serde_json::from_slice(text).map_err(no_json)?;
    let wanted = Resource::Explanations.kind();
    if (api_version.as_str(), kind.as_str()) != (API_VERSION, wanted) {
        let says = format!("it says kind `{kind}` of `{api_version}`, not {wanted} of {API_VERSION}");
        return Err(ExplainError::Unreadable(says));
    }
    let given = metadata.and_then(|metadata| metadata.namespace).unwrap_or_default();
    let of_path = || namespace.to_owned();
    if !given.is_empty() && given != namespace {
        let of_path = of_path();
        return Err(ExplainError::OtherNamespace { given, of_path });
    }
    let called = spec.called_namespace().map_err(ExplainError::Unanswerable)?.to_owned();
    if called != namespace {
        let of_path = of_path();
        return Err(ExplainError::Elsewhere { called, of_path });
    }
    let Value::Object(mut document) = value else {
        return Err(ExplainError::Unreadable("it is no object".to_owned()));
    };
    let metadata = document.entry("metadata").or_insert(Value::Null);
    match metadata {
        Value::Object(metadata) => drop(metadata.insert("namespace".to_owned(), json!(namespace))),
        _ => *metadata = json!({ "namespace": namespace }),
    }
    Ok((document, spec))
}

/// All that an Explanation may have. Clients with types of their own send an empty `status`.
fn fields() -> Value {
    let metadata: Map<String, Value> = METADATA.iter().map(|name| ((*name).to_owned(), Value::Null)).collect();
    json!({
        "apiVersion": null, "kind": null, "metadata": metadata, "spec": Question::fields(), "status": null,
    })
}

#[cfg(test)]
mod tests;
