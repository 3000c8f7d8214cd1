//! What a proxy is told when it comes: only what concerns it, in what it can evaluate, above what it holds.

use postern_api::control::v1 as wire;
use postern_api::policy_wire::features_to_wire;
use postern_policy::{Feature, FeatureSet};

use crate::world::{SHOP, World, hello, id, policies_of, policy, rules_of};

#[tokio::test]
async fn it_is_told_what_concerns_it_and_in_the_order_trust_rules_openings() {
    let policies = [
        policy("all", "{rules: [{}]}"),
        policy("cart", "{selector: {matchLabels: {app: cart}}, rules: [{}]}"),
        policy("web", "{selector: {matchLabels: {app: web}}, rules: [{}]}"),
        policy("all", "{action: DENY, rules: [{}]}").replace("namespace: shop", "namespace: postern-system"),
        policy("other", "{rules: [{}]}").replace("namespace: shop", "namespace: bank"),
    ];
    let world = World::with(&[("shop.yaml", SHOP), ("policies.yaml", &policies.concat())]).await;
    let proxy = world.proxy("cart").await.started().await;
    use wire::Kind::{Federation, Policies, Quarantine, Ranges, Workload};
    // Control has no bundle but from a CA; this one has none.
    assert_eq!(proxy.held.heard, [Quarantine, Federation, Workload, Policies, Ranges]);
    assert_eq!(proxy.held.policy_names(), ["all", "all", "cart"]);

    let workload = proxy.held.workload.unwrap();
    assert_eq!(
        (workload.mode(), &*workload.root_namespace),
        (wire::Mode::Protect, "postern-system")
    );
    assert_eq!(workload.labels, [("app".to_owned(), "cart".to_owned())].into());
    let expected = wire::WorkloadPort {
        name: "http".to_owned(),
        number: 80,
        protocol: wire::Protocol::Http1 as i32,
        listen: 8001,
        app: 8002,
        address: vec![127, 0, 0, 1],
        spiffe: false,
    };
    assert_eq!(workload.ports, [expected]);

    let ranges = proxy.held.ranges.unwrap();
    let addresses: Vec<_> = ranges.cidrs.iter().map(|cidr| (&*cidr.ip, cidr.prefix)).collect();
    assert_eq!(
        addresses,
        [(&[10, 0, 0, 1][..], 32), (&[10, 96, 0, 1], 32), (&[127, 0, 0, 1], 32)]
    );
    let place = policies_of(&proxy.held.policies.unwrap())[0].place.clone().unwrap();
    assert_eq!((&*place.file, place.line), ("policies.yaml", 8), "a denial names it");
}

#[tokio::test]
async fn a_captured_workload_is_told_no_address_of_its_own() {
    let world = World::with(&[(
        "shop.yaml",
        &SHOP.replace("address: 10.0.0.1", "address: 10.0.0.1, ports: [{number: 80}]"),
    )])
    .await;
    let proxy = world.proxy("web").await.started().await;
    let port = proxy.held.workload.unwrap().ports.remove(0);
    assert_eq!((port.listen, port.app, port.address), (80, 80, Vec::new()));
}

const RULES: &str = "{action: ACTION, rules: [{to: [{operation: {paths: [/a], methods: [GET]}}]}, {to: [{operation: {methods: [GET]}}]}]}";

