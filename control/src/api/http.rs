//! One request to one answer.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, Status, StatusDetails};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use serde_json::Value;

use super::access::{Access, Asked, Denied};
use super::discovery;
use super::explanations::{ExplainError, Explaining};
use super::front_proxy::{FrontProxy, Unauthenticated, User};
use super::objects::{API_VERSION, GROUP, List, Object, Resource};
use super::pictures::Pictures;
use super::routes::{self, Form, Route, RouteError, View};
use super::table::{self, Row};
use super::views;
use crate::error_chain;

/// Warnings in one answer.
const MAX_WARNINGS: usize = 8;
/// Longest warning; `kubectl` prints each on a line.
const MAX_WARNING: usize = 256;

/// Answers requests.
pub(crate) struct Answering {
    pub(crate) front_proxy: Arc<ArcSwapOption<FrontProxy>>,
    pub(crate) access: Access,
    pub(crate) pictures: Pictures,
    pub(crate) explaining: Explaining,
}

/// Why there is no answer but a `Status`.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error(transparent)]
    Nobody(#[from] Unauthenticated),
    #[error(
        "who the API server's front proxy is, is not known yet (ConfigMap kube-system/extension-apiserver-authentication)"
    )]
    NotReady,
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Explain(#[from] ExplainError),
    #[error("{resource}.{GROUP} \"{name}\" not found")]
    NoObject { resource: &'static str, name: String },
    #[error("there was no answer in time")]
    TooSlow,
}

type Answer = Response<Full<Bytes>>;

impl Answering {
    /// `chain`: the client's certificates, the key of the first of which it has proven to hold.
    pub(crate) async fn answer(&self, chain: &[CertificateDer<'static>], request: Request<Incoming>) -> Answer {
        match self.try_answer(chain, request).await {
            Ok(answer) => answer,
            Err(refused) => refused.answer(),
        }
    }

    async fn try_answer(
        &self,
        chain: &[CertificateDer<'static>],
        request: Request<Incoming>,
    ) -> Result<Answer, Refused> {
        let (head, body) = request.into_parts();
        let route = routes::parse(&head.method, &head.uri, &head.headers);
        if matches!(route, Ok(Route::Health)) {
            return Ok(plain("ok"));
        }
        // Before a word on what there is and what there is not.
        let user = self.user(chain, &head.headers)?;
        match route? {
            Route::Health => Ok(plain("ok")),
            // What there is to be asked for is no secret, and the API server has decided on it already.
            Route::Groups => Ok(json(&discovery::groups())),
            Route::Group => Ok(json(&discovery::group())),
            Route::Resources => Ok(json(&discovery::resources())),
            Route::OpenApi2 => Ok(json(&discovery::openapi2())),
            Route::OpenApi3 => Ok(json(&discovery::openapi3())),
            Route::View(view) => {
                self.access.check(&user, &view.asked).await?;
                self.view(view).await
            }
            Route::Explain(namespace) => {
                let explained = self
                    .explaining
                    .explained(&self.access, &user, &namespace, &head.headers, body);
                let mut answer = json(&explained.await?);
                *answer.status_mut() = StatusCode::CREATED;
                Ok(answer)
            }
        }
    }

    fn user(&self, chain: &[CertificateDer<'static>], headers: &HeaderMap) -> Result<User, Refused> {
        let front_proxy = self.front_proxy.load_full().ok_or(Refused::NotReady)?;
        Ok(front_proxy.user(chain, headers, postern_api::transport::now())?)
    }

    async fn view(&self, view: View) -> Result<Answer, Refused> {
        let gathered = self.pictures.gathered().await;
        let pictures = &gathered.pictures;
        let mut answer = match view.asked.resource {
            Resource::Edges => shown(views::edges(pictures), &view),
            Resource::Identities => shown(views::identities(pictures), &view),
            Resource::Proxies => shown(views::proxies(pictures), &view),
            Resource::Replicas => shown(views::replicas(pictures), &view),
            // Routes lead none here.
            Resource::Explanations => Err(RouteError::Create.into()),
        }?;
        for missing in gathered.missing.iter().take(MAX_WARNINGS) {
            if let Some(warning) = warning(missing) {
                answer.headers_mut().append(header::WARNING, warning);
            }
        }
        Ok(answer)
    }
}

/// What the view selects, in its form. Nothing of another namespace passes here, whatever was gathered.
fn shown<T: Row + Serialize>(mut objects: Vec<Object<T>>, view: &View) -> Result<Answer, Refused> {
    let Asked {
        resource,
        namespace,
        name,
    } = &view.asked;
    objects.retain(|object| {
        let metadata = &object.metadata;
        (namespace.is_none() || metadata.namespace == *namespace) && view.selector.selects(metadata)
    });
    if let Some(name) = name {
        objects.retain(|object| object.metadata.name.as_ref() == Some(name));
    }
    let missing = |name: &String| Refused::NoObject {
        resource: resource.plural(),
        name: name.clone(),
    };
    match (view.form, name) {
        (Form::Table(_), Some(name)) if objects.is_empty() => Err(missing(name)),
        (Form::Table(include), _) => Ok(json(&table::table(&objects, include))),
        (Form::Json, Some(name)) => Ok(json(&objects.pop().ok_or_else(|| missing(name))?)),
        (Form::Json, None) => Ok(json(&List {
            api_version: API_VERSION.to_owned(),
            kind: format!("{}List", resource.kind()),
            metadata: ListMeta::default(),
            items: objects,
        })),
    }
}

impl Refused {
    /// HTTP status, and the word that clients go by.
    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Route(RouteError::NotFound) | Self::NoObject { .. } => (StatusCode::NOT_FOUND, "NotFound"),
            Self::Route(RouteError::Method | RouteError::Create | RouteError::Watch) => {
                (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed")
            }
            Self::Route(RouteError::Selector(_) | RouteError::Query) => (StatusCode::BAD_REQUEST, "BadRequest"),
            Self::Route(RouteError::NotAcceptable) => (StatusCode::NOT_ACCEPTABLE, "NotAcceptable"),
            Self::Nobody(_) => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            Self::TooSlow => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
            Self::Denied(denied) | Self::Explain(ExplainError::Denied(denied)) => match denied {
                Denied::Forbidden(_) => (StatusCode::FORBIDDEN, "Forbidden"),
                Denied::Review(_) | Denied::TooSlow => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            },
            Self::Explain(ExplainError::TooLong) => (StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge"),
            Self::Explain(ExplainError::MediaType) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType"),
            Self::Explain(ExplainError::Body | ExplainError::Unreadable(_) | ExplainError::OtherNamespace { .. }) => {
                (StatusCode::BAD_REQUEST, "BadRequest")
            }
            Self::Explain(ExplainError::Elsewhere { .. } | ExplainError::Unanswerable(_)) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "Invalid")
            }
            Self::Explain(ExplainError::Lost) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        }
    }

    fn answer(&self) -> Answer {
        let (code, reason) = self.status();
        match self {
            Self::Denied(denied) | Self::Explain(ExplainError::Denied(denied)) => match denied {
                Denied::Review(_) | Denied::TooSlow => {
                    tracing::warn!(reason = "access_review", "{}", error_chain(denied));
                }
                Denied::Forbidden(_) => {}
            },
            Self::Nobody(_) => tracing::info!(reason = "unauthenticated", "{self}"),
            // What is said of a question repeats it.
            Self::Explain(_) | Self::Route(_) | Self::NotReady | Self::NoObject { .. } | Self::TooSlow => {}
        }
        let details = match self {
            Self::NoObject { resource, name } => Some(StatusDetails {
                group: Some(GROUP.to_owned()),
                kind: Some((*resource).to_owned()),
                name: Some(name.clone()),
                ..StatusDetails::default()
            }),
            Self::Route(_) | Self::Nobody(_) | Self::NotReady | Self::Denied(_) | Self::Explain(_) | Self::TooSlow => {
                None
            }
        };
        let mut answer = json(&Status {
            code: Some(i32::from(code.as_u16())),
            status: Some("Failure".to_owned()),
            reason: Some(reason.to_owned()),
            message: Some(self.to_string()),
            details,
            ..Status::default()
        });
        *answer.status_mut() = code;
        answer
    }
}

/// When all deadlines within have failed.
pub(super) fn too_slow() -> Answer {
    Refused::TooSlow.answer()
}

fn json(document: &impl Serialize) -> Answer {
    // Strings, numbers, lists and maps with string keys always are JSON.
    let text = serde_json::to_vec(document).unwrap_or_else(|_| Value::Null.to_string().into_bytes());
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Made for one user, now.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    answer
}

fn plain(text: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer
}

/// RFC 7234 5.5, as Kubernetes has it: `299 - "text"`.
fn warning(text: &str) -> Option<HeaderValue> {
    let plain = text.chars().map(|c| {
        if (' '..='~').contains(&c) && c != '"' && c != '\\' {
            c
        } else {
            '?'
        }
    });
    let plain: String = plain.take(MAX_WARNING).collect();
    HeaderValue::from_str(&format!("299 - \"{plain}\"")).ok()
}
