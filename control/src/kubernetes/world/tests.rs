#![allow(clippy::unwrap_used)]

use std::time::Instant;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::DynamicObject;
use postern_identity::TrustDomain;
use postern_policy::Aliases;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::tests::played;
use super::*;
use crate::mesh::Mesh;
use crate::model::Model;
use crate::state::State;

fn item(kind: Kind, object: &Value) -> Option<Item> {
    let domain = TrustDomain::parse("cluster.local").unwrap();
    let object = object.clone();
    match kind {
        Kind::Pods => PodItem::keep(serde_json::from_value::<Pod>(object).unwrap(), &domain).map(Item::Pod),
        Kind::Namespaces => Some(Item::Namespace(NamespaceItem::keep(
            serde_json::from_value::<Namespace>(object).unwrap(),
        ))),
        Kind::Services => ServiceItem::keep(serde_json::from_value::<Service>(object).unwrap()).map(Item::Service),
        Kind::Slices => SliceItem::keep(serde_json::from_value::<EndpointSlice>(object).unwrap()).map(Item::Slice),
        Kind::Policies | Kind::IstioPolicies => {
            let version = if kind == Kind::Policies {
                "postern.dev/v1alpha1"
            } else {
                "security.istio.io/v1"
            };
            let object: DynamicObject = serde_json::from_value(object).unwrap();
            PolicyItem::keep(object, version).map(|policy| Item::Policy(Box::new(policy)))
        }
        Kind::Authorizers => {
            let object: DynamicObject = serde_json::from_value(object).unwrap();
            AuthorizerItem::keep(&object).map(Item::Authorizer)
        }
        Kind::Authentications | Kind::IstioAuthentications => {
            let version = if kind == Kind::Authentications {
                "postern.dev/v1alpha1"
            } else {
                "security.istio.io/v1"
            };
            let object: DynamicObject = serde_json::from_value(object).unwrap();
            AuthenticationItem::keep(&object, version).map(Item::Authentication)
        }
        Kind::PeerAuthentications | Kind::IstioPeerAuthentications => {
            let version = if kind == Kind::PeerAuthentications {
                "postern.dev/v1alpha1"
            } else {
                "security.istio.io/v1"
            };
            let object: DynamicObject = serde_json::from_value(object).unwrap();
            PeerAuthenticationItem::keep(&object, version).map(Item::PeerAuthentication)
        }
    }
}

