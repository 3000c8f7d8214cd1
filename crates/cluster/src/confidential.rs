//! Calls whose requests or answers hold keys or tokens.
//!
//! `kube` writes an answer that it cannot read into the log, whole. So here the text is read by ourselves, and an error
//! tells the place in it, never a piece of it.

use kube::Client;
use kube::api::{GetParams, PostParams};
use kube::core::Request;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The API server said no, or could not be reached.
    #[error("the Kubernetes API did not answer as it should")]
    Api(#[source] Box<kube::Error>),
    /// What it answered is something else.
    #[error("the answer of the Kubernetes API cannot be read (line {line}, column {column})")]
    Unreadable {
        /// Of the answer.
        line: usize,
        /// In that line.
        column: usize,
    },
    /// The request could not be put together.
    #[error("the request cannot be written")]
    Request,
}

impl CallError {
    /// The HTTP status by which the API server refused.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Api(error) => match error.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::Unreadable { .. } | Self::Request => None,
        }
    }
    /// Somebody else wrote since we read.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status() == Some(409)
    }
}

/// Reads one object. `collection` is such as `/api/v1/namespaces/x/secrets`.
pub async fn get<T: DeserializeOwned>(client: &Client, collection: &str, name: &str) -> Result<T, CallError> {
    let request = Request::new(collection).get(name, &GetParams::default());
    call(client, request.map_err(|_| CallError::Request)?).await
}

/// Writes one object whole; the `resourceVersion` in it is the precondition.
pub async fn replace<T: Serialize + DeserializeOwned>(
    client: &Client,
    collection: &str,
    name: &str,
    object: &T,
) -> Result<T, CallError> {
    let body = serde_json::to_vec(object).map_err(|_| CallError::Request)?;
    let request = Request::new(collection).replace(name, &PostParams::default(), body);
    call(client, request.map_err(|_| CallError::Request)?).await
}

/// Creates one object, such as a review.
pub async fn create<T: Serialize + DeserializeOwned>(
    client: &Client,
    collection: &str,
    object: &T,
) -> Result<T, CallError> {
    let body = serde_json::to_vec(object).map_err(|_| CallError::Request)?;
    let request = Request::new(collection).create(&PostParams::default(), body);
    call(client, request.map_err(|_| CallError::Request)?).await
}

async fn call<T: DeserializeOwned>(client: &Client, request: http::Request<Vec<u8>>) -> Result<T, CallError> {
    let text = client
        .request_text(request)
        .await
        .map(Zeroizing::new)
        .map_err(|error| CallError::Api(Box::new(error)))?;
    serde_json::from_str(&text).map_err(|error| CallError::Unreadable {
        line: error.line(),
        column: error.column(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::Secret;
    use serde_json::json;

    use super::*;
    use crate::testing::{ApiServer, Reaction};

    const SECRETS: &str = "/api/v1/namespaces/x/secrets";

    #[tokio::test]
    async fn what_cannot_be_read_is_told_by_its_place_and_never_shown() {
        let server = ApiServer::start().await;
        server.react(|_| Reaction::Answer(200, json!({"data": {"key": {"hunter2": 1}}})));
        let error = get::<Secret>(&server.client(), SECRETS, "s").await.unwrap_err();
        assert!(matches!(error, CallError::Unreadable { line: 1, .. }), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn a_write_over_something_newer_is_a_conflict() {
        let server = ApiServer::start().await;
        server.put(
            "/api/v1/namespaces/x/secrets/s",
            json!({"metadata": {"name": "s", "namespace": "x"}}),
        );
        let client = server.client();
        let read: Secret = get(&client, SECRETS, "s").await.unwrap();
        replace(&client, SECRETS, "s", &read).await.unwrap();
        let error = replace(&client, SECRETS, "s", &read).await.unwrap_err();
        assert!(error.is_conflict(), "{error:?}");
        let error = get::<Secret>(&client, SECRETS, "other").await.unwrap_err();
        assert_eq!(error.status(), Some(404));
    }
}
