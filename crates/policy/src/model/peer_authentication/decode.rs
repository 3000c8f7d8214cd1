//! From a document to the model: what Istio's own validation refuses is refused here, and so is what is not understood.

use std::collections::BTreeMap;

use super::{MtlsMode, PeerAuthentication};
use crate::document::{DocumentError, Fields, Node, Object, Place, Value, nearest};
use crate::model::decode::head;

const KIND: &str = "PeerAuthentication";
/// The words for a mode.
const MODES: [&str; 4] = ["STRICT", "PERMISSIVE", "DISABLE", "UNSET"];

pub(super) fn document(object: &Object) -> Result<PeerAuthentication, Vec<DocumentError>> {
    let mut errors = Vec::new();
    let namespace = head(object, KIND, &mut errors);
    let empty = Node {
        place: object.place.clone(),
        value: Value::Null,
    };
    let mut document = PeerAuthentication {
        namespace,
        name: object.name.clone(),
        place: object.place.clone(),
        selector: BTreeMap::new(),
        mode: None,
        ports: BTreeMap::new(),
        unreadable: false,
    };
    match Fields::of(object.spec.as_ref().unwrap_or(&empty), "spec") {
        Err(error) => errors.push(error),
        Ok(spec) => read_spec(spec, &mut document, &mut errors),
    }
    if errors.is_empty() { Ok(document) } else { Err(errors) }
}

fn read_spec(mut spec: Fields<'_>, document: &mut PeerAuthentication, errors: &mut Vec<DocumentError>) {
    if let Some(mut selector) = spec.child("selector") {
        document.selector = selector.text_map("matchLabels");
        selector.finish(errors);
    }
    if let Some(mtls) = spec.child("mtls") {
        document.mode = mode(mtls, errors);
    }
    if let Some(node) = spec.take("portLevelMtls") {
        match &node.value {
            Value::Map(entries) if !entries.is_empty() => {
                if document.selector.is_empty() {
                    let what = "ports are those of a workload: it needs `selector.matchLabels` beside it";
                    spec.error(&node.place, "portLevelMtls", what);
                }
                for (key, place, value) in entries {
                    let path = format!("{}.{key}", spec.path_of("portLevelMtls"));
                    if let Some((port, mode)) = port(key, place, value, &path, errors) {
                        document.ports.insert(port, mode);
                    }
                }
            }
            Value::Map(_) => spec.error(&node.place, "portLevelMtls", "must not be empty; leave it out"),
            _ => spec.error(
                &node.place,
                "portLevelMtls",
                "must be a map from port numbers to `{mode: ...}`",
            ),
        }
    }
    spec.finish(errors);
}

/// `None` if it says nothing, or nothing that could be read.
fn port(
    key: &str,
    place: &Place,
    value: &Node,
    path: &str,
    errors: &mut Vec<DocumentError>,
) -> Option<(u16, MtlsMode)> {
    let mut refuse = |what: String| {
        errors.push(DocumentError {
            place: place.clone(),
            path: path.to_owned(),
            what,
            nearest: None,
        });
    };
    // In one spelling: `080` beside `80` would be one port with two modes.
    let number = key
        .parse::<u16>()
        .ok()
        .filter(|port| *port > 0 && port.to_string() == key);
    if number.is_none() {
        refuse(format!("`{key}` is no port: 1 to 65535"));
    }
    if value.value == Value::Null {
        refuse("must be a map, not nothing".to_owned());
        return None;
    }
    match Fields::of(value, path) {
        Ok(fields) => number.zip(mode(fields, errors)),
        Err(error) => {
            errors.push(error);
            None
        }
    }
}

/// `{mode: ...}`; UNSET is what is left out.
fn mode(mut mtls: Fields<'_>, errors: &mut Vec<DocumentError>) -> Option<MtlsMode> {
    let mut read = None;
    if let Some(node) = mtls.take("mode") {
        match &node.value {
            Value::Text(text) => match text.as_str() {
                "STRICT" => read = Some(MtlsMode::Strict),
                "PERMISSIVE" => read = Some(MtlsMode::Permissive),
                "DISABLE" => read = Some(MtlsMode::Disable),
                "UNSET" => {}
                other => errors.push(DocumentError {
                    place: node.place.clone(),
                    path: mtls.path_of("mode"),
                    what: format!("`{other}` is not one of {}", MODES.join(", ")),
                    nearest: nearest(other, MODES).map(str::to_owned),
                }),
            },
            _ => mtls.error(&node.place, "mode", format!("must be one of {}", MODES.join(", "))),
        }
    }
    mtls.finish(errors);
    read
}
