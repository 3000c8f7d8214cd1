//! What ports take, what callers are told of it, and which documents are not in force.

use postern_policy::MtlsMode;
use postern_policy::MtlsMode::{Disable, Permissive, Strict};

use super::*;

fn door(full: &str, spec: &str) -> String {
    let (namespace, name) = full.split_once('/').unwrap();
    format!(
        "---\n{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: {name}, namespace: {namespace}}}, \
         spec: {{{spec}}}}}\n"
    )
}

fn taken(model: &Model, full: &str, ports: [u16; 2]) -> [MtlsMode; 2] {
    ports.map(|port| find(model, full).mtls.of(port))
}

const CART: &str = "selector: {matchLabels: {app: cart}}";

fn cart() -> String {
    workload(
        "shop/cart",
        "serviceAccount: cart, address: 10.0.0.1, ports: [{number: 80, name: http}, {number: 81}]",
    )
}

#[test]
fn ports_take_what_the_narrowest_document_says_and_in_protect_no_wide_one_loosens() {
    let monitor = namespace("shop", "postern.dev/mode: monitor");
    for (documents, in_monitor, in_protect) in [
        (String::new(), [Permissive; 2], [Strict; 2]),
        (
            door("postern-system/mesh", "mtls: {mode: STRICT}"),
            [Strict; 2],
            [Strict; 2],
        ),
        (door("shop/all", "mtls: {mode: DISABLE}"), [Disable; 2], [Strict; 2]),
        (door("other/all", "mtls: {mode: STRICT}"), [Permissive; 2], [Strict; 2]),
        (
            door(
                "shop/cart",
                &format!("{CART}, portLevelMtls: {{80: {{mode: DISABLE}}}}"),
            ),
            [Disable, Permissive],
            [Disable, Strict],
        ),
    ] {
        let protect = model(&[cart(), documents.clone()].concat());
        assert_eq!(taken(&protect, "shop/cart", [80, 81]), in_protect, "{documents}");
        let monitor = model(&[monitor.clone(), cart(), documents.clone()].concat());
        assert_eq!(taken(&monitor, "shop/cart", [80, 81]), in_monitor, "{documents}");
    }
}

#[test]
fn callers_are_told_to_speak_in_clear_to_a_port_that_takes_plaintext_alone_and_through_its_proxy() {
    let in_clear = door(
        "shop/cart",
        &format!("{CART}, portLevelMtls: {{80: {{mode: DISABLE}}, 81: {{mode: PERMISSIVE}}}}"),
    );
    let front = service(
        "shop/cart",
        "clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: more, port: 81}]",
    );
    let explicit = workload(
        "shop/cart-x",
        "serviceAccount: cart, address: 10.0.0.2, ports: [{number: 80, listen: 8001, app: 8002}, {number: 81, listen: 8003, app: 8004}]",
    );
    let foreign = workload(
        "shop/cart-f",
        "serviceAccount: cart, capture: foreign, address: 10.0.0.3, ports: [{number: 80, name: http}, {number: 81, name: http-b}]",
    );
    let model = model(&[cart(), explicit, foreign, front, in_clear].concat());
    let endpoints = |port| match model.resolve_name("shop", "cart", port) {
        State::Meshed(meshed) => meshed.endpoints,
        other => panic!("{other:?}"),
    };
    for end in endpoints(80) {
        let own = (
            end.workload.as_str(),
            end.port,
            end.alpn.is_empty(),
            end.spiffe_ids.is_empty(),
        );
        match end.workload.as_str() {
            "cart" => assert_eq!(own, ("cart", 80, true, true)),
            // Not the app's own port: its proxy decides.
            "cart-x" => assert_eq!(own, ("cart-x", 8001, true, true)),
            // No proxy of ours goes by our documents there.
            _ => assert_eq!(own, ("cart-f", 80, false, false)),
        }
        assert_eq!(end.instance.is_empty(), end.workload == "cart-f");
    }
    // Either is taken: callers prove themselves.
    assert!(
        endpoints(81)
            .iter()
            .all(|end| !end.alpn.is_empty() && !end.spiffe_ids.is_empty())
    );
}

#[test]
fn what_does_not_do_what_it_says_is_told_with_the_reason() {
    let monitor = namespace("lab", "postern.dev/mode: monitor");
    let lab = workload("lab/probe", "serviceAccount: probe, ports: [{number: 80}]");
    for (documents, says) in [
        (
            door("shop/door", "mtls: {mode: UNSET}"),
            Some("says nothing: every mode in it is UNSET"),
        ),
        (
            door(
                "shop/door",
                "selector: {matchLabels: {app: none}}, mtls: {mode: STRICT}",
            ),
            Some("selects no workload that has a proxy"),
        ),
        (
            door("postern-system/door", &format!("{CART}, mtls: {{mode: STRICT}}")),
            Some("with a selector it speaks for workloads of its own namespace alone"),
        ),
        (
            door("shop/door", "mtls: {mode: PERMISSIVE}"),
            Some(
                "is not in force at shop/cart: in mode protect only a document that names the workload by its labels takes",
            ),
        ),
        (
            door("postern-system/door", "mtls: {mode: PERMISSIVE}"),
            Some("is not in force at shop/cart: in mode protect"),
        ),
        (door("lab/door", "mtls: {mode: PERMISSIVE}"), None),
        (door("shop/door", "mtls: {mode: STRICT}"), None),
        (door("shop/door", &format!("{CART}, mtls: {{mode: DISABLE}}")), None),
        (
            [
                door(
                    "shop/door",
                    &format!("{CART}, portLevelMtls: {{80: {{mode: DISABLE}}}}"),
                ),
                door("shop/other", &format!("{CART}, mtls: {{mode: STRICT}}")),
            ]
            .concat(),
            Some("is not in force at shop/cart: shop/other (x.yaml:"),
        ),
    ] {
        let model = model(&[monitor.clone(), lab.clone(), cart(), documents.clone()].concat());
        let found = conditions(&model, "/door ");
        match says {
            None => assert!(found.is_empty(), "{documents}: {found:?}"),
            Some(says) => assert!(found.len() == 1 && found[0].contains(says), "{documents}: {found:?}"),
        }
    }
}

#[test]
fn a_change_of_what_ports_take_is_a_change_of_those_workloads_alone() {
    let web = workload("shop/web", "serviceAccount: web");
    let before = model(&[cart(), web.clone()].concat());
    let strict = door("shop/door", &format!("{CART}, mtls: {{mode: PERMISSIVE}}"));
    let after = model(&[cart(), web, strict].concat()).sharing(&before);
    let same = |name: &str| {
        let key = ("shop".to_owned(), name.to_owned());
        Arc::ptr_eq(&before.workloads[&key], &after.workloads[&key])
    };
    assert!(same("web") && !same("cart"));
}