#[tokio::test]
async fn a_rule_that_needs_more_than_a_proxy_evaluates_is_left_out_or_denies_more() {
    let policies = [
        policy("allow", &RULES.replace("ACTION", "ALLOW")),
        policy("deny", &RULES.replace("ACTION", "DENY")),
    ];
    let world = World::with(&[("shop.yaml", SHOP), ("policies.yaml", &policies.concat())]).await;
    let told = async |features: Vec<i32>| {
        let hello = wire::Hello { features, ..hello() };
        let proxy = world.caller(&id("cart"), Some("cart"), hello).await.started().await;
        let policies = policies_of(&proxy.held.policies.unwrap());
        let operations = |policy: &wire::AuthorizationPolicy| {
            rules_of(policy)
                .iter()
                .map(|rule| {
                    (
                        rule.index,
                        rule.to.iter().map(|o| (o.paths.len(), o.methods.len())).collect(),
                    )
                })
                .collect::<Vec<(u32, Vec<(usize, usize)>)>>()
        };
        assert_eq!((&*policies[0].name, &*policies[1].name), ("allow", "deny"));
        (operations(&policies[0]), operations(&policies[1]))
    };
    let whole = vec![(0, vec![(1, 1)]), (1, vec![(0, 1)])];
    assert_eq!(
        told(features_to_wire(FeatureSet::all())).await,
        (whole.clone(), whole.clone())
    );
    // Words from the future and the absent one change nothing.
    let mut more = features_to_wire(FeatureSet::all());
    more.extend([0, 999, -1]);
    assert_eq!(told(more).await, (whole.clone(), whole));
    let (allow, deny) = told(features_to_wire(FeatureSet::all().without(Feature::Paths))).await;
    assert_eq!(
        allow,
        [(1, vec![(0, 1)])],
        "an ALLOW rule that is not understood allows nothing"
    );
    assert_eq!(
        deny,
        [(0, vec![(0, 1)]), (1, vec![(0, 1)])],
        "a DENY rule without its path denies more"
    );
    let (allow, deny) = told(Vec::new()).await;
    assert_eq!(allow, []);
    assert!(deny.iter().all(|(_, to)| to.iter().all(|o| *o == (0, 0))), "{deny:?}");
    assert_eq!(deny.len(), 2);
}

#[tokio::test]
async fn a_snapshot_is_above_what_the_proxy_holds_of_its_kind_and_only_of_that() {
    let world = World::shop().await;
    let far = 9_000_000_000_000_000;
    let held = vec![
        wire::Held {
            kind: wire::Kind::Policies as i32,
            version: far,
        },
        wire::Held {
            kind: wire::Kind::Policies as i32,
            version: 7,
        },
        // Nobody counts that far: not believed, or else there were no version above it.
        wire::Held {
            kind: wire::Kind::Ranges as i32,
            version: u64::MAX,
        },
    ];
    let hello = wire::Hello { held, ..hello() };
    let mut proxy = world.caller(&id("cart"), Some("cart"), hello).await.started().await;
    assert_eq!(proxy.held.versions(wire::Kind::Policies), [far + 1]);
    for kind in [wire::Kind::Workload, wire::Kind::Ranges, wire::Kind::Quarantine] {
        let version = proxy.held.versions(kind)[0];
        assert!(version > 0 && version < far, "{kind:?} {version}");
    }
    world.write("p.yaml", &policy("all", "{rules: [{}]}"));
    proxy.until(|held| held.policy_names() == ["all"]).await;
    assert_eq!(proxy.held.versions(wire::Kind::Policies), [far + 1, far + 2]);
}

const OPA: &str = "---\n{apiVersion: postern.dev/v1alpha1, kind: Authorizer, metadata: {name: opa, namespace: shop}, \
                   spec: {extAuthz: {address: '127.0.0.1:9191', contextExtensions: {tenant: TENANT}}}}\n";
const ASKS: &str = "{action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {ports: ['80']}}]}]}";

#[tokio::test]
async fn whom_custom_policies_ask_comes_with_them_and_changes_with_its_document() {
    let world = World::with(&[
        ("shop.yaml", SHOP),
        ("policies.yaml", &policy("asks", ASKS)),
        ("opa.yaml", &OPA.replace("TENANT", "a")),
    ])
    .await;
    let mut proxy = world.proxy("cart").await.started().await;
    let tenant = |set: &wire::PolicySet| match set.authorizers.first()?.asks.as_ref()? {
        wire::authorizer::Asks::ExtAuthz(server) => server.context_extensions.get("tenant").cloned(),
        wire::authorizer::Asks::Rego(_) => None,
    };
    let set = proxy.held.policies.clone().unwrap();
    assert_eq!(policies_of(&set)[0].action(), wire::PolicyAction::Custom);
    assert_eq!(
        (&*policies_of(&set)[0].provider, &*set.authorizers[0].key),
        ("shop/opa", "shop/opa")
    );
    assert_eq!(tenant(&set).as_deref(), Some("a"));

    world.write("opa.yaml", &OPA.replace("TENANT", "b"));
    proxy
        .until(|held| held.policies.as_ref().and_then(tenant).as_deref() == Some("b"))
        .await;
    // The policy stays, and denies what it matches.
    world.remove("opa.yaml");
    proxy
        .until(|held| held.policies.as_ref().is_some_and(|set| set.authorizers.is_empty()))
        .await;
    let set = proxy.held.policies.clone().unwrap();
    assert_eq!(policies_of(&set)[0].action(), wire::PolicyAction::Deny);
    assert_eq!(rules_of(&policies_of(&set)[0])[0].to[0].ports, [80]);
}

