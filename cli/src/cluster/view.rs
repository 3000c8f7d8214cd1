//! What control shows through the aggregated API, and plain reads of the API server.

use http::Request;
use kube::Client;
use postern_control::api::objects::{API_VERSION, List, Object, Resource};
use serde::de::DeserializeOwned;

/// A list of a resource, in one namespace or in all.
pub(super) async fn list<T: DeserializeOwned>(
    client: &Client,
    resource: Resource,
    namespace: Option<&str>,
) -> Result<Vec<Object<T>>, kube::Error> {
    let plural = resource.plural();
    let path = match namespace {
        Some(namespace) => format!("/apis/{API_VERSION}/namespaces/{namespace}/{plural}"),
        None => format!("/apis/{API_VERSION}/{plural}"),
    };
    get::<List<T>>(client, &path).await.map(|list| list.items)
}

/// Any document.
pub(super) async fn get<T: DeserializeOwned>(client: &Client, path: &str) -> Result<T, kube::Error> {
    client.request(request(path)?).await
}

/// Any text.
pub(super) async fn text(client: &Client, path: &str) -> Result<String, kube::Error> {
    client.request_text(request(path)?).await
}

fn request(path: &str) -> Result<Request<Vec<u8>>, kube::Error> {
    Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)
}
