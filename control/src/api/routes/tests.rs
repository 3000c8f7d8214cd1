#![allow(clippy::unwrap_used)]

use http::HeaderValue;

use super::*;

fn parsed(path: &str, accept: Option<&'static str>) -> Result<Route, RouteError> {
    let mut headers = HeaderMap::new();
    if let Some(accept) = accept {
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
    }
    parse(&Method::GET, &path.parse().unwrap(), &headers)
}

fn asked_of(path: &str) -> Result<Asked, RouteError> {
    match parsed(path, None)? {
        Route::View(view) => Ok(view.asked),
        route => panic!("{route:?}"),
    }
}

#[test]
fn paths_name_a_resource_a_namespace_and_an_object() {
    let asked = |resource, namespace: Option<&str>, name: Option<&str>| Asked {
        resource,
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
    };
    let base = "/apis/view.postern.dev/v1alpha1";
    for (path, wanted) in [
        ("/edges", asked(Resource::Edges, None, None)),
        ("/namespaces/shop/edges", asked(Resource::Edges, Some("shop"), None)),
        (
            "/namespaces/shop/proxies/cart",
            asked(Resource::Proxies, Some("shop"), Some("cart")),
        ),
        ("/replicas", asked(Resource::Replicas, None, None)),
        ("/replicas/a", asked(Resource::Replicas, None, Some("a"))),
    ] {
        assert_eq!(asked_of(&format!("{base}{path}")), Ok(wanted), "{path}");
    }
    for path in [
        "/edges/x",
        "/namespaces/shop/replicas",
        "/namespaces/shop",
        "/namespaces/shop/edges/x/status",
        "/namespaces/sh%6fp/edges",
        "/pods",
    ] {
        assert_eq!(asked_of(&format!("{base}{path}")), Err(RouteError::NotFound), "{path}");
    }
}

#[test]
fn a_question_is_posted_into_a_namespace_and_nothing_else_is_done_with_explanations() {
    let base = "/apis/view.postern.dev/v1alpha1";
    let of = |method: Method, path: &str| parse(&method, &format!("{base}{path}").parse().unwrap(), &HeaderMap::new());
    let here = "/namespaces/shop/explanations";
    let strict = format!("{here}?fieldManager=kubectl-create&fieldValidation=Strict&dryRun=All");
    for path in [here, &strict] {
        assert_eq!(of(Method::POST, path), Ok(Route::Explain("shop".to_owned())), "{path}");
    }
    for method in [Method::GET, Method::PUT, Method::PATCH, Method::DELETE] {
        assert_eq!(of(method, here), Err(RouteError::Create));
    }
    for path in ["/explanations", "/namespaces/shop/explanations/x"] {
        assert_eq!(of(Method::POST, path), Err(RouteError::Create), "{path}");
        assert!(of(Method::GET, path).is_err(), "{path}");
    }
    assert_eq!(of(Method::POST, "/explanations/x"), Err(RouteError::NotFound));
    assert_eq!(of(Method::POST, "/namespaces/shop/edges"), Err(RouteError::Method));
    let long = format!("{here}?{}", "a".repeat(MAX_QUERY + 1));
    assert_eq!(of(Method::POST, &long), Err(RouteError::Query));
}

#[test]
fn the_first_form_that_we_have_is_chosen() {
    let edges = "/apis/view.postern.dev/v1alpha1/edges";
    let form = |query: &str, accept| match parsed(&format!("{edges}{query}"), accept) {
        Ok(Route::View(view)) => Ok(view.form),
        Ok(route) => panic!("{route:?}"),
        Err(error) => Err(error),
    };
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    assert_eq!(form("", None), Ok(Form::Json));
    assert_eq!(form("", Some("*/*")), Ok(Form::Json));
    assert_eq!(
        form("", Some("application/vnd.kubernetes.protobuf, application/json")),
        Ok(Form::Json)
    );
    assert_eq!(form("", Some(table)), Ok(Form::Table(Include::Metadata)));
    assert_eq!(
        form("?includeObject=Object", Some(table)),
        Ok(Form::Table(Include::Object))
    );
    assert_eq!(form("?includeObject=None", Some(table)), Ok(Form::Table(Include::None)));
    assert_eq!(form("", Some("application/yaml")), Err(RouteError::NotAcceptable));
}

#[test]
fn a_query_past_its_bound_is_refused() {
    let edges = "/apis/view.postern.dev/v1alpha1/edges";
    let of = |length: usize| parsed(&format!("{edges}?{}", "a".repeat(length)), None);
    assert!(of(MAX_QUERY).is_ok());
    assert_eq!(of(MAX_QUERY + 1), Err(RouteError::Query));
    assert!(parsed(&format!("{edges}?watch=false&limit=500"), None).is_ok());
    for watch in ["watch=true", "watch=1", "watch"] {
        assert_eq!(
            parsed(&format!("{edges}?{watch}"), None),
            Err(RouteError::Watch),
            "{watch}"
        );
    }
}
