//! What can still be learned of a document that cannot be read.

use std::collections::BTreeSet;

use super::value;
use crate::document::{Node, Object, Value};

/// More are not kept; a document says a handful.
const MAX_NAMES: usize = 256;

/// Every text of the document that the app may have been promised as a header of ours, lower case.
pub(super) fn headers(object: &Object) -> Vec<String> {
    let mut names = BTreeSet::new();
    if let Some(spec) = &object.spec {
        collect(spec, &mut names);
    }
    names.into_iter().collect()
}

fn collect(node: &Node, names: &mut BTreeSet<String>) {
    match &node.value {
        // What no rule may name is no promise either: a document that said so would not have been read before.
        Value::Text(text) if names.len() < MAX_NAMES => {
            if let Ok(name) = value::told_header(text) {
                names.insert(name);
            }
        }
        Value::List(items) => items.iter().for_each(|item| collect(item, names)),
        Value::Map(entries) => entries.iter().for_each(|(_, _, value)| collect(value, names)),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) => {}
    }
}
