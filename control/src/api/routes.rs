//! What is asked for: path, query and `Accept`, parsed into one of a few requests.

use http::{HeaderMap, Method, Uri, header};

use super::access::Asked;
use super::objects::{API_VERSION, GROUP, Resource, VERSION};
use super::selectors::{Selector, SelectorError};

/// Longest query that is looked at; selectors are short.
const MAX_QUERY: usize = 4096;

/// One request.
#[derive(Debug, PartialEq)]
pub(crate) enum Route {
    /// `/healthz`, `/livez`, `/readyz`: for anybody.
    Health,
    /// `/apis`
    Groups,
    /// `/apis/view.postern.dev`
    Group,
    /// `/apis/view.postern.dev/v1alpha1`
    Resources,
    /// `/openapi/v2`
    OpenApi2,
    /// `/openapi/v3`
    OpenApi3,
    /// Objects.
    View(View),
    /// A question in this namespace.
    Explain(String),
}

/// Objects, and in which form.
#[derive(Debug, PartialEq)]
pub(crate) struct View {
    pub(crate) asked: Asked,
    pub(crate) selector: Selector,
    pub(crate) form: Form,
}

/// As what an answer goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The objects.
    Json,
    /// Columns for people, as `kubectl get` asks for.
    Table(Include),
}

/// What of its object a row of a table carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RouteError {
    #[error(
        "the server could not find the requested resource; {API_VERSION} has edges, identities, proxies, replicas, explanations"
    )]
    NotFound,
    #[error("{API_VERSION} is for looking: only GET, and POST of explanations")]
    Method,
    #[error(
        "explanations are only asked for: POST to {API_VERSION}/namespaces/NAMESPACE/explanations, of who is called"
    )]
    Create,
    #[error(
        "{API_VERSION} cannot be watched: its figures change with every request in the mesh; list again \
         (kubectl postern edges --watch does)"
    )]
    Watch,
    #[error(transparent)]
    Selector(#[from] SelectorError),
    #[error("the query is longer than {MAX_QUERY} bytes or no query")]
    Query,
    #[error("only application/json can be had here")]
    NotAcceptable,
}

pub(crate) fn parse(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Route, RouteError> {
    let segments: Vec<&str> = uri.path().split('/').filter(|segment| !segment.is_empty()).collect();
    let fixed = match segments.as_slice() {
        ["healthz" | "livez" | "readyz"] => Route::Health,
        ["apis"] => Route::Groups,
        ["apis", GROUP] => Route::Group,
        ["apis", GROUP, VERSION] => Route::Resources,
        ["openapi", "v2"] => Route::OpenApi2,
        ["openapi", "v3"] => Route::OpenApi3,
        ["apis", GROUP, VERSION, rest @ ..] => {
            let asked = asked(rest)?;
            return match asked.resource {
                Resource::Explanations => explain(method, asked, uri, headers),
                Resource::Edges | Resource::Identities | Resource::Proxies | Resource::Replicas => {
                    view(method, asked, uri, headers)
                }
            };
        }
        _ => return Err(RouteError::NotFound),
    };
    if method == Method::GET {
        Ok(fixed)
    } else {
        Err(RouteError::Method)
    }
}

fn asked(rest: &[&str]) -> Result<Asked, RouteError> {
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
        rest => (None, rest),
    };
    let (plural, name) = match rest {
        [plural] => (*plural, None),
        [plural, name] => (*plural, Some(*name)),
        _ => return Err(RouteError::NotFound),
    };
    let resource = Resource::ALL.into_iter().find(|resource| resource.plural() == plural);
    let resource = resource.ok_or(RouteError::NotFound)?;
    // One object of a namespaced resource is asked for in its namespace.
    let fits = match (resource.namespaced(), namespace, name) {
        (true, None, Some(_)) | (false, Some(_), _) => false,
        (true, Some(_), _) | (true, None, None) | (false, None, _) => true,
    };
    // Names of ours need no escapes: what has any names nothing.
    let plain = |text: &&str| !text.contains('%');
    if !fits || !namespace.iter().chain(&name).all(plain) {
        return Err(RouteError::NotFound);
    }
    Ok(Asked {
        resource,
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
    })
}

fn explain(method: &Method, asked: Asked, uri: &Uri, headers: &HeaderMap) -> Result<Route, RouteError> {
    let (true, Some(namespace), None) = (method == Method::POST, asked.namespace, asked.name) else {
        return Err(RouteError::Create);
    };
    // What else a writer may say (`dryRun`, `fieldValidation`) changes nothing: nothing is kept, and all is looked over.
    if uri.query().is_some_and(|query| query.len() > MAX_QUERY) {
        return Err(RouteError::Query);
    }
    // Who would have a table can have JSON.
    form(headers, Include::None)?;
    Ok(Route::Explain(namespace))
}

fn view(method: &Method, asked: Asked, uri: &Uri, headers: &HeaderMap) -> Result<Route, RouteError> {
    if method != Method::GET {
        return Err(RouteError::Method);
    }
    let mut selector = Selector::default();
    let mut include = Include::Metadata;
    let query = uri.query().unwrap_or_default();
    if query.len() > MAX_QUERY {
        return Err(RouteError::Query);
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = form_decoded(value).ok_or(RouteError::Query)?;
        match key {
            "watch" if !matches!(&*value, "0" | "f" | "F" | "false" | "False" | "FALSE") => {
                return Err(RouteError::Watch);
            }
            "labelSelector" => selector.take_labels(&value)?,
            "fieldSelector" => selector.take_fields(&value)?,
            "includeObject" => {
                include = match &*value {
                    "None" => Include::None,
                    "Object" => Include::Object,
                    _ => Include::Metadata,
                };
            }
            // Pages, timeouts, resource versions: all of it is one page, made now.
            _ => {}
        }
    }
    let form = form(headers, include)?;
    Ok(Route::View(View { asked, selector, form }))
}

/// The first of what is accepted that we have.
fn form(headers: &HeaderMap, include: Include) -> Result<Form, RouteError> {
    let mut accepts = headers.get_all(header::ACCEPT).iter().peekable();
    if accepts.peek().is_none() {
        return Ok(Form::Json);
    }
    for range in accepts
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
    {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        if !matches!(kind, "application/json" | "application/*" | "*/*") {
            continue;
        }
        let parameters: Vec<&str> = parts.collect();
        let parameter = |name: &str| {
            let value = parameters
                .iter()
                .find_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default()
        };
        match (parameter("as"), parameter("g"), parameter("v")) {
            ("", _, _) => return Ok(Form::Json),
            ("Table", "meta.k8s.io", "v1") => return Ok(Form::Table(include)),
            _ => {}
        }
    }
    Err(RouteError::NotAcceptable)
}

fn form_decoded(text: &str) -> Option<String> {
    super::front_proxy::percent_decoded(&text.replace('+', " "))
}

#[cfg(test)]
mod tests;