#[tokio::test]
async fn a_proxy_that_asks_nobody_is_told_to_deny() {
    let world = World::with(&[
        ("shop.yaml", SHOP),
        ("policies.yaml", &policy("asks", ASKS)),
        ("opa.yaml", &OPA.replace("TENANT", "a")),
    ])
    .await;
    let features = features_to_wire(FeatureSet::all().without(Feature::Custom));
    let hello = wire::Hello { features, ..hello() };
    let proxy = world.caller(&id("cart"), Some("cart"), hello).await.started().await;
    let set = proxy.held.policies.unwrap();
    assert_eq!(
        (policies_of(&set)[0].action(), set.authorizers.len()),
        (wire::PolicyAction::Deny, 0)
    );
}

#[tokio::test]
async fn a_proxy_that_verifies_no_tokens_is_told_to_deny_where_they_are_looked_for() {
    let sso = "---\napiVersion: postern.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {name: sso, namespace: shop}\n\
               spec: {selector: {matchLabels: {app: cart}}, jwtRules: [{issuer: 'https://sso.test', jwksUri: 'https://sso.test/jwks'}]}\n";
    let world = World::with(&[("shop.yaml", SHOP), ("sso.yaml", sso)]).await;
    let features = features_to_wire(FeatureSet::all().without(Feature::RequestPrincipals));
    let hello = wire::Hello { features, ..hello() };
    let old = world.caller(&id("cart"), Some("cart"), hello).await.started().await;
    let set = old.held.policies.unwrap();
    assert_eq!(set.authentications.len(), 0);
    let policies = policies_of(&set);
    let [deny] = &policies[..] else { panic!("{policies:?}") };
    assert_eq!(
        (&*deny.name, deny.action(), deny.rules.len()),
        ("sso", wire::PolicyAction::Deny, 1)
    );
    let new = world.proxy("cart").await.started().await;
    let set = new.held.policies.unwrap();
    assert_eq!((set.authentications.len(), set.policies.len()), (1, 0));
}

#[tokio::test]
async fn rego_that_is_not_understood_is_a_bad_file_and_what_asks_it_denies() {
    let rego = "---\napiVersion: postern.dev/v1alpha1\nkind: Authorizer\nmetadata: {name: opa, namespace: shop}\nspec:\n  \
                rego:\n    modules:\n    - name: a.rego\n      text: |\n        package envoy.authz\n        \
                allow if http.send({})\n";
    let world = World::with(&[
        ("shop.yaml", SHOP),
        ("policies.yaml", &policy("asks", ASKS)),
        ("opa.yaml", rego),
    ])
    .await;
    let proxy = world.proxy("cart").await.started().await;
    let set = proxy.held.policies.unwrap();
    assert_eq!(
        (policies_of(&set)[0].action(), set.authorizers.len()),
        (wire::PolicyAction::Deny, 0)
    );
    let mut viewer = world.viewer().await;
    let picture = viewer.until(|picture| !picture.bad_files.is_empty()).await;
    let bad = &picture.bad_files[0];
    assert_eq!(bad.file, "opa.yaml");
    assert!(bad.errors[0].contains("http.send"), "{bad:?}");
    assert!(
        picture
            .conditions
            .iter()
            .any(|condition| condition.contains("no readable Authorizer `opa`"))
    );
}
