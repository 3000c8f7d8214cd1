//! A pod's containers with their places.

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::Value;

/// Sets the rules, and ends.
pub(crate) const INIT: &str = "postern-init";
/// The proxy, a native sidecar.
pub(crate) const PROXY: &str = "postern-proxy";

/// A container and where it stands.
#[derive(Clone, Copy)]
pub(crate) struct Placed<'a> {
    /// `containers` or `initContainers`.
    pub(crate) list: &'static str,
    pub(crate) index: usize,
    /// Typed.
    pub(crate) container: &'a Container,
    /// As it came, with fields that this version does not know.
    pub(crate) raw: &'a Value,
}

/// All but ours, init containers first.
pub(crate) fn of_the_app<'a>(pod: &'a Pod, raw: &'a Value) -> impl Iterator<Item = Placed<'a>> {
    all(pod, raw).filter(|placed| placed.list == "containers" || !is_ours(&placed.container.name))
}

/// Ours of this name among the init containers.
pub(crate) fn ours<'a>(pod: &'a Pod, raw: &'a Value, name: &str) -> Option<Placed<'a>> {
    all(pod, raw).find(|placed| placed.list == "initContainers" && placed.container.name == name)
}

pub(crate) fn is_ours(name: &str) -> bool {
    name == INIT || name == PROXY
}

fn all<'a>(pod: &'a Pod, raw: &'a Value) -> impl Iterator<Item = Placed<'a>> {
    let spec = pod.spec.as_ref();
    let init = spec
        .and_then(|spec| spec.init_containers.as_deref())
        .unwrap_or_default();
    let app = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let placed = move |list: &'static str, containers: &'a [Container]| {
        containers.iter().enumerate().map(move |(index, container)| Placed {
            list,
            index,
            container,
            raw: &raw["spec"][list][index],
        })
    };
    placed("initContainers", init).chain(placed("containers", app))
}
