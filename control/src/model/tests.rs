#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

use postern_api::control::v1 as wire;
use postern_api::control::v1::destination::State;
use postern_identity::TrustDomain;
use postern_policy::document::parse;

use super::*;
use crate::documents::decode;

mod doors;
mod resolution;

/// A model of these documents.
fn model(yaml: &str) -> Model {
    let domain = TrustDomain::parse("cluster.local").unwrap();
    let objects = parse("x.yaml", yaml).unwrap();
    let documents: Vec<Document> = objects.iter().map(|object| decode(object, &domain).unwrap()).collect();
    let load = Load {
        documents,
        ..Load::default()
    };
    Model::build("postern-system", &Aliases::default(), &load)
}

fn namespace(name: &str, labels: &str) -> String {
    format!("---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{{labels}}}}}}}\n")
}

/// `shop/cart` is a workload with label `app: cart`.
fn workload(name: &str, spec: &str) -> String {
    labelled(name, "", spec)
}

fn labelled(full: &str, labels: &str, spec: &str) -> String {
    let (namespace, name) = full.split_once('/').unwrap();
    let app = name.split('-').next().unwrap();
    format!(
        "---\n{{apiVersion: postern.dev/v1alpha1, kind: Workload, metadata: {{name: {name}, namespace: {namespace}, \
         labels: {{app: {app}, {labels}}}}}, spec: {{{spec}}}}}\n"
    )
}

/// `shop/cart` selects `app: cart`.
fn service(full: &str, spec: &str) -> String {
    let (namespace, name) = full.split_once('/').unwrap();
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, \
         spec: {{selector: {{app: {name}}}, {spec}}}}}\n"
    )
}

fn find<'m>(model: &'m Model, full: &str) -> &'m Workload {
    let (namespace, name) = full.split_once('/').unwrap();
    &model.workloads[&(namespace.to_owned(), name.to_owned())]
}

fn conditions<'m>(model: &'m Model, about: &str) -> Vec<&'m str> {
    let conditions = model.conditions.iter().map(String::as_str);
    conditions.filter(|condition| condition.contains(about)).collect()
}

#[test]
fn a_workload_may_be_stricter_than_its_namespace_and_looser_only_where_that_is_allowed() {
    let modes = ["discover", "monitor", "protect"];
    for (b, base) in modes.iter().enumerate() {
        for (w, wanted) in modes.iter().enumerate() {
            for loosening in [false, true] {
                let labels = format!("postern.dev/mode: {base}, postern.dev/allow-loosening: '{loosening}'");
                let own = format!("postern.dev/mode: {wanted}");
                let model = model(
                    &[
                        namespace("shop", &labels),
                        labelled("shop/cart", &own, "serviceAccount: a"),
                    ]
                    .concat(),
                );
                let given = if w >= b || loosening { wanted } else { base };
                assert_eq!(
                    find(&model, "shop/cart").mode,
                    Mode::parse(given).unwrap(),
                    "{wanted} in {base}, loosening {loosening}"
                );
                let told = conditions(&model, "looser than its namespace's").len();
                assert_eq!(told, usize::from(w < b && !loosening));
            }
        }
    }
}

#[test]
fn without_a_word_about_the_mode_it_is_protect_and_a_workload_cannot_loosen_that() {
    let model = model(
        &[
            workload("shop/cart", "serviceAccount: a"),
            labelled("shop/web", "postern.dev/mode: discover", "serviceAccount: a"),
        ]
        .concat(),
    );
    assert_eq!(find(&model, "shop/cart").mode, Mode::Protect);
    assert_eq!(find(&model, "shop/web").mode, Mode::Protect);
}

