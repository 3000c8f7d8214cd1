//! PeerAuthentications that cannot be decoded, or stand beside something that cannot.

use std::sync::Arc;

use postern_policy::PeerAuthentication;
use postern_policy::document::Object;

use super::DEFAULT_NAMESPACE;

/// `None` if the object is no PeerAuthentication. Nobody knows what it would take: what it selects takes mutual TLS alone.
pub(crate) fn strict_for_what_it_selects(object: &Object) -> Option<Arc<PeerAuthentication>> {
    let namespace = object.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    (object.kind == "PeerAuthentication").then(|| Arc::new(PeerAuthentication::strict_for(object, namespace)))
}
