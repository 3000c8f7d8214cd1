//! Documents: YAML objects in the shape that Kubernetes users know, where every node knows its place.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::turns;

mod fields;
mod json;
mod yaml;

pub use fields::{Fields, nearest};

/// Where something stands: `policies/cart.yaml:12:7`, or `AuthorizationPolicy/shop/cart:spec.rules[0]` in a Kubernetes object,
/// which has no lines.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Place {
    /// The file, or the Kubernetes object and the path inside it.
    pub file: Arc<str>,
    /// From 1; 0 in an object, or if unknown.
    pub line: u32,
    /// From 1; 0 if unknown.
    pub column: u32,
}

/// A document, or a part of it, that is refused: what, where, and the nearest valid name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentError {
    /// Where.
    pub place: Place,
    /// Path inside the object, such as `spec.rules[0].from[0].source.principal`.
    pub path: String,
    /// What is wrong, such as ``unknown field `principal` ``.
    pub what: String,
    /// The nearest valid name.
    pub nearest: Option<String>,
}

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub value: Value,
}

/// YAML's core schema, as far as Kubernetes uses it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Absent or `null`.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping in order; duplicate keys were refused.
    Map(Vec<(String, Place, Node)>),
}

/// One document: the parts that all kinds share, and its `spec`.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Where the document begins.
    pub place: Place,
    /// `apiVersion`.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`, if given.
    pub namespace: Option<String>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `spec`, if given.
    pub spec: Option<Node>,
}

/// Reads all documents of a YAML text. Syntax errors, duplicate keys, aliases, unknown top-level fields: refused, all
/// errors of the file at once where possible. Empty documents are skipped.
pub fn parse(file: &str, text: &str) -> Result<Vec<Object>, Vec<DocumentError>> {
    parse_those(file, text, |_, _| true)
}

/// The same of those objects alone whose `apiVersion` and `kind` are `wanted`; one without them is.
pub fn parse_those(
    file: &str,
    text: &str,
    wanted: impl Fn(&str, &str) -> bool,
) -> Result<Vec<Object>, Vec<DocumentError>> {
    let nodes = yaml::parse(file, text).map_err(|error| vec![error])?;
    let (mut objects, mut errors) = (Vec::new(), Vec::new());
    let is_wanted = |node: &Node| match (node.text_of("apiVersion"), node.text_of("kind")) {
        (Some(api_version), Some(kind)) => wanted(api_version, kind),
        (_, _) => node.value != Value::Null,
    };
    for node in nodes.into_iter().filter(is_wanted) {
        match Object::read(node) {
            Ok(object) => objects.push(object),
            Err(found) => errors.extend(found),
        }
    }
    if errors.is_empty() { Ok(objects) } else { Err(errors) }
}

impl Node {
    fn text_of(&self, name: &str) -> Option<&str> {
        let Value::Map(entries) = &self.value else { return None };
        let (_, _, node) = entries.iter().find(|(key, _, _)| key == name)?;
        match &node.value {
            Value::Text(text) => Some(text),
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// What the map has under that name, where it then is null.
    fn take(&mut self, name: &str) -> Option<Self> {
        let Value::Map(entries) = &mut self.value else {
            return None;
        };
        let (_, _, node) = entries.iter_mut().find(|(key, _, _)| key == name)?;
        Some(Self {
            place: node.place.clone(),
            value: std::mem::replace(&mut node.value, Value::Null),
        })
    }
}

/// Freeing what was read of thousands of rules gives way, wherever that is.
impl Drop for Node {
    fn drop(&mut self) {
        turns::next();
    }
}

/// What Kubernetes itself writes into `metadata`; read by nobody here.
const IGNORED_METADATA: [&str; 10] = [
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "resourceVersion",
    "generation",
    "generateName",
    "managedFields",
    "finalizers",
    "ownerReferences",
];

impl Object {
    /// Reads an object as an API server hands it over. `origin` names it in places, such as `AuthorizationPolicy/shop/cart`;
    /// what follows there is the JSON path.
    pub fn from_json(json: &serde_json::Value, origin: &str) -> Result<Self, Vec<DocumentError>> {
        let node = json::node(json, origin).map_err(|error| vec![error])?;
        Self::read(node)
    }

    fn read(mut node: Node) -> Result<Self, Vec<DocumentError>> {
        let mut errors = Vec::new();
        // Of thousands of rules; a copy would take milliseconds.
        let spec = node.take("spec").filter(|spec| spec.value != Value::Null);
        let mut top = Fields::of(&node, "").map_err(|error| vec![error])?;
        let api_version = top.required_text("apiVersion");
        let kind = top.required_text("kind");
        let mut object = Self {
            place: node.place.clone(),
            api_version: api_version.unwrap_or_default(),
            kind: kind.unwrap_or_default(),
            name: String::new(),
            namespace: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            spec,
        };
        top.take("spec");
        match top.child("metadata") {
            None => top.missing("metadata"),
            Some(mut metadata) => {
                object.name = metadata.required_text("name").unwrap_or_default();
                object.namespace = metadata.text("namespace");
                object.labels = metadata.text_map("labels");
                object.annotations = metadata.text_map("annotations");
                for ignored in IGNORED_METADATA {
                    metadata.take(ignored);
                }
                metadata.finish(&mut errors);
            }
        }
        // Written by controllers; a copied object may carry it.
        top.take("status");
        top.finish(&mut errors);
        if errors.is_empty() { Ok(object) } else { Err(errors) }
    }

    /// An error at the object's head.
    #[must_use]
    pub fn error(&self, path: &str, what: impl Into<String>) -> DocumentError {
        DocumentError {
            place: self.place.clone(),
            path: path.to_owned(),
            what: what.into(),
            nearest: None,
        }
    }
}

impl Place {
    /// `file:line`, as decisions name it.
    #[must_use]
    pub fn line_of(&self) -> String {
        match self.line {
            0 => self.file.to_string(),
            line => format!("{}:{line}", self.file),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}:{}", self.file, self.column),
        }
    }
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An object's place is a path: that of the field, or of the map that the field is in or missing from.
        match (self.place.line, self.place.file.split_once(':')) {
            (0, Some((object, map))) if self.path.starts_with(map) => write!(f, "{object}:{}: ", self.path)?,
            (0, None) if !self.path.is_empty() => write!(f, "{}:{}: ", self.place, self.path)?,
            (0, _) => write!(f, "{}: ", self.place)?,
            _ if self.path.is_empty() => write!(f, "{}: ", self.place)?,
            _ => write!(f, "{}: {}: ", self.place, self.path)?,
        }
        f.write_str(&self.what)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; did you mean `{nearest}`?")?;
        }
        Ok(())
    }
}

impl std::error::Error for DocumentError {}