#[test]
fn who_is_meshed_known_to_be_not_or_of_unknown_identity() {
    let standing = |yaml: &str| find(&model(yaml), "shop/cart").standing.clone();
    let meshed = |account: &str| {
        Standing::Meshed(SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/{account}")).unwrap())
    };
    let other = workload("shop/web", "serviceAccount: web");
    let nameless = workload("shop/cart", "");
    assert_eq!(standing(&workload("shop/cart", "serviceAccount: cart")), meshed("cart"));
    assert_eq!(
        standing(&workload("shop/cart", "serviceAccount: cart, mesh: false")),
        Standing::Unmeshed
    );
    // A namespace where nobody is meshed is not injected; one with a meshed workload is, unless it says otherwise.
    assert_eq!(standing(&nameless), Standing::Unmeshed);
    assert_eq!(standing(&[&*nameless, &other].concat()), Standing::NoIdentity);
    assert_eq!(
        standing(&[&*namespace("shop", "postern.dev/inject: enabled"), &nameless].concat()),
        Standing::NoIdentity
    );
    assert_eq!(
        standing(&[&*namespace("shop", "postern.dev/inject: disabled"), &nameless, &other].concat()),
        Standing::Unmeshed
    );
    // It is protect that refuses.
    for mode in ["discover", "monitor"] {
        let labels = format!("postern.dev/inject: enabled, postern.dev/mode: {mode}");
        assert_eq!(
            standing(&[&*namespace("shop", &labels), &nameless].concat()),
            Standing::Unmeshed
        );
    }
    // Known to be out of the mesh is known, also in protect.
    assert_eq!(
        standing(&[&*other, &workload("shop/cart", "mesh: false")].concat()),
        Standing::Unmeshed
    );
}

#[test]
fn a_port_speaks_what_it_and_its_services_agree_on_and_is_detected_otherwise() {
    let protocol = |own: &str, services: &[&str]| {
        let mut yaml = workload("shop/cart", &format!("serviceAccount: a, ports: [{own}]"));
        for (i, port) in services.iter().enumerate() {
            write!(
                yaml,
                "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{i}, namespace: shop}}, \
                 spec: {{selector: {{app: cart}}, ports: [{port}]}}}}\n"
            )
            .unwrap();
        }
        let model = model(&yaml);
        let told = !conditions(&model, "is declared differently").is_empty();
        (find(&model, "shop/cart").ports[0].protocol, told)
    };
    assert_eq!(protocol("{number: 80}", &[]), (Protocol::Detect, false));
    assert_eq!(protocol("{number: 80, protocol: HTTP}", &[]), (Protocol::Http1, false));
    assert_eq!(
        protocol("{number: 80}", &["{port: 80, name: grpc}"]),
        (Protocol::Http2, false)
    );
    assert_eq!(
        protocol(
            "{number: 80, protocol: HTTP}",
            &["{port: 1, targetPort: 80, name: http}"]
        ),
        (Protocol::Http1, false)
    );
    assert_eq!(
        protocol("{number: 80, protocol: HTTP}", &["{port: 80, name: grpc}"]),
        (Protocol::Detect, true)
    );
    assert_eq!(
        protocol("{number: 80}", &["{port: 80, name: tcp}", "{port: 80, name: http}"]),
        (Protocol::Detect, true)
    );
    // A captured workload need not list its ports.
    assert_eq!(
        protocol("", &["{port: 80, targetPort: 8080, name: http}"]),
        (Protocol::Http1, false)
    );
}

#[test]
fn a_policy_is_for_whom_it_selects_and_one_of_the_root_namespace_for_all() {
    let policy = |full: &str, selector: &str| {
        let (namespace, name) = full.split_once('/').unwrap();
        format!(
            "---\n{{apiVersion: postern.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: \
             {namespace}}}, spec: {{{selector} rules: [{{}}]}}}}\n"
        )
    };
    let model = model(
        &[
            workload("shop/cart", "serviceAccount: a"),
            workload("shop/web", "serviceAccount: a"),
            workload("bank/cart", "serviceAccount: a"),
            policy("postern-system/all", ""),
            policy("postern-system/carts", "selector: {matchLabels: {app: cart}},"),
            policy("shop/shop", ""),
            policy("shop/cart", "selector: {matchLabels: {app: cart}},"),
            policy("bank/web", "selector: {matchLabels: {app: web}},"),
        ]
        .concat(),
    );
    let of = |full: &str| {
        let names = model
            .policies_of(find(&model, full))
            .map(|p| format!("{}/{}", p.namespace, p.name));
        names.collect::<Vec<_>>()
    };
    assert_eq!(
        of("shop/cart"),
        ["postern-system/all", "postern-system/carts", "shop/shop", "shop/cart"]
    );
    assert_eq!(of("shop/web"), ["postern-system/all", "shop/shop"]);
    assert_eq!(of("bank/cart"), ["postern-system/all", "postern-system/carts"]);
    assert_eq!(
        conditions(&model, "AuthorizationPolicy bank/web selects no workload").len(),
        1
    );
}

#[test]
fn faults_between_documents_are_told_with_their_place() {
    let model = model(
        &[
            service("shop/nobody", "ports: [{port: 80}]"),
            service("shop/cart", "ports: [{port: 80, targetPort: wbe}]"),
            workload(
                "shop/cart",
                "serviceAccount: a, address: 10.0.0.1, ports: [{number: 8080, name: web}]",
            ),
            workload("shop/web", "serviceAccount: a, address: 10.0.0.1"),
            workload("shop/x", "serviceAccount: a, ports: [{number: 80, listen: 9001}]"),
            workload("shop/y", "serviceAccount: a, ports: [{number: 80, listen: 9001}]"),
        ]
        .concat(),
    );
    for says in [
        "x.yaml:2:1: Service shop/nobody selects no workload",
        "Service shop/cart leads to port named `wbe`, which Workload shop/cart does not have; it has 8080 (web)",
        "10.0.0.1 is claimed by Workload shop/web and by cart",
        "127.0.0.1 port 9001 is claimed by Workload shop/y and by x",
    ] {
        assert_eq!(conditions(&model, says).len(), 1, "{says}: {:#?}", model.conditions);
    }
    assert_eq!(model.conditions.len(), 4);
}

/// One of the two would silently get the other's traffic.
#[test]
fn an_address_of_two_services_is_a_fault_that_is_told() {
    let model = model(
        &[
            service("shop/cart", "clusterIP: 10.96.0.1, ports: [{port: 80}]"),
            service("shop/web", "clusterIP: 10.96.0.1, ports: [{port: 80}]"),
            workload("shop/cart", "serviceAccount: a, address: 10.0.0.1"),
            workload("shop/web", "serviceAccount: a, address: 10.0.0.2"),
        ]
        .concat(),
    );
    assert_eq!(
        conditions(&model, "10.96.0.1 is claimed by Service shop/web and by shop/cart").len(),
        1,
        "{:?}",
        model.conditions
    );
    let State::Meshed(meshed) = model.resolve_address("10.96.0.1".parse().unwrap(), 80) else {
        panic!()
    };
    assert_eq!(meshed.service, "cart", "the first by name has it");
}

#[test]
fn conditions_are_bounded() {
    let many = |n: usize| {
        (0..n)
            .map(|i| service(&format!("shop/s{i}"), "ports: [{port: 80}]"))
            .collect::<String>()
    };
    assert_eq!(model(&many(256)).conditions.len(), 256);
    assert_eq!(model(&many(257)).conditions.len(), 256);
}