/// A few objects of each kind in a few states: so that events meet.
fn object(kind: Kind, which: u8, state: u8) -> (Name, Option<Value>) {
    let namespace = ["shop", "bank"][usize::from(which % 2)];
    let name = format!("x{}-1", which % 4);
    let value = match kind {
        Kind::Pods => {
            let mut pod = played::pod(
                namespace,
                &name,
                &format!("10.0.0.{}", state % 3),
                state.is_multiple_of(2),
            );
            if state == 5 {
                pod["status"]["phase"] = json!("Failed");
            }
            if state == 6 {
                pod["metadata"]["uid"] = json!("another");
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            pod
        }
        Kind::Namespaces => {
            let labels = [
                json!({}),
                json!({ "postern.dev/inject": "enabled" }),
                json!({ "postern.dev/inject": "enabled", "postern.dev/mode": "monitor" }),
                json!({ "postern.dev/mod": "x", "postern.dev/mode": "x" }),
            ];
            let object = played::namespace(namespace, labels[usize::from(state % 4)].clone());
            let key = (String::new(), namespace.to_owned());
            return (key, (state != 7).then_some(object));
        }
        Kind::Services => played::service(namespace, "x", &format!("10.96.0.{}", state % 2)),
        Kind::Slices => {
            let pods: Vec<Value> = (0..state % 4)
                .map(|i| played::pod(namespace, &format!("x{i}-1"), &format!("10.0.0.{}", i % 3), true))
                .collect();
            played::slice(namespace, "x", &pods.iter().collect::<Vec<_>>())
        }
        Kind::Policies | Kind::IstioPolicies => {
            let specs = [
                json!({ "action": "DENY", "rules": [{}] }),
                json!({ "rules": [{}] }),
                json!({ "ruels": [] }),
                json!({ "selector": { "matchLabels": { "app": "x1" } } }),
            ];
            played::policy(namespace, "p", specs[usize::from(state % 4)].clone())
        }
        Kind::Authorizers => {
            let specs = [
                json!({ "extAuthz": { "address": "127.0.0.1:9191" } }),
                json!({ "extAuthz": { "address": "opa.policy:9191" } }),
                json!({ "extAuthz": { "address": "10.0.0.1:9191" } }),
            ];
            json!({
                "apiVersion": "postern.dev/v1alpha1", "kind": "Authorizer",
                "metadata": { "name": "opa", "namespace": namespace }, "spec": specs[usize::from(state % 3)],
            })
        }
        Kind::Authentications | Kind::IstioAuthentications => {
            let rule = json!({ "issuer": "https://sso.test", "audiences": ["cart"] });
            let specs = [
                json!({ "jwtRules": [rule] }),
                json!({}),
                json!({ "jwtRules": [{ "issuer": "" }] }),
                json!({ "selector": { "matchLabels": { "app": "x1" } }, "jwtRules": [rule] }),
            ];
            played::authentication(namespace, "a", specs[usize::from(state % 4)].clone())
        }
        Kind::PeerAuthentications | Kind::IstioPeerAuthentications => {
            let specs = [
                json!({ "mtls": { "mode": "STRICT" } }),
                json!({}),
                json!({ "mtls": { "mode": "STRIKT" } }),
                json!({ "selector": { "matchLabels": { "app": "x1" } }, "portLevelMtls": { "80": { "mode": "DISABLE" } } }),
            ];
            played::peer_authentication(namespace, "d", specs[usize::from(state % 4)].clone())
        }
    };
    let text = |field: &str| value["metadata"][field].as_str().unwrap().to_owned();
    let key = (text("namespace"), text("name"));
    (key, (state != 7).then_some(value))
}

fn synced() -> World {
    let mut world = World::default();
    for kind in Kind::ALL {
        let items = Vec::new();
        world.apply(Change::Listed {
            kind,
            items,
            revision: 1,
        });
    }
    world
}

proptest! {
    /// What is in force follows from the objects, whatever was heard of them on the way and in which order of kinds.
    #[test]
    fn a_world_of_watch_events_is_the_world_of_a_fresh_list(
        events in proptest::collection::vec((0..9usize, any::<u8>(), 0..8u8), 0..80),
        lists in proptest::collection::vec(0..80usize, 0..4),
        order in Just([0, 1, 2, 3, 4, 5, 6, 7, 8usize]).prop_shuffle(),
    ) {
        // What the API server has at each moment.
        let mut objects: BTreeMap<(Kind, Name), Value> = BTreeMap::new();
        let mut changes: BTreeMap<Kind, Vec<Change>> = BTreeMap::new();
        for (i, (kind, which, state)) in events.iter().enumerate() {
            let kind = Kind::ALL[*kind];
            let (name, object) = object(kind, *which, *state);
            let kept = object.as_ref().and_then(|object| item(kind, object));
            match object {
                Some(object) => objects.insert((kind, name.clone()), object),
                None => objects.remove(&(kind, name.clone())),
            };
            let revision = i as u64 + 2;
            let of_kind = changes.entry(kind).or_default();
            of_kind.push(Change::Set { kind, name, item: kept, revision });
            // The watch expired here, and a list took its place.
            if lists.contains(&i) {
                of_kind.push(listed(&objects, kind, revision));
            }
        }
        // Kinds are heard in any order; each in its own.
        let mut watched = synced();
        for kind in order {
            for change in changes.remove(&Kind::ALL[kind]).unwrap_or_default() {
                watched.apply(change);
            }
        }
        let mut fresh = World::default();
        for kind in Kind::ALL {
            fresh.apply(listed(&objects, kind, 1));
        }
        let (watched, fresh) = (watched.load(), fresh.load());
        prop_assert_eq!(&watched.documents, &fresh.documents);
        prop_assert_eq!(&watched.bad, &fresh.bad);
        prop_assert_eq!(Model::build("postern-system", &Aliases::default(), &watched), Model::build("postern-system", &Aliases::default(), &fresh));
    }
}

fn listed(objects: &BTreeMap<(Kind, Name), Value>, kind: Kind, revision: u64) -> Change {
    let of_kind = objects.iter().filter(|((of, _), _)| *of == kind);
    let items = of_kind.filter_map(|((_, name), object)| Some((name.clone(), item(kind, object)?)));
    Change::Listed {
        kind,
        items: items.collect(),
        revision,
    }
}

#[test]
fn resource_versions_that_are_no_numbers_are_told() {
    let mut world = synced();
    assert!(world.load().conditions.is_empty());
    for kind in Kind::ALL {
        let items = Vec::new();
        world.apply(Change::Listed {
            kind,
            items,
            revision: 0,
        });
    }
    assert!(world.load().conditions[0].contains("no numbers"));
}

/// 2,000 pods in 20 namespaces, 200 Services of 10 pods, 200 policies.
/// `cargo test --release -p postern-control --lib measure -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, for people"]
fn measure_a_change_among_2000_pods() {
    let mut world = synced();
    let mut set = |kind, object: &Value, revision| {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (name, item) = ((text("namespace"), text("name")), item(kind, object));
        world.apply(Change::Set {
            kind,
            name,
            item,
            revision,
        });
    };
    for n in 0..20 {
        let namespace = format!("n{n}");
        set(
            Kind::Namespaces,
            &played::namespace(&namespace, json!({ "postern.dev/inject": "enabled" })),
            2,
        );
        for s in 0..10 {
            let pod = |p: u32| played::pod(&namespace, &format!("s{s}-{p}"), &format!("10.{n}.{s}.{p}"), true);
            let pods: Vec<Value> = (0..10).map(pod).collect();
            for pod in &pods {
                set(Kind::Pods, pod, 2);
            }
            set(
                Kind::Services,
                &played::service(&namespace, &format!("s{s}"), &format!("10.96.{n}.{s}")),
                2,
            );
            set(
                Kind::Slices,
                &played::slice(&namespace, &format!("s{s}"), &pods.iter().collect::<Vec<_>>()),
                2,
            );
            let spec = json!({ "selector": { "matchLabels": { "app": format!("s{s}") } }, "rules": [{
                "from": [{ "source": { "principals": ["cluster.local/ns/n1/sa/s1"] } }],
                "to": [{ "operation": { "methods": ["GET"], "paths": ["/a/*"] } }] }] });
            set(Kind::Policies, &played::policy(&namespace, &format!("p{s}"), spec), 2);
        }
    }
    let rounds = 50;
    let (mut loading, mut building) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let began = Instant::now();
        let load = world.load();
        loading.push(began.elapsed());
        let began = Instant::now();
        let model = Model::build("postern-system", &Aliases::default(), &load);
        building.push(began.elapsed());
        assert_eq!(model.workloads.len(), 2000);
    }
    // What every proxy's stream does about a policy that concerns all: 2,000 that each follow 5 Services.
    let mesh = Mesh::named(TrustDomain::parse("cluster.local").unwrap());
    let mut state = State::after(&State::default(), world.load(), &mesh, std::time::SystemTime::now());
    let ask = |state: &State| {
        for workload in state.model.workloads.values() {
            std::hint::black_box(crate::snapshot::workload(
                &state.model,
                workload,
                postern_policy::FeatureSet::all(),
                0,
            ));
            let all = postern_policy::FeatureSet::all();
            std::hint::black_box(crate::snapshot::policies(&state.model, workload, all, 0));
            for s in 0..5 {
                let target = crate::snapshot::Target::Address([10, 96, 1, s].into(), 80);
                std::hint::black_box(state.answer(&target, "n1"));
            }
        }
    };
    ask(&state);
    state = State::after(&state, world.load(), &mesh, std::time::SystemTime::now());
    let began = Instant::now();
    ask(&state);
    let streams = began.elapsed();
    loading.sort();
    building.sort();
    println!(
        "load {:?} (max {:?}), model {:?} (max {:?}), 2,000 streams {streams:?}",
        loading[25], loading[49], building[25], building[49]
    );
}
