//! From a document to an [`Authorizer`]. What is not understood is refused by name, never ignored.

use std::time::Duration;

use serde_json::{Map, Number, Value as Json};

use super::{Address, Asks, Authorizer, Module, Rego, Server};
use crate::document::{DocumentError, Fields, Node, Object, Value};

const KIND: &str = "Authorizer";
const API_VERSION: &str = "postern.dev/v1alpha1";

pub(super) fn authorizer(object: &Object) -> Result<Authorizer, Vec<DocumentError>> {
    let mut errors = Vec::new();
    if object.api_version != API_VERSION {
        errors.push(object.error("apiVersion", format!("`{}` is not {API_VERSION}", object.api_version)));
    }
    if object.kind != KIND {
        errors.push(object.error("kind", format!("`{}` is not {KIND}", object.kind)));
    }
    let namespace = object.namespace.clone().unwrap_or_default();
    if namespace.is_empty() {
        errors.push(object.error("metadata", "`namespace` is missing: it says which policies may name it"));
    }
    let empty = Node {
        place: object.place.clone(),
        value: Value::Null,
    };
    let asks = match Fields::of(object.spec.as_ref().unwrap_or(&empty), "spec") {
        Err(error) => {
            errors.push(error);
            None
        }
        Ok(spec) => asks(spec, &mut errors),
    };
    match asks {
        Some(asks) if errors.is_empty() => Ok(Authorizer {
            namespace,
            name: object.name.clone(),
            place: object.place.clone(),
            asks,
        }),
        Some(_) | None => Err(errors),
    }
}

fn asks(mut spec: Fields<'_>, errors: &mut Vec<DocumentError>) -> Option<Asks> {
    let place = spec.place().clone();
    let found = (spec.has("extAuthz"), spec.has("rego"));
    let (server_fields, rego_fields) = (spec.child("extAuthz"), spec.child("rego"));
    if found.0 == found.1 {
        let what = if found.0 {
            "both `extAuthz` and `rego` are given; one of them is asked"
        } else {
            "neither `extAuthz` (a server) nor `rego` is given"
        };
        spec.error(&place, "extAuthz", what);
    }
    let server = server_fields.and_then(|fields| server(fields, errors));
    let rego = rego_fields.and_then(|fields| rego(fields, errors));
    spec.finish(errors);
    server.map(Asks::Server).or(rego.map(Asks::Rego))
}

fn server(mut fields: Fields<'_>, errors: &mut Vec<DocumentError>) -> Option<Server> {
    let place = fields.place().clone();
    let address = fields
        .required_text("address")
        .and_then(|text| match Address::parse(&text) {
            Ok(address) => Some(address),
            Err(why) => {
                fields.error(&place, "address", why);
                None
            }
        });
    let timeout = timeout(&mut fields, Server::DEFAULT_TIMEOUT, Server::MAX_TIMEOUT);
    let context = fields.text_map("contextExtensions");
    if context.len() > Server::MAX_CONTEXT {
        let what = format!("{} pairs; at most {} are sent", context.len(), Server::MAX_CONTEXT);
        fields.error(&place, "contextExtensions", what);
    }
    let mut names = None;
    for (at, name) in fields.texts("includeHeaders").into_iter().flatten() {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            fields.error(at, "includeHeaders", format!("`{name}` is no name of a field"));
        }
        names.get_or_insert_with(Vec::new).push(name.to_ascii_lowercase());
    }
    fields.finish(errors);
    Some(Server {
        address: address?,
        timeout,
        context,
        include_headers: names,
    })
}

