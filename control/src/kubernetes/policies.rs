//! AuthorizationPolicies, ours and Istio's.
//!
//! One that cannot be decoded denies what it selects, also if an earlier generation of it was good. A directory keeps the last
//! good state of a file; here that would be a memory that a new replica does not have: two replicas would tell proxies
//! different things, and a restart would change what is in force. So what is in force follows from the objects alone. (Our
//! webhook refuses such an object before it is stored; what comes past it is an accident, or an attempt.)

use kube::core::DynamicObject;
use postern_policy::AuthorizationPolicy;
use postern_policy::document::{DocumentError, Object};
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
}

impl PolicyItem {
    pub(super) fn keep(object: DynamicObject, api_version: &str) -> Option<Self> {
        let generation = object.metadata.generation.unwrap_or(0);
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
        let (in_force, errors) = match read(&namespace, &name, &document) {
            Ok(read) => match AuthorizationPolicy::from_object(&read) {
                Ok(policy) => (policy, Vec::new()),
                Err(errors) => (deny_what_it_selects(&read)?, errors),
            },
            Err(errors) => {
                document.as_object_mut()?.remove("spec");
                (deny_what_it_selects(&read(&namespace, &name, &document).ok()?)?, errors)
            }
        };
        let more = errors.len().saturating_sub(MAX_ERRORS);
        let mut errors: Vec<String> = errors.iter().take(MAX_ERRORS).map(ToString::to_string).collect();
        if more > 0 {
            errors.push(format!("and {more} more"));
        }
        Some(Self {
            in_force,
            errors,
            generation,
        })
    }
}

fn read(namespace: &str, name: &str, document: &Value) -> Result<Object, Vec<DocumentError>> {
    Object::from_json(document, &format!("AuthorizationPolicy/{namespace}/{name}"))
}
