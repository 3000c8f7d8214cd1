//! What the API server's aggregator and `kubectl` read before they ask for anything.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    APIGroup, APIGroupList, APIResource, APIResourceList, GroupVersionForDiscovery,
};
use serde_json::{Value, json};

use super::objects::{API_VERSION, GROUP, Resource, VERSION};

pub(super) fn groups() -> APIGroupList {
    APIGroupList { groups: vec![group()] }
}

pub(super) fn group() -> APIGroup {
    let version = GroupVersionForDiscovery {
        group_version: API_VERSION.to_owned(),
        version: VERSION.to_owned(),
    };
    APIGroup {
        name: GROUP.to_owned(),
        preferred_version: Some(version.clone()),
        server_address_by_client_cidrs: None,
        versions: vec![version],
    }
}

pub(super) fn resources() -> APIResourceList {
    let resources = Resource::ALL.into_iter().map(|resource| APIResource {
        name: resource.plural().to_owned(),
        singular_name: resource.singular().to_owned(),
        namespaced: resource.namespaced(),
        kind: resource.kind().to_owned(),
        verbs: resource.verbs().iter().map(|verb| (*verb).to_owned()).collect(),
        // `kubectl get postern-view` lists all that are of it.
        categories: resource
            .verbs()
            .contains(&"list")
            .then(|| vec!["postern-view".to_owned()]),
        ..APIResource::default()
    });
    APIResourceList {
        group_version: API_VERSION.to_owned(),
        resources: resources.collect(),
    }
}

/// Enough for the aggregator to be content. Nothing here is kept, so nothing needs a schema; `kubectl create` looks nothing
/// over that has none, and we do.
pub(super) fn openapi2() -> Value {
    json!({ "swagger": "2.0", "info": { "title": "Postern", "version": VERSION }, "paths": {}, "definitions": {} })
}

pub(super) fn openapi3() -> Value {
    json!({ "paths": {} })
}
