//! What objects of a cluster are to the mesh.

use postern_policy::authentication::Content;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_pod_is_a_workload_known_by_its_uid() {
    let replica = Replica::at(&ApiServer::of(&shop()));
    let state = replica.ready().await;
    let cart = state.model.by_instance("shop", "uid-of-cart-1").unwrap();
    assert_eq!(cart.document.name, "cart-1");
    assert_eq!(cart.mode, Mode::Protect);
    let Standing::Meshed(id) = &cart.standing else { panic!() };
    assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/cart");
    let ports: Vec<(&str, u16)> = cart.ports.iter().map(|port| (&*port.name, port.number)).collect();
    assert_eq!(ports, [("web", 8080)]);
    assert!(
        state.model.by_instance("shop", "cart-1").is_none(),
        "its name is not what its SVID says"
    );
    assert!(state.model.by_instance("outside", "uid-of-cart-1").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_service_is_the_pods_of_its_slices_with_the_identity_and_instance_of_each() {
    let replica = Replica::at(&ApiServer::of(&shop()));
    let state = replica.ready().await;
    let Answer::Meshed(meshed) = state.model.resolve_address("10.96.0.1".parse().unwrap(), 80) else {
        panic!()
    };
    assert_eq!(
        (&*meshed.service, &*meshed.namespace, meshed.port),
        ("cart", "shop", 80)
    );
    let endpoints: Vec<_> = meshed
        .endpoints
        .iter()
        .map(|e| (e.port, &*e.instance, &*e.spiffe_ids[0]))
        .collect();
    let id = "spiffe://cluster.local/ns/shop/sa/cart";
    assert_eq!(endpoints, [(8080, "uid-of-cart-1", id), (8080, "uid-of-cart-2", id)]);
    // By its pod's address it is the same, under the Service's name.
    assert_eq!(at(&state, "10.1.0.2", 8080), ["cart-2"]);
    assert_eq!(at(&state, "10.1.0.4", 8080), ["clear [10, 1, 0, 4]:8080"]);
    assert_eq!(at(&state, "10.9.9.9", 80), ["outside"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_ready_is_reached_and_what_ends_only_if_nothing_else_is_left() {
    let etcd = shop();
    let replica = Replica::at(&ApiServer::of(&etcd));
    replica.ready().await;
    let carts = [
        pod("shop", "cart-1", "10.1.0.1", true),
        pod("shop", "cart-2", "10.1.0.2", true),
    ];
    let with = |first: Value, second: Value| {
        let mut slice = slice("shop", "cart", &[&carts[0], &carts[1]]);
        slice["endpoints"][0]["conditions"] = first;
        slice["endpoints"][1]["conditions"] = second;
        slice
    };
    let ready = json!({ "ready": true });
    let ending = json!({ "ready": false, "serving": true, "terminating": true });
    let starting = json!({ "ready": false, "serving": false, "terminating": false });
    for (first, second, wanted) in [
        (&ready, &starting, vec!["cart-1"]),
        (&ending, &ready, vec!["cart-2"]),
        (&ending, &starting, vec!["cart-1"]),
        (&starting, &starting, vec![]),
        // Nothing said is ready.
        (&json!({}), &json!({}), vec!["cart-1", "cart-2"]),
    ] {
        etcd.put(SLICES, with(first.clone(), second.clone()));
        replica.until(|state| at(state, "10.96.0.1", 80) == wanted).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_without_a_selector_leads_where_its_slices_say_and_a_meshed_pod_there_is_meshed() {
    let etcd = shop();
    etcd.put(SERVICES, service("shop", "db", "10.96.0.2"));
    let mut by_hand = slice("shop", "db", &[]);
    by_hand["endpoints"] = json!([{ "addresses": ["192.0.2.7"] }]);
    etcd.put(SLICES, by_hand.clone());
    let replica = Replica::at(&ApiServer::of(&etcd));
    let state = replica.ready().await;
    assert_eq!(at(&state, "10.96.0.2", 80), ["clear [192, 0, 2, 7]:8080"]);
    // Whoever writes the slice: it is the pod that has the address.
    by_hand["endpoints"] = json!([{ "addresses": ["10.1.0.3"] }]);
    etcd.put(SLICES, by_hand.clone());
    replica.until(|state| at(state, "10.96.0.2", 80) == ["web-1"]).await;
    by_hand["endpoints"] = json!([{ "addresses": ["10.1.0.3"],
        "targetRef": { "kind": "Pod", "namespace": "shop", "name": "cart-1", "uid": "uid-of-cart-1" } }]);
    etcd.put(SLICES, by_hand.clone());
    replica.until(|state| at(state, "10.96.0.2", 80).is_empty()).await;
    // A pod that is not known yet: nobody knows who would answer.
    by_hand["endpoints"] = json!([{ "addresses": ["10.1.0.99"],
        "targetRef": { "kind": "Pod", "namespace": "shop", "name": "new", "uid": "u" } }]);
    etcd.put(SLICES, by_hand);
    replica.until(|state| at(state, "10.96.0.2", 80).is_empty()).await;
}

/// Called by its address it was answered with `outside`, and called in clear.
#[tokio::test(start_paused = true)]
async fn a_pod_that_a_slice_names_and_that_is_not_heard_of_yet_is_not_called_in_clear() {
    let etcd = shop();
    let new = pod("shop", "new-1", "10.1.0.99", true);
    etcd.put(SERVICES, service("shop", "new", "10.96.0.2"));
    etcd.put(SLICES, slice("shop", "new", &[&new]));
    let replica = Replica::at(&ApiServer::of(&etcd));
    let state = replica.ready().await;
    assert_eq!(at(&state, "10.1.0.99", 8080), ["unknown_pod"]);
    // A node's address is not closed by one pod on it.
    assert_eq!(at(&state, "10.1.0.99", 10_250), ["outside"]);
    // Another of its name is not it.
    let mut before = new.clone();
    before["metadata"]["uid"] = json!("another");
    before["status"] = json!({ "phase": "Pending" });
    etcd.put(PODS, before);
    let state = replica
        .until(|state| state.model.by_instance("shop", "another").is_some())
        .await;
    assert_eq!(at(&state, "10.1.0.99", 8080), ["unknown_pod"]);
    etcd.put(PODS, new);
    replica.until(|state| at(state, "10.1.0.99", 8080) == ["new-1"]).await;
}

/// Labels and annotations can be changed after the pod was made, and its capture cannot.
#[tokio::test(start_paused = true)]
async fn what_was_changed_after_injection_makes_nobody_call_a_captured_port_in_clear() {
    let etcd = shop();
    let labels = json!({ "postern.dev/inject": "enabled", "postern.dev/allow-loosening": "true" });
    etcd.put(NAMESPACES, namespace("shop", labels));
    let replica = Replica::at(&ApiServer::of(&etcd));
    replica.ready().await;
    let mut cart = pod("shop", "cart-1", "10.1.0.1", true);
    cart["metadata"]["labels"]["postern.dev/inject"] = json!("disabled");
    cart["metadata"]["annotations"] = json!({ "postern.dev/skip-inbound-ports": "8081" });
    etcd.put(PODS, cart);
    let state = replica
        .until(|state| find(state, "shop", "cart-1").document.pod.opted_out)
        .await;
    assert_eq!(at(&state, "10.1.0.1", 8080), ["cart-1"]);
    assert_eq!(at(&state, "10.1.0.1", 8081), ["cart-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_namespace_allows_loosening_by_label_or_annotation_as_the_injector_reads_it() {
    let etcd = shop();
    let replica = Replica::at(&ApiServer::of(&etcd));
    replica.ready().await;
    let mut out = pod("shop", "out-1", "10.1.0.6", false);
    out["metadata"]["labels"]["postern.dev/inject"] = json!("disabled");
    etcd.put(PODS, out);
    for (label, annotation, allowed) in [
        (Some("true"), None, true),
        (None, None, false),
        (None, Some("true"), true),
        (Some("false"), Some("false"), false),
        (Some("false"), Some("true"), false),
        (Some("yes"), Some("no"), false),
        (Some("true"), Some("false"), true),
    ] {
        let mut shop = namespace("shop", json!({ "postern.dev/inject": "enabled" }));
        if let Some(label) = label {
            shop["metadata"]["labels"]["postern.dev/allow-loosening"] = json!(label);
        }
        if let Some(annotation) = annotation {
            shop["metadata"]["annotations"] = json!({ "postern.dev/allow-loosening": annotation });
        }
        etcd.put(NAMESPACES, shop);
        let wanted = if allowed {
            "clear [10, 1, 0, 6]:80"
        } else {
            "no_identity"
        };
        replica.until(|state| at(state, "10.1.0.6", 80) == [wanted]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_sidecar_is_refused_in_an_injected_protected_namespace_and_reached_in_clear_elsewhere() {
    let etcd = shop();
    etcd.put(PODS, pod("shop", "bare-1", "10.1.0.5", false));
    let mut opted_out = pod("shop", "out-1", "10.1.0.6", false);
    opted_out["metadata"]["labels"]["postern.dev/inject"] = json!("disabled");
    etcd.put(PODS, opted_out);
    // A container of that name that is no native sidecar is not ours.
    let mut pretender = pod("shop", "fake-1", "10.1.0.7", true);
    pretender["spec"]["initContainers"][0]["restartPolicy"] = Value::Null;
    etcd.put(PODS, pretender);
    let replica = Replica::at(&ApiServer::of(&etcd));
    let state = replica.ready().await;
    for ip in ["10.1.0.5", "10.1.0.6", "10.1.0.7"] {
        assert_eq!(at(&state, ip, 80), ["no_identity"], "{ip}");
    }
    assert_eq!(at(&state, "10.1.0.4", 80), ["clear [10, 1, 0, 4]:80"]);
    // Who asked to be left out is, where the namespace allows that.
    let labels = json!({ "postern.dev/inject": "enabled", "postern.dev/allow-loosening": "true" });
    etcd.put(NAMESPACES, namespace("shop", labels));
    let state = replica
        .until(|state| at(state, "10.1.0.6", 80) == ["clear [10, 1, 0, 6]:80"])
        .await;
    assert_eq!(at(&state, "10.1.0.5", 80), ["no_identity"]);
    let labels = json!({ "postern.dev/inject": "enabled", "postern.dev/mode": "monitor" });
    etcd.put(NAMESPACES, namespace("shop", labels));
    replica
        .until(|state| at(state, "10.1.0.5", 80) == ["clear [10, 1, 0, 5]:80"])
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_ended_is_gone_and_an_address_is_its_newest_pods() {
    let etcd = shop();
    let mut done = pod("shop", "job-1", "10.1.0.8", true);
    done["status"]["phase"] = json!("Succeeded");
    etcd.put(PODS, done);
    let mut ending = pod("shop", "a-1", "10.1.0.9", true);
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
    etcd.put(PODS, ending);
    etcd.put(PODS, pod("shop", "b-1", "10.1.0.9", true));
    // Not yet running: it has no address, and its proxy calls already.
    let mut starting = pod("shop", "c-1", "", true);
    starting["status"] = json!({ "phase": "Pending" });
    etcd.put(PODS, starting);
    let replica = Replica::at(&ApiServer::of(&etcd));
    let state = replica.ready().await;
    assert_eq!(at(&state, "10.1.0.8", 80), ["outside"]);
    assert!(state.model.by_instance("shop", "uid-of-job-1").is_none());
    assert_eq!(at(&state, "10.1.0.9", 80), ["b-1"]);
    assert!(state.model.by_instance("shop", "uid-of-c-1").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_pod_on_its_nodes_network_is_never_who_answers_at_the_nodes_address() {
    let etcd = shop();
    let mut node = pod("kube-system", "agent-1", "10.2.0.1", false);
    node["spec"]["hostNetwork"] = json!(true);
    etcd.put(PODS, node.clone());
    etcd.put(SERVICES, service("kube-system", "agent", "10.96.0.3"));
    etcd.put(SLICES, slice("kube-system", "agent", &[&node]));
    let replica = Replica::at(&ApiServer::of(&etcd));
    let state = replica.ready().await;
    assert_eq!(at(&state, "10.2.0.1", 8080), ["outside"]);
    assert_eq!(at(&state, "10.96.0.3", 80), ["clear [10, 2, 0, 1]:8080"]);
}

#[tokio::test(start_paused = true)]
async fn opaque_ports_are_bytes_and_skipped_ones_go_past_the_proxy_only_where_loosening_is_allowed() {
    use crate::protocol::Protocol;
    let etcd = shop();
    let mut cart = pod("shop", "cart-1", "10.1.0.1", true);
    cart["metadata"]["annotations"] = json!({ "postern.dev/opaque-ports": "8080, 9000" });
    // As the injector writes it: 15020 is the proxy's own.
    let init =
        json!({ "name": "postern-init", "image": "p", "args": ["redirect", "--skip-inbound-ports", "8081,15020"] });
    cart["spec"]["initContainers"].as_array_mut().unwrap().insert(0, init);
    etcd.put(PODS, cart);
    let replica = Replica::at(&ApiServer::of(&etcd));
    let state = replica.ready().await;
    let speaks = |state: &State, name: &str| find(state, "shop", name).ports[0].protocol;
    assert_eq!(speaks(&state, "cart-1"), Protocol::Tcp, "though the Service says http");
    assert_eq!(speaks(&state, "cart-2"), Protocol::Http1);
    assert_eq!(at(&state, "10.1.0.1", 8081), ["cart-1"]);
    let labels = json!({ "postern.dev/inject": "enabled", "postern.dev/allow-loosening": "true" });
    etcd.put(NAMESPACES, namespace("shop", labels));
    let state = replica
        .until(|state| at(state, "10.1.0.1", 8081) == ["clear [10, 1, 0, 1]:8081"])
        .await;
    assert_eq!(at(&state, "10.1.0.1", 8080), ["cart-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_mistake_in_a_namespaces_labels_is_told_and_makes_it_stricter() {
    let etcd = shop();
    etcd.put(PODS, pod("outside", "x-1", "10.1.0.5", false));
    let replica = Replica::at(&ApiServer::of(&etcd));
    replica.ready().await;
    for (labels, says) in [
        (json!({ "postern.dev/mode": "monitr" }), "did you mean `monitor`"),
        (
            json!({ "postern.dev/injct": "enabled" }),
            "did you mean `postern.dev/inject`",
        ),
        (json!({ "postern.dev/allow-loosening": "yes" }), "it loosens nothing"),
    ] {
        etcd.put(NAMESPACES, namespace("outside", labels));
        let told = |state: &State| state.model.conditions.iter().any(|condition| condition.contains(says));
        let state = replica.until(told).await;
        assert_eq!(find(&state, "outside", "x-1").mode, Mode::Protect);
        assert_eq!(at(&state, "10.1.0.5", 80), ["clear [10, 1, 0, 5]:80"]);
    }
    etcd.put(
        NAMESPACES,
        namespace("outside", json!({ "postern.dev/inject": "true" })),
    );
    replica
        .until(|state| at(state, "10.1.0.5", 80) == ["no_identity"])
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_cannot_be_decoded_denies_what_it_selects_even_if_it_was_good_before() {
    let etcd = shop();
    let allow = json!({ "selector": { "matchLabels": { "app": "cart" } }, "rules": [{}] });
    etcd.put(POLICIES, policy("shop", "p", allow.clone()));
    let replica = Replica::at(&ApiServer::of(&etcd));
    let state = replica.ready().await;
    assert_eq!(state.model.policies[0].action, Action::Allow);
    let mut broken = allow;
    broken["ruels"] = json!([]);
    etcd.put(POLICIES, policy("shop", "p", broken));
    let state = replica.until(|state| !state.bad.is_empty()).await;
    let errors = &state.bad["AuthorizationPolicy/shop/p"];
    assert!(
        errors[0].contains("unknown field `ruels`; did you mean `rules`?"),
        "{errors:?}"
    );
    let stand_in = &state.model.policies[0];
    assert_eq!(stand_in.action, Action::Deny);
    let selected = |name: &str| state.model.policies_of(find(&state, "shop", name)).count();
    assert_eq!((selected("cart-1"), selected("web-1")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn private_ranges_are_asked_about_and_addresses_outside_of_them_that_a_pod_has() {
    let etcd = shop();
    etcd.put(PODS, pod("shop", "far-1", "203.0.113.9", true));
    let replica = Replica::at(&ApiServer::of(&etcd));
    let state = replica.ready().await;
    let ranges: Vec<String> = state
        .model
        .ranges
        .iter()
        .map(|range| format!("{}/{}", range.ip, range.prefix))
        .collect();
    let wanted = [
        "10.0.0.0/8",
        "100.64.0.0/10",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "203.0.113.9/32",
        "fc00::/7",
    ];
    assert_eq!(ranges, wanted);
}

/// Not even those whose rules could be read: two replicas would know different ones.
#[tokio::test(start_paused = true)]
async fn a_request_authentication_that_cannot_be_decoded_believes_nobody_even_if_it_was_good_before() {
    let etcd = shop();
    let rule = json!({ "issuer": "https://sso.test", "audiences": ["cart"], "outputPayloadToHeader": "x-user" });
    let good = json!({ "selector": { "matchLabels": { "app": "cart" } }, "jwtRules": [rule] });
    let object = |spec: &Value| played::authentication("shop", "sso", spec.clone());
    etcd.put(played::AUTHENTICATIONS, object(&good));
    let replica = Replica::at(&ApiServer::of(&etcd));
    let state = replica.ready().await;
    assert_eq!(state.model.authentications[0].rules().len(), 1);
    for (pointer, value, says) in [
        (
            "/jwtRules/0/audience",
            json!(["cart"]),
            "unknown field `audience`; did you mean `audiences`?",
        ),
        (
            "/jwtRules/0/jwks",
            json!("{\"keys\":[]}"),
            "no key of the set can be used",
        ),
        (
            "/jwtRules/0/jwksFile",
            json!("keys.json"),
            "for documents in a directory",
        ),
    ] {
        let mut broken = good.clone();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        broken.pointer_mut(parent).unwrap()[field] = value;
        etcd.put(played::AUTHENTICATIONS, object(&broken));
        let bad = |state: &State| {
            state
                .bad
                .get("RequestAuthentication/shop/sso")
                .cloned()
                .unwrap_or_default()
        };
        let state = replica
            .until(|state| bad(state).iter().any(|error| error.contains(says)))
            .await;
        let stand_in = &state.model.authentications[0];
        assert!(
            matches!(&stand_in.content, Content::Unreadable { headers } if headers.iter().any(|name| name == "x-user")),
            "{stand_in:?}"
        );
        let selected = |name: &str| state.model.authentications_of(find(&state, "shop", name)).count();
        assert_eq!((selected("cart-1"), selected("web-1")), (1, 0));
    }
}
