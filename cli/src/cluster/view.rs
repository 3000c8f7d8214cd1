//! What control shows through the aggregated API, and plain reads of the API server.

use http::Request;
use kube::Client;
use postern_control::api::objects::{API_VERSION, List, Object, Resource};
use serde::Serialize;
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

/// What is created comes back, with what the cluster adds to it.
pub(super) async fn create<T: Serialize + DeserializeOwned>(
    client: &Client,
    resource: Resource,
    namespace: &str,
    object: &Object<T>,
) -> Result<Object<T>, kube::Error> {
    let path = format!("/apis/{API_VERSION}/namespaces/{namespace}/{}", resource.plural());
    let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
    let request = Request::post(path).header(http::header::CONTENT_TYPE, "application/json");
    client
        .request(request.body(body).map_err(kube::Error::HttpError)?)
        .await
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
