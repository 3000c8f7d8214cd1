//! From a document to the model: a field that is not known, or a value that can never match, refuses the document.

use std::collections::BTreeMap;

use super::{Content, MAX_RULES, RequestAuthentication};
use crate::document::{DocumentError, Fields, Node, Object, Value};
use crate::model::decode::{OURS, foreign_target, head, item};

mod rule;

const KIND: &str = "RequestAuthentication";

pub(super) fn document(object: &Object) -> Result<RequestAuthentication, Vec<DocumentError>> {
    let mut errors = Vec::new();
    let namespace = head(object, KIND, &mut errors);
    let empty = Node {
        place: object.place.clone(),
        value: Value::Null,
    };
    let mut document = RequestAuthentication {
        namespace,
        name: object.name.clone(),
        place: object.place.clone(),
        selector: BTreeMap::new(),
        foreign_target: false,
        content: Content::Rules(Vec::new()),
    };
    match Fields::of(object.spec.as_ref().unwrap_or(&empty), "spec") {
        Err(error) => errors.push(error),
        Ok(spec) => read_spec(spec, object.api_version == OURS, &mut document, &mut errors),
    }
    if errors.is_empty() { Ok(document) } else { Err(errors) }
}

fn read_spec(mut spec: Fields<'_>, ours: bool, document: &mut RequestAuthentication, errors: &mut Vec<DocumentError>) {
    if let Some(mut selector) = spec.child("selector") {
        document.selector = selector.text_map("matchLabels");
        selector.finish(errors);
    }
    document.foreign_target = foreign_target(&mut spec, !document.selector.is_empty(), errors);
    let listed = spec.list("jwtRules").unwrap_or_default();
    if listed.len() > MAX_RULES {
        let place = spec.place().clone();
        spec.error(&place, "jwtRules", format!("at most {MAX_RULES} are allowed"));
    }
    let mut rules = Vec::new();
    for (path, node) in listed.into_iter().take(MAX_RULES) {
        match item(node, &path) {
            Ok(fields) => rules.push(rule::read(fields, ours, errors)),
            Err(error) => errors.push(error),
        }
    }
    document.content = Content::Rules(rules);
    spec.finish(errors);
}
