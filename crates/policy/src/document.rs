//! Documents: YAML objects in the shape that Kubernetes users know, where every node knows its place.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Where something stands: `policies/cart.yaml:12:7`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Place {
    /// The file (or the Kubernetes object).
    pub file: Arc<str>,
    /// From 1; 0 if unknown.
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

/// Reads all documents of a YAML text. Syntax errors, duplicate keys, anchors beyond a bound, unknown top-level fields: refused, all errors of the file at once where possible.
pub fn parse(file: &str, text: &str) -> Result<Vec<Object>, Vec<DocumentError>> {
    let _ = (file, text);
    todo!()
}

/// Decodes a map's fields one by one and refuses what is left over, with the nearest valid name.
#[derive(Debug)]
pub struct Fields<'a> {
    /// The map's place and path, for messages.
    pub place: &'a Place,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.path, self.what)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; did you mean `{nearest}`?")?;
        }
        Ok(())
    }
}

impl std::error::Error for DocumentError {}