fn rego(mut fields: Fields<'_>, errors: &mut Vec<DocumentError>) -> Option<Rego> {
    let place = fields.place().clone();
    let modules = modules(&mut fields, errors);
    let query = match fields.text("query") {
        None => Rego::DEFAULT_QUERY.to_owned(),
        Some(query) => {
            if !is_rule(&query) {
                let what = format!("`{query}` is not the path of a rule, like `{}`", Rego::DEFAULT_QUERY);
                fields.error(&place, "query", what);
            }
            query
        }
    };
    let data = match fields.take("data") {
        None => Map::new(),
        Some(node) => match json(node) {
            Json::Object(data) => data,
            _ => {
                fields.error(&node.place, "data", "must be a map: it is merged under `data`");
                Map::new()
            }
        },
    };
    let bytes = serde_json::to_string(&data).map_or(usize::MAX, |text| text.len());
    if bytes > Rego::MAX_BYTES {
        let what = format!("{bytes} bytes as JSON; at most {} are taken", Rego::MAX_BYTES);
        fields.error(&place, "data", what);
    }
    let timeout = timeout(&mut fields, Rego::DEFAULT_TIMEOUT, Rego::MAX_TIMEOUT);
    let v0 = match fields.text("regoVersion").as_deref() {
        None | Some("v1") => false,
        Some("v0") => true,
        Some(other) => {
            fields.unknown_value(&place, "regoVersion", other, &["v1", "v0"]);
            false
        }
    };
    fields.finish(errors);
    Some(Rego {
        modules,
        query,
        data,
        timeout,
        v0,
    })
}

fn modules(fields: &mut Fields<'_>, errors: &mut Vec<DocumentError>) -> Vec<Module> {
    let place = fields.place().clone();
    let mut modules: Vec<Module> = Vec::new();
    let listed = fields.list("modules");
    if listed.as_ref().is_none_or(Vec::is_empty) {
        fields.error(
            &place,
            "modules",
            "at least one module is needed: `- {name: ..., text: ...}`",
        );
    }
    for (path, node) in listed.unwrap_or_default() {
        let mut item = match Fields::of(node, &path) {
            Ok(item) => item,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        let text_at = item.place_of("text").unwrap_or(&node.place).clone();
        let (name, text) = (item.required_text("name"), item.required_text("text"));
        if let Some(name) = name
            .as_ref()
            .filter(|name| modules.iter().any(|known| known.name == **name))
        {
            item.error(&node.place, "name", format!("`{name}` is another module's already"));
        }
        item.finish(errors);
        modules.push(Module {
            name: name.unwrap_or_default(),
            text: text.unwrap_or_default(),
            place: text_at,
        });
    }
    if modules.len() > Rego::MAX_MODULES {
        let what = format!("{} modules; at most {} are taken", modules.len(), Rego::MAX_MODULES);
        fields.error(&place, "modules", what);
    }
    let bytes: usize = modules.iter().map(|module| module.text.len()).sum();
    if bytes > Rego::MAX_BYTES {
        let what = format!("{bytes} bytes of text; at most {} are taken", Rego::MAX_BYTES);
        fields.error(&place, "modules", what);
    }
    modules
}

/// `data.` and words.
fn is_rule(query: &str) -> bool {
    let word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    query.len() <= 256
        && query
            .strip_prefix("data.")
            .is_some_and(|path| path.split('.').all(word))
}

/// `200ms`, `1s`, `1.5ms`: more than nothing, and no more than `most`.
fn timeout(fields: &mut Fields<'_>, default: Duration, most: Duration) -> Duration {
    let place = fields.place_of("timeout").unwrap_or(fields.place()).clone();
    let Some(text) = fields.text("timeout") else {
        return default;
    };
    match duration(&text) {
        Some(given) if !given.is_zero() && given <= most => given,
        Some(_) => {
            let what = format!("`{text}` is not more than nothing and at most {most:?}: a request waits for it");
            fields.error(&place, "timeout", what);
            default
        }
        None => {
            fields.error(&place, "timeout", format!("`{text}` is no time, like {default:?}"));
            default
        }
    }
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(digits);
    let nanoseconds: f64 = match unit {
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    Duration::try_from_secs_f64(number * nanoseconds / 1e9).ok()
}

fn json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(value) => Json::Number((*value).into()),
        // YAML has numbers that JSON has not.
        Value::Float(value) => Number::from_f64(*value).map_or(Json::Null, Json::Number),
        Value::Text(text) => Json::String(text.clone()),
        Value::List(items) => Json::Array(items.iter().map(json).collect()),
        Value::Map(entries) => Json::Object(
            entries
                .iter()
                .map(|(key, _, value)| (key.clone(), json(value)))
                .collect(),
        ),
    }
}
