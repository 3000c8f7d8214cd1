//! Labels of peers: told to a proxy whose policies look at them, before the policies do; labels of the workload itself are
//! settled before anything is told.

use postern_api::control::v1 as wire;
use postern_api::policy_wire::features_to_wire;
use postern_policy::{Feature, FeatureSet};

use crate::world::{Proxy, SHOP, World, hello, id, policies_of, policy, rules_of};

const BY_LABEL: &str = "{selector: {matchLabels: {app: cart}}, rules: [{when: [{key: 'source.labels[app]', values: [web]}, \
                        {key: 'source.namespace.labels[region]', values: [eu]}]}]}";
const EUROPE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {region: eu, team: a}}\n";

/// Two names, and labels.
type Told = (String, String, Vec<(String, String)>);

/// Of each instance, with the ID that it must have.
fn told(proxy: &Proxy) -> Vec<Told> {
    let labels = proxy.held.peer_labels.as_ref().unwrap();
    let sorted = |labels: &std::collections::HashMap<String, String>| {
        let mut labels: Vec<_> = labels.clone().into_iter().collect();
        labels.sort();
        labels
    };
    let instances = labels.instances.iter();
    let mut all: Vec<_> = instances
        .map(|peer| (peer.instance.clone(), peer.spiffe_id.clone(), sorted(&peer.labels)))
        .collect();
    all.extend(
        labels
            .namespaces
            .iter()
            .map(|namespace| (namespace.namespace.clone(), String::new(), sorted(&namespace.labels))),
    );
    all
}

fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

#[tokio::test]
async fn a_proxy_is_told_the_labels_that_its_policies_look_at_and_before_them() {
    let files = [
        ("shop.yaml", SHOP),
        ("ns.yaml", EUROPE),
        ("p.yaml", &policy("by-label", BY_LABEL)),
    ];
    let world = World::with(&files).await;
    let mut cart = world.proxy("cart").await.started().await;
    use wire::Kind::{Federation, PeerLabels, Policies, Quarantine, Ranges, Workload};
    assert_eq!(
        cart.held.heard,
        [Quarantine, Federation, Workload, PeerLabels, Policies, Ranges]
    );
    assert_eq!(
        told(&cart),
        [
            ("cart".to_owned(), id("cart"), vec![pair("app", "cart")]),
            ("web".to_owned(), id("web"), vec![pair("app", "web")]),
            ("shop".to_owned(), String::new(), vec![pair("region", "eu")]),
        ],
        "and no other label"
    );
    // Another proxy's policies look at none.
    let web = world.proxy("web").await.started().await;
    assert_eq!(web.held.heard, [Quarantine, Federation, Workload, Policies, Ranges]);

    // A label changes.
    world.write("shop.yaml", &SHOP.replace("labels: {app: web}", "labels: {app: other}"));
    cart.until(|held| {
        let labels = held.peer_labels.as_ref().unwrap();
        labels
            .instances
            .iter()
            .any(|peer| peer.labels.get("app").map(String::as_str) == Some("other"))
    })
    .await;
    world.write("ns.yaml", &EUROPE.replace("region: eu", "region: us"));
    cart.until(|held| held.peer_labels.as_ref().unwrap().namespaces[0].labels["region"] == "us")
        .await;

    // The last rule that looks at labels is gone: so are they.
    world.write("p.yaml", &policy("by-label", "{rules: [{}]}"));
    cart.until(|held| held.peer_labels.as_ref().unwrap().instances.is_empty())
        .await;
}

#[tokio::test]
async fn an_older_proxy_is_told_no_labels_and_no_rule_that_needs_them() {
    let denial = BY_LABEL.replace("{selector", "{action: DENY, selector");
    let policies = [policy("by-label", BY_LABEL), policy("not-by-label", &denial)].concat();
    let world = World::with(&[("shop.yaml", SHOP), ("p.yaml", &policies)]).await;
    let features = features_to_wire(FeatureSet::all().without(Feature::SourceLabels));
    let hello = wire::Hello { features, ..hello() };
    let cart = world.caller(&id("cart"), Some("cart"), hello).await.started().await;
    assert_eq!(cart.held.peer_labels, None);
    let policies = policies_of(&cart.held.policies.unwrap());
    let rules: Vec<_> = policies
        .iter()
        .map(|policy| (policy.action(), policy.rules.len()))
        .collect();
    use wire::PolicyAction::{Allow, Deny};
    assert_eq!(rules, [(Allow, 0), (Deny, 1)]);
    assert_eq!(rules_of(&policies[1])[0].when, [], "it denies more");
}

#[tokio::test]
async fn labels_of_the_workload_itself_are_settled_before_anything_is_told() {
    let rules = "{rules: [{when: [{key: 'destination.labels[app]', values: [cart]}]}, \
                 {when: [{key: 'destination.namespace.labels[region]', notValues: [eu]}]}]}";
    let world = World::with(&[
        ("shop.yaml", SHOP),
        ("ns.yaml", EUROPE),
        ("p.yaml", &policy("by-own", rules)),
    ])
    .await;
    let told = |proxy: &Proxy| {
        let policies = policies_of(proxy.held.policies.as_ref().unwrap());
        rules_of(&policies[0])
            .iter()
            .map(|rule| (rule.index, rule.when.len()))
            .collect::<Vec<_>>()
    };
    let mut cart = world.proxy("cart").await.started().await;
    assert_eq!(told(&cart), [(0, 0)]);
    let web = world.proxy("web").await.started().await;
    assert_eq!(told(&web), []);
    world.write("ns.yaml", &EUROPE.replace("region: eu", "region: us"));
    cart.until(|held| policies_of(held.policies.as_ref().unwrap())[0].rules.len() == 2)
        .await;
    assert_eq!(told(&cart), [(0, 0), (1, 0)]);
}
