//! AuthorizationPolicies, ours and Istio's; and whom CUSTOM ones ask.
//!
//! One that cannot be decoded denies what it selects, also if an earlier generation of it was good. A directory keeps the last
//! good state of a file; here that would be a memory that a new replica does not have: two replicas would tell proxies
//! different things, and a restart would change what is in force. So what is in force follows from the objects alone. (Our
//! webhook refuses such an object before it is stored; what comes past it is an accident, or an attempt.)

use std::sync::Arc;

use kube::core::DynamicObject;
use postern_policy::document::{DocumentError, Object};
use postern_policy::{AuthorizationPolicy, Authorizer};
use serde_json::{Value, json};

use crate::documents::deny_what_it_selects;

/// Errors kept per object: the first ones tell what is wrong.
const MAX_ERRORS: usize = 20;

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PolicyItem {
    pub(super) in_force: AuthorizationPolicy,
    /// Why it only denies.
    pub(super) errors: Vec<String>,
    pub(super) generation: i64,
    pub(super) uid: String,
    /// What somebody wrote about it: we, or one before us.
    pub(super) status: Value,
}

impl PolicyItem {
    pub(super) fn keep(object: DynamicObject, api_version: &str) -> Option<Self> {
        let generation = object.metadata.generation.unwrap_or(0);
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let status = object.data.get("status").cloned().unwrap_or_default();
        let (object, errors) = read(&object, api_version, "AuthorizationPolicy")?;
        let (in_force, errors) = match AuthorizationPolicy::from_object(&object) {
            Ok(policy) if errors.is_empty() => (policy, errors),
            Ok(_) => (deny_what_it_selects(&object)?, errors),
            Err(more) => (deny_what_it_selects(&object)?, [errors, more].concat()),
        };
        Some(Self {
            in_force,
            errors: told(&errors),
            generation,
            uid,
            status,
        })
    }

    /// Does it do the same?
    pub(super) fn does_as(&self, other: &Self) -> bool {
        self.in_force == other.in_force && self.errors == other.errors
    }
}

/// What can be read of an object, and why that is not all: then it is left without its spec.
pub(super) fn read(object: &DynamicObject, api_version: &str, kind: &str) -> Option<(Object, Vec<DocumentError>)> {
    // Ours is the kind's plain name; Istio's may have one of the same name beside it.
    let shown = match api_version.split_once('/') {
        Some(("postern.dev", _)) | None => kind.to_owned(),
        Some((group, _)) => format!("{kind}.{group}"),
    };
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let origin = format!("{shown}/{namespace}/{name}");
    let mut document = json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": { "name": name, "namespace": namespace },
    });
    if let (Some(spec), Value::Object(document)) = (object.data.get("spec"), &mut document) {
        document.insert("spec".to_owned(), spec.clone());
    }
    match Object::from_json(&document, &origin) {
        Ok(read) => Some((read, Vec::new())),
        Err(errors) => {
            document.as_object_mut()?.remove("spec");
            Some((Object::from_json(&document, &origin).ok()?, errors))
        }
    }
}

/// The first of them.
pub(super) fn told(errors: &[DocumentError]) -> Vec<String> {
    let more = errors.len().saturating_sub(MAX_ERRORS);
    let mut told: Vec<String> = errors.iter().take(MAX_ERRORS).map(ToString::to_string).collect();
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    told
}

/// An Authorizer. One that cannot be read is as good as none: policies that name it deny what they match.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AuthorizerItem {
    pub(super) in_force: Option<Arc<Authorizer>>,
    /// `Authorizer/namespace/name`.
    pub(super) place: String,
    pub(super) errors: Vec<String>,
}

impl AuthorizerItem {
    pub(super) fn keep(object: &DynamicObject) -> Option<Self> {
        let (object, mut errors) = read(object, "postern.dev/v1alpha1", "Authorizer")?;
        let mut in_force = None;
        if errors.is_empty() {
            match postern_authorizer::document::read(&object) {
                Ok(authorizer) => in_force = Some(Arc::new(authorizer)),
                Err(found) => errors = found,
            }
        }
        Some(Self {
            in_force,
            place: object.place.file.to_string(),
            errors: told(&errors),
        })
    }
}
