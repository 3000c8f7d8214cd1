//! Random pods: whatever comes is refused with a reason, or injected so that all invariants hold.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::invariants;
use crate::world::Case;

/// Now and then.
fn maybe(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Option<Value>> {
    proptest::option::of(value)
}

fn object(fields: Vec<(&'static str, Option<Value>)>) -> Value {
    let there = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(there.collect::<Map<_, _>>())
}

fn port() -> BoxedStrategy<Value> {
    prop_oneof![
        60 => (1..=65_535_u16).prop_map(|port| json!(port)),
        20 => Just(json!("http")),
        1 => Just(json!("no-such-port")),
        1 => (14_999..=15_022_i32).prop_map(|port| json!(port)),
        1 => (-2..=70_000_i32).prop_map(|port| json!(port)),
    ]
    .boxed()
}

/// There are no gRPC hooks.
fn action(grpc: u32) -> BoxedStrategy<Value> {
    let host = maybe(prop_oneof![
        Just(json!("localhost")),
        Just(json!("")),
        Just(json!("10.0.0.1"))
    ]);
    let path = maybe("/?[a-zß$()%/#?=\" ]{0,8}".prop_map(Value::from));
    let headers = maybe(Just(json!([{"name": "X-A", "value": "$(B) $$ é"}])));
    let http = (port(), host, path, headers).prop_map(|(port, host, path, headers)| {
        json!({"httpGet": object(vec![("port", Some(port)), ("host", host), ("path", path), ("httpHeaders", headers)])})
    });
    let tcp = port().prop_map(|port| json!({"tcpSocket": {"port": port}}));
    let of_grpc = (1..=65_535_i32).prop_map(|port| json!({"grpc": {"port": port, "service": null}}));
    prop_oneof![3 => http, 2 => tcp, grpc => of_grpc, 1 => Just(json!({"exec": {"command": ["true"]}})), 1 => Just(json!({}))]
        .boxed()
}

fn probe() -> BoxedStrategy<Value> {
    (action(1), proptest::option::of(0..=5_000_i32))
        .prop_map(|(mut probe, timeout)| {
            if let Some(seconds) = timeout {
                probe["timeoutSeconds"] = json!(seconds);
            }
            probe
        })
        .boxed()
}

fn security() -> impl Strategy<Value = Value> {
    prop_oneof![
        9 => Just(json!({"runAsUser": 1000})),
        9 => Just(json!({"capabilities": {"add": ["NET_RAW"]}})),
        1 => Just(json!({"runAsUser": 15_371})),
    ]
}

fn container(name: String) -> BoxedStrategy<Value> {
    let lifecycle = (maybe(action(0)), maybe(action(0)));
    let lifecycle = lifecycle.prop_map(|(start, stop)| object(vec![("postStart", start), ("preStop", stop)]));
    let ports = Just(json!([{"name": "http", "containerPort": 8080}]));
    let probes = (maybe(probe()), maybe(probe()), maybe(probe()));
    (
        probes,
        maybe(lifecycle),
        ports.prop_map(Some),
        proptest::option::weighted(0.2, security()),
    )
        .prop_map(move |((liveness, readiness, startup), lifecycle, ports, security)| {
            object(vec![
                ("name", Some(json!(name))),
                ("image", Some(json!("x:1"))),
                ("livenessProbe", liveness),
                ("readinessProbe", readiness),
                ("startupProbe", startup),
                ("lifecycle", lifecycle),
                ("ports", ports),
                ("securityContext", security),
            ])
        })
        .boxed()
}

fn annotations() -> BoxedStrategy<Value> {
    let one = prop_oneof![
        Just(("team", "shop")),
        Just(("a/b~c", "slash and tilde")),
        Just(("prometheus.io/scrape", "true")),
        Just(("prometheus.io/scrape", "false")),
        Just(("prometheus.io/port", "9090")),
        Just(("prometheus.io/port", "15020")),
        Just(("prometheus.io/port", "x")),
        Just(("prometheus.io/path", "/$(X)")),
        Just(("prometheus.io/scheme", "https")),
        Just(("postern.dev/opaque-ports", "3306")),
        Just(("postern.dev/drain-seconds", "7")),
        Just(("postern.dev/skip-outbound-ports", "25")),
        Just(("postern.dev/proxy-memory-request", "1Gi")),
        Just(("postern.dev/log-level", "debug")),
        Just(("postern.dev/workload-api", "enabled")),
    ];
    let map = proptest::collection::vec(one, 0..5);
    map.prop_map(|pairs| {
        pairs
            .into_iter()
            .map(|(k, v)| (k.to_owned(), json!(v)))
            .collect::<Map<_, _>>()
            .into()
    })
    .boxed()
}

prop_compose! {
    fn pod()(
        apps in (1..4_usize).prop_flat_map(|n| (0..n).map(|i| container(format!("app-{i}"))).collect::<Vec<_>>()),
        init in maybe((0..3_usize).prop_flat_map(|n| (0..n).map(|i| container(format!("init-{i}"))).collect::<Vec<_>>()).prop_map(Value::from)),
        annotations in maybe(annotations()),
        volumes in maybe(Just(json!([{"name": "tmp", "emptyDir": {}}]))),
        grace in maybe((-1..=120_i32).prop_map(Value::from)),
        host_network in proptest::bool::weighted(0.05),
    ) -> Value {
        json!({
            "metadata": object(vec![("annotations", annotations)]),
            "spec": object(vec![
                ("serviceAccountName", Some(json!("web"))),
                ("containers", Some(apps.into())),
                ("initContainers", init),
                ("volumes", volumes),
                ("terminationGracePeriodSeconds", grace),
                ("hostNetwork", host_network.then_some(json!(true))),
            ]),
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn applying_twice_is_applying_once_and_all_invariants_hold(pod in pod(), mutual_tls: bool, annotated: bool) {
        let mut case = Case::of(pod);
        case.settings.metrics.mutual_tls = mutual_tls;
        case.settings.metrics.annotations = annotated;
        invariants::hold("a random pod", &case);
    }
}
