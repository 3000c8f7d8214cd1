#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::sync::Arc;

use postern_policy::document::parse;
use postern_policy::{Action, Mode};

use super::*;
use crate::protocol::Protocol;

const WORKLOAD: &str =
    "{apiVersion: postern.dev/v1alpha1, kind: Workload, metadata: {name: cart, namespace: shop}, spec: SPEC}";
const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop}, spec: SPEC}";

fn object(yaml: &str) -> Object {
    parse("x.yaml", yaml).unwrap().remove(0)
}

fn decoded(yaml: &str) -> Result<Document, Vec<String>> {
    decode(&object(yaml), &TrustDomain::parse("cluster.local").unwrap())
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

fn workload(spec: &str) -> Result<Arc<Workload>, Vec<String>> {
    decoded(&WORKLOAD.replace("SPEC", spec)).map(|document| match document {
        Document::Workload(workload) => workload,
        other => panic!("{other:?}"),
    })
}

fn service(spec: &str) -> Result<Arc<Service>, Vec<String>> {
    decoded(&SERVICE.replace("SPEC", spec)).map(|document| match document {
        Document::Service(service) => service,
        other => panic!("{other:?}"),
    })
}

fn namespace(metadata: &str) -> Result<Namespace, Vec<String>> {
    decoded(&format!("{{apiVersion: v1, kind: Namespace, metadata: {metadata}}}")).map(|document| match document {
        Document::Namespace(namespace) => namespace,
        other => panic!("{other:?}"),
    })
}

/// Each is refused, with these words among its errors.
fn refuses<T: std::fmt::Debug>(decode: impl Fn(&str) -> Result<T, Vec<String>>, cases: &[(&str, &str)]) {
    for (text, says) in cases {
        let errors = decode(text).expect_err(text);
        assert!(errors.iter().any(|error| error.contains(says)), "{text}: {errors:?}");
        assert!(
            errors.iter().all(|error| error.starts_with("x.yaml:1:")),
            "{text}: {errors:?}"
        );
    }
}

fn list(n: usize, item: impl Fn(usize) -> String) -> String {
    (0..n).map(item).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_kind_or_version_that_is_not_read_names_the_nearest() {
    refuses(
        decoded,
        &[
            (
                "{apiVersion: postern.dev/v1alpha1, kind: Wrkload, metadata: {name: x}}",
                "kind `Wrkload` is not read here; did you mean `Workload`?",
            ),
            (
                "{apiVersion: postern.dev/v1, kind: Workload, metadata: {name: x}}",
                "kind `Workload` is read under apiVersion postern.dev/v1alpha1, not `postern.dev/v1`; did you mean \
                 `postern.dev/v1alpha1`?",
            ),
        ],
    );
}

#[test]
fn policies_are_read_in_our_name_and_in_istios() {
    for version in ["postern.dev/v1alpha1", "security.istio.io/v1"] {
        let text = format!(
            "{{apiVersion: {version}, kind: AuthorizationPolicy, metadata: {{name: x, namespace: shop}}, \
             spec: {{action: DENY, rules: [{{}}]}}}}"
        );
        assert!(matches!(decoded(&text), Ok(Document::Policy(policy)) if policy.action == Action::Deny));
    }
}

#[test]
fn labels_and_annotations_of_ours_that_mean_nothing_are_refused() {
    refuses(
        decoded,
        &[
            (
                "{apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {postern.dev/mod: protect}}}",
                "metadata.labels: `postern.dev/mod` means nothing here; did you mean `postern.dev/mode`?",
            ),
            (
                "{apiVersion: v1, kind: Service, metadata: {name: x, annotations: {postern.dev/mode: protect}}, \
                 spec: {ports: [{port: 1}]}}",
                "metadata.annotations: `postern.dev/mode` means nothing here",
            ),
            (
                "{apiVersion: postern.dev/v1alpha1, kind: Workload, metadata: {name: x, labels: {postern.dev/inject: \
                 enabled}}}",
                "metadata.labels: `postern.dev/inject` means nothing here",
            ),
        ],
    );
    // What is not ours is nobody's mistake.
    assert!(namespace("{name: x, labels: {example.com/mode: any}}").is_ok());
}

#[test]
fn a_namespace_says_its_mode_whether_it_is_injected_and_what_its_workloads_may() {
    let plain = namespace("{name: x}").unwrap();
    assert_eq!((plain.mode, plain.inject, plain.allow_loosening), (None, None, false));
    let said = namespace(
        "{name: x, labels: {postern.dev/mode: monitor, postern.dev/inject: disabled, postern.dev/allow-loosening: 'true'}}",
    )
    .unwrap();
    assert_eq!(
        (said.mode, said.inject, said.allow_loosening),
        (Some(Mode::Monitor), Some(false), true)
    );
    let annotated = namespace("{name: x, annotations: {postern.dev/allow-loosening: 'true'}}").unwrap();
    assert!(annotated.allow_loosening);
    refuses(
        namespace,
        &[
            (
                "{name: x, labels: {postern.dev/mode: protct}}",
                "`protct` is no mode: discover, monitor, protect; did you mean `protect`?",
            ),
            (
                "{name: x, labels: {postern.dev/inject: enable}}",
                "neither `enabled` nor `disabled`; did you mean `enabled`?",
            ),
            (
                "{name: x, labels: {postern.dev/allow-loosening: 'yes'}}",
                "neither `true` nor `false`",
            ),
            (
                "{name: x, namespace: y}",
                "a Namespace lies in no namespace, not in `y`",
            ),
        ],
    );
}

#[test]
fn what_names_no_namespace_lies_in_default() {
    let text = WORKLOAD
        .replace(", namespace: shop", "")
        .replace("SPEC", "{serviceAccount: a}");
    let document = decoded(&text).unwrap();
    assert_eq!(document.key().to_string(), "Workload default/cart");
    assert!(
        matches!(document, Document::Workload(w) if w.id.as_ref().unwrap().as_str() == "spiffe://cluster.local/ns/default/sa/a")
    );
}

#[test]
fn a_workload_without_an_address_is_on_loopback_and_may_have_eight() {
    assert_eq!(
        workload("{}").unwrap().addresses,
        ["127.0.0.1".parse::<IpAddr>().unwrap()]
    );
    let many = |n| format!("{{addresses: [{}]}}", list(n, |i| format!("10.0.0.{}", i + 1)));
    assert_eq!(workload(&many(8)).unwrap().addresses.len(), 8);
    refuses(workload, &[(&many(9), "more than 8 addresses")]);
    let twice = workload("{addresses: [10.0.0.1, '::ffff:10.0.0.1', 'fd00::1']}").unwrap();
    assert_eq!(twice.addresses.len(), 2, "one address in two notations is one");
    refuses(
        workload,
        &[
            ("{address: 10.0.0}", "`10.0.0` is no IP address"),
            ("{address: 0.0.0.0}", "nobody's own address"),
            ("{address: 'ff02::1'}", "nobody's own address"),
            (
                "{address: 10.0.0.1, addresses: [10.0.0.2]}",
                "either `address` or `addresses`",
            ),
        ],
    );
}

#[test]
fn a_workloads_ports_are_numbers_names_and_protocols_that_hold_together() {
    let w = workload(
        "{serviceAccount: a, ports: [{number: 1, name: grpc-api}, {number: 2, protocol: DETECT}, {number: 3}]}",
    )
    .unwrap();
    assert_eq!(
        w.ports.iter().map(|p| p.declared).collect::<Vec<_>>(),
        [Some(Protocol::Http2), Some(Protocol::Detect), None]
    );
    assert_eq!(w.capture, Capture::Redirect);
    let many = |n| format!("{{ports: [{}]}}", list(n, |i| format!("{{number: {}}}", i + 1)));
    assert_eq!(workload(&many(256)).unwrap().ports.len(), 256);
    refuses(
        workload,
        &[
            (&many(257), "more than 256 ports"),
            ("{ports: [{name: x}]}", "`number`"),
            ("{ports: [{number: 0}]}", "0"),
            ("{ports: [{number: 65536}]}", "65536"),
            ("{ports: [{number: 1, protocol: HTTTP}]}", "did you mean `HTTP`?"),
            ("{ports: [{number: 1}, {number: 1}]}", "port 1 is given twice"),
            (
                "{ports: [{number: 1, name: a}, {number: 2, name: a}]}",
                "two ports are named `a`",
            ),
            ("{ports: [{nubmer: 1}]}", "did you mean `number`?"),
        ],
    );
}

#[test]
fn an_explicit_port_says_where_the_proxy_and_where_the_app_listens() {
    let w = workload("{serviceAccount: a, ports: [{number: 80, listen: 8001, app: 8002}]}").unwrap();
    assert_eq!(
        (w.capture, w.ports[0].listen, w.ports[0].app),
        (Capture::Explicit, 8001, 8002)
    );
    let w = workload("{serviceAccount: a, capture: explicit, ports: [{number: 80, app: 81}]}").unwrap();
    assert_eq!((w.ports[0].listen, w.ports[0].app), (80, 81));
    // Nobody stands before an app that is not in the mesh.
    assert!(workload("{mesh: false, capture: explicit, ports: [{number: 80}]}").is_ok());
    refuses(
        workload,
        &[
            (
                "{serviceAccount: a, capture: explicit, ports: [{number: 80}]}",
                "proxy and app cannot both listen on 80",
            ),
            (
                "{serviceAccount: a, ports: [{number: 80, listen: 9}, {number: 81, listen: 9}]}",
                "two ports listen on 9",
            ),
            (
                "{serviceAccount: a, capture: redirect, ports: [{number: 80, listen: 9}]}",
                "belong to `capture: explicit`",
            ),
        ],
    );
}

#[test]
fn an_identity_is_the_service_account_and_needs_one_in_the_mesh() {
    let w = workload("{serviceAccount: cart}").unwrap();
    assert_eq!(
        w.id.as_ref().unwrap().as_str(),
        "spiffe://cluster.local/ns/shop/sa/cart"
    );
    assert_eq!(workload("{}").unwrap().id, None);
    refuses(
        workload,
        &[
            ("{mesh: true}", "`serviceAccount` is missing"),
            ("{serviceAccount: a/b}", "`a/b` is no name"),
            ("{serviceAccount: ..}", "serviceAccount"),
            ("{serviceAccount: 'cärt'}", "serviceAccount"),
        ],
    );
}

#[test]
fn a_services_ports_are_tcp_named_apart_and_lead_to_themselves_unless_they_say_otherwise() {
    let s = service(
        "{selector: {app: cart}, ports: [{name: http, port: 80}, {name: b, port: 81, targetPort: web}, \
         {name: c, port: 82, targetPort: 8082, appProtocol: kubernetes.io/h2c}, {name: dns, port: 53, protocol: UDP}]}",
    )
    .unwrap();
    let ports: Vec<_> = s
        .ports
        .iter()
        .map(|p| (p.number, p.target.clone(), p.declared))
        .collect();
    assert_eq!(
        ports,
        [
            (80, TargetPort::Number(80), Some(Protocol::Http1)),
            (81, TargetPort::Name("web".to_owned()), None),
            (82, TargetPort::Number(8082), Some(Protocol::Http2)),
        ],
        "UDP is not ours to carry"
    );
    // One of UDP alone has nothing for us, and is no mistake.
    assert_eq!(service("{ports: [{port: 53, protocol: UDP}]}").unwrap().ports, []);
    let many = |n| {
        format!(
            "{{ports: [{}]}}",
            list(n, |i| format!("{{name: p{i}, port: {}}}", i + 1))
        )
    };
    assert_eq!(service(&many(256)).unwrap().ports.len(), 256);
    refuses(
        service,
        &[
            (&many(257), "more than 256 ports"),
            ("{}", "a Service has at least one port"),
            ("{ports: [{port: 1}, {port: 2}]}", "several ports need distinct names"),
            (
                "{ports: [{name: a, port: 1}, {name: b, port: 1}]}",
                "port 1 is given twice",
            ),
            ("{ports: [{port: 1, targetPort: 0}]}", "0 is no port"),
            (
                "{ports: [{port: 1, protocol: QUIC}]}",
                "`QUIC` is not one of TCP, UDP, SCTP",
            ),
            ("{type: LoadBalancer, ports: [{port: 1}]}", "only `ClusterIP`"),
            ("{ports: [{prot: 1}]}", "did you mean `port`?"),
            ("null", "`spec` is missing"),
        ],
    );
}

#[test]
fn a_service_may_have_addresses_in_either_field_and_notation() {
    let s =
        service("{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, '::ffff:10.96.0.1', 'fd00::1'], ports: [{port: 1}]}")
            .unwrap();
    let expected: [IpAddr; 2] = ["10.96.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    assert_eq!(s.cluster_ips, expected);
    assert_eq!(
        service("{clusterIP: None, ports: [{port: 1}]}").unwrap().cluster_ips,
        [] as [IpAddr; 0]
    );
    refuses(
        service,
        &[
            ("{clusterIP: none, ports: [{port: 1}]}", "`none` is no IP address"),
            ("{clusterIP: 7, ports: [{port: 1}]}", "must be an address or `None`"),
        ],
    );
}

#[test]
fn all_errors_of_a_document_are_told_at_once() {
    let errors = workload("{serviceAccount: a/b, address: x, capture: y, ports: [{number: 0}], more: 1}").unwrap_err();
    for says in ["a/b", "`x` is no IP", "capture", "number", "`more`"] {
        assert!(errors.iter().any(|error| error.contains(says)), "{says}: {errors:?}");
    }
}

#[test]
fn what_stands_in_for_a_policy_nobody_understands_denies_what_it_selects_or_more() {
    let instead = |spec: &str| {
        let text = format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: shop}}, spec: {spec}}}"
        );
        assert!(decoded(&text).is_err(), "{spec}");
        deny_what_it_selects(&object(&text)).unwrap()
    };
    let cart = [("app".to_owned(), "cart".to_owned())].into();
    assert_eq!(
        instead("{selector: {matchLabels: {app: cart}}, rulez: []}").selector,
        cart
    );
    // What cannot be read could only have narrowed it.
    for spec in [
        "{rulez: []}",
        "{selector: {matchLabels: {app: 7}}, rulez: []}",
        "{selector: {matchLabels: [app]}, rulez: []}",
        "{selector: {matchLabel: {app: cart}}}",
        "{selector: cart}",
        "[]",
    ] {
        let policy = instead(spec);
        assert!(policy.selector.is_empty(), "{spec}");
        assert_eq!((policy.action, policy.rules.len()), (Action::Deny, 1), "{spec}");
        assert!(
            policy.rules[0].from.is_empty() && policy.rules[0].to.is_empty(),
            "{spec}"
        );
    }
    assert_eq!(deny_what_it_selects(&object(&WORKLOAD.replace("SPEC", "{}"))), None);
}
