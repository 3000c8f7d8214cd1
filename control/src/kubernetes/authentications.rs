//! RequestAuthentications, ours and Istio's.
//!
//! As with policies what is in force follows from the objects alone: one that cannot be decoded believes no token, also if an
//! earlier generation of it was good.

use std::sync::Arc;

use kube::core::DynamicObject;
use postern_policy::RequestAuthentication;

use super::policies::{read, told};
use crate::documents::refuse_tokens_of_what_it_selects;

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AuthenticationItem {
    pub(super) in_force: Arc<RequestAuthentication>,
    /// Why it only refuses.
    pub(super) errors: Vec<String>,
}

impl AuthenticationItem {
    pub(super) fn keep(object: &DynamicObject, api_version: &str) -> Option<Self> {
        let (object, mut errors) = read(object, api_version, "RequestAuthentication")?;
        match RequestAuthentication::from_object(&object) {
            Ok(document) => {
                errors.extend(postern_token::key_set::errors_in_cluster(&document));
                if errors.is_empty() {
                    return Some(Self {
                        in_force: Arc::new(document),
                        errors: Vec::new(),
                    });
                }
            }
            Err(more) => errors.extend(more),
        }
        Some(Self {
            in_force: Arc::new(refuse_tokens_of_what_it_selects(&object)?),
            errors: told(&errors),
        })
    }
}
