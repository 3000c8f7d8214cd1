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
        // Ours is the kind's plain name; Istio's may have one of the same name beside it.
        let kind = match api_version.split_once('/') {
            Some(("postern.dev", _)) | None => "AuthorizationPolicy".to_owned(),
            Some((group, _)) => format!("AuthorizationPolicy.{group}"),
        };
        let generation = object.metadata.generation.unwrap_or(0);
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let status = object.data.get("status").cloned().unwrap_or_default();
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let name = object.metadata.name.clone().unwrap_or_default();
        let mut document = json!({
            "apiVersion": api_version,
            "kind": "AuthorizationPolicy",
            "metadata": { "name": name, "namespace": namespace },
        });
        if let (Some(spec), Value::Object(document)) = (object.data.get("spec"), &mut document) {
            document.insert("spec".to_owned(), spec.clone());
        }
        let origin = format!("{kind}/{namespace}/{name}");
        let (in_force, errors) = match read(&origin, &document) {
            Ok(read) => match AuthorizationPolicy::from_object(&read) {
                Ok(policy) => (policy, Vec::new()),
                Err(errors) => (deny_what_it_selects(&read)?, errors),
            },
            Err(errors) => {
                document.as_object_mut()?.remove("spec");
                (deny_what_it_selects(&read(&origin, &document).ok()?)?, errors)
            }
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

/// An Authorizer. One that cannot be read is as good as none: policies that name it deny what they match.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AuthorizerItem {
    pub(super) in_force: Option<Arc<Authorizer>>,
    /// `Authorizer/namespace/name`.
    pub(super) place: String,
    pub(super) errors: Vec<String>,
}

impl AuthorizerItem {
    pub(super) fn keep(object: DynamicObject) -> Self {
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let name = object.metadata.name.clone().unwrap_or_default();
        let place = format!("Authorizer/{namespace}/{name}");
        let document = json!({
            "apiVersion": "postern.dev/v1alpha1",
            "kind": "Authorizer",
            "metadata": { "name": name, "namespace": namespace },
            "spec": object.data.get("spec").cloned().unwrap_or_default(),
        });
        let read = read(&place, &document).and_then(|object| postern_authorizer::document::read(&object));
        let (in_force, errors) = match read {
            Ok(authorizer) => (Some(Arc::new(authorizer)), Vec::new()),
            Err(errors) => (None, told(&errors)),
        };
        Self {
            in_force,
            place,
            errors,
        }
    }
}

fn told(errors: &[DocumentError]) -> Vec<String> {
    let more = errors.len().saturating_sub(MAX_ERRORS);
    let mut told: Vec<String> = errors.iter().take(MAX_ERRORS).map(ToString::to_string).collect();
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    told
}

fn read(origin: &str, document: &Value) -> Result<Object, Vec<DocumentError>> {
    Object::from_json(document, origin)
}
