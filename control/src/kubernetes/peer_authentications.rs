//! PeerAuthentications, ours and Istio's.
//!
//! As with policies what is in force follows from the objects alone: one that cannot be decoded has what it selects take mutual
//! TLS alone, also if an earlier generation of it was good.

use std::sync::Arc;

use kube::core::DynamicObject;
use postern_policy::PeerAuthentication;

use super::policies::{read, told};
use crate::documents::strict_for_what_it_selects;

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PeerAuthenticationItem {
    pub(super) in_force: Arc<PeerAuthentication>,
    /// Why it is only strict.
    pub(super) errors: Vec<String>,
}

impl PeerAuthenticationItem {
    pub(super) fn keep(object: &DynamicObject, api_version: &str) -> Option<Self> {
        let (object, mut errors) = read(object, api_version, "PeerAuthentication")?;
        match PeerAuthentication::from_object(&object) {
            Ok(document) if errors.is_empty() => {
                return Some(Self {
                    in_force: Arc::new(document),
                    errors: Vec::new(),
                });
            }
            Ok(_) => {}
            Err(more) => errors.extend(more),
        }
        Some(Self {
            in_force: strict_for_what_it_selects(&object)?,
            errors: told(&errors),
        })
    }
}
