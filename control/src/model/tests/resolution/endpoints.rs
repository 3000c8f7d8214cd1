//! Who may answer, and how strictly it is called.

use postern_api::policy_wire::mode_to_wire;

use super::*;

#[test]
fn an_endpoint_says_who_may_answer_and_in_which_protocol() {
    for (protocol, on_wire, alpn) in [
        ("HTTP", wire::Protocol::Http1, &["postern/h1", "postern/renew"][..]),
        ("GRPC", wire::Protocol::Http2, &["postern/h2", "postern/renew"]),
        ("TCP", wire::Protocol::Tcp, &["postern/tcp", "postern/renew"]),
        (
            "DETECT",
            wire::Protocol::Detect,
            &["postern/h1", "postern/h2", "postern/tcp", "postern/renew"],
        ),
    ] {
        let yaml = workload(
            "shop/cart",
            &format!("serviceAccount: a, address: 10.0.0.1, ports: [{{number: 80, protocol: {protocol}}}]"),
        );
        let found = meshed(at(&model(&yaml), "10.0.0.1", 80));
        assert_eq!((found.protocol(), found.endpoints[0].protocol()), (on_wire, on_wire));
        let endpoint = &found.endpoints[0];
        assert_eq!(endpoint.alpn, alpn);
        assert_eq!(endpoint.spiffe_ids, ["spiffe://cluster.local/ns/shop/sa/a"]);
        assert_eq!(
            (&*endpoint.instance, &*endpoint.workload, &*endpoint.namespace),
            ("cart", "cart", "shop")
        );
    }
}

#[test]
fn a_foreign_peer_is_expected_by_its_id_without_an_instance_and_never_called_in_clear() {
    let of = |port: &str, front: &str| {
        let yaml = [
            workload(
                "shop/cart",
                &format!("serviceAccount: a, capture: foreign, address: 10.0.0.1, ports: [{port}]"),
            ),
            service("shop/cart", &format!("ports: [{front}]")),
        ];
        model(&yaml.concat()).resolve_name("shop", "cart", 80)
    };
    for (port, alpn) in [
        ("{number: 80, protocol: HTTP}", &["http/1.1"][..]),
        ("{number: 80, protocol: HTTP2}", &["h2"]),
        ("{number: 80}", &["http/1.1", "h2"]),
    ] {
        let found = meshed(of(port, "{port: 80}"));
        let endpoint = &found.endpoints[0];
        assert_eq!(endpoint.alpn, alpn);
        assert_eq!((&*endpoint.instance, &*endpoint.workload), ("", "cart"));
        assert_eq!(endpoint.spiffe_ids, ["spiffe://cluster.local/ns/shop/sa/a"]);
    }
    // A Service that calls the port opaque leaves nothing to offer.
    assert_eq!(
        unreachable(of("{number: 80}", "{port: 80, name: tcp}")).0,
        "no_identity"
    );
    // It has no proxy before every port.
    let yaml = workload(
        "shop/cart",
        "serviceAccount: a, capture: foreign, address: 10.0.0.1, ports: [{number: 80}]",
    );
    assert_eq!(unreachable(at(&model(&yaml), "10.0.0.1", 81)).0, "unknown_port");
}

#[test]
fn what_is_known_to_be_out_of_the_mesh_passes_in_clear_and_beside_meshed_ones_only_it_does() {
    let alone = [
        service("shop/db", "ports: [{port: 5432}]"),
        workload("shop/db-1", "mesh: false, address: 10.0.0.1"),
    ];
    let State::Unmeshed(unmeshed) = model(&alone.concat()).resolve_name("shop", "db", 5432) else {
        panic!()
    };
    assert_eq!((&*unmeshed.service, &*unmeshed.namespace), ("db", "shop"));
    assert_eq!(
        unmeshed.addresses,
        [wire::SocketAddress {
            ip: vec![10, 0, 0, 1],
            port: 5432
        }]
    );
    let both = [
        &alone.concat(),
        &*workload("shop/db-2", "serviceAccount: db, address: 10.0.0.2"),
    ]
    .concat();
    let mixed = meshed(model(&both).resolve_name("shop", "db", 5432));
    let known: Vec<_> = mixed
        .endpoints
        .iter()
        .map(|e| (&*e.workload, e.spiffe_ids.len(), e.alpn.len()))
        .collect();
    assert_eq!(known, [("db-1", 0, 0), ("db-2", 1, 4)]);
}

#[test]
fn whom_nobody_knows_is_not_reached_in_protect_whatever_the_way() {
    let yaml = [
        namespace("shop", "postern.dev/inject: enabled"),
        service("shop/db", "clusterIP: 10.96.0.1, ports: [{port: 80}]"),
        workload("shop/db-1", "address: 10.0.0.1"),
    ]
    .concat();
    let alone = model(&yaml);
    for state in [
        alone.resolve_name("shop", "db", 80),
        at(&alone, "10.96.0.1", 80),
        at(&alone, "10.0.0.1", 80),
        at(&alone, "10.0.0.1", 12345),
    ] {
        let (reason, detail) = unreachable(state);
        assert_eq!(reason, "no_identity");
        assert!(
            detail.starts_with("workload db-1 of namespace `shop` has no known identity"),
            "{detail}"
        );
    }
    // Beside one that is known it is left out.
    let with = model(&[&*yaml, &workload("shop/db-2", "serviceAccount: db, address: 10.0.0.2")].concat());
    assert_eq!(
        endpoints(&meshed(with.resolve_name("shop", "db", 80))),
        ["10.0.0.2:80 db-2"]
    );
}

#[test]
fn a_service_without_endpoints_is_meshed_and_empty() {
    let shop = shop();
    let probe = meshed(shop.resolve_name("lab", "probe", 80));
    assert_eq!((probe.endpoints.len(), probe.mode()), (0, wire::Mode::Discover));
    let yaml = service("shop/gone", "ports: [{name: grpc, port: 80}]");
    let gone = meshed(model(&yaml).resolve_name("shop", "gone", 80));
    assert_eq!(
        (gone.protocol(), gone.mode()),
        (wire::Protocol::Http2, wire::Mode::Protect)
    );
}

#[test]
fn a_destination_is_as_strict_as_the_strictest_behind_it_and_detected_where_they_differ() {
    let model = model(
        &[
            namespace("shop", "postern.dev/mode: discover"),
            service("shop/cart", "ports: [{port: 80}]"),
            labelled(
                "shop/cart-1",
                "postern.dev/mode: monitor",
                "serviceAccount: a, address: 10.0.0.1, ports: [{number: 80, protocol: HTTP}]",
            ),
            workload(
                "shop/cart-2",
                "serviceAccount: a, address: 10.0.0.2, ports: [{number: 80, protocol: TCP}]",
            ),
        ]
        .concat(),
    );
    let cart = meshed(model.resolve_name("shop", "cart", 80));
    assert_eq!(cart.mode, mode_to_wire(Mode::Monitor) as i32);
    assert_eq!(cart.protocol(), wire::Protocol::Detect);
    let own: Vec<_> = cart.endpoints.iter().map(wire::Endpoint::protocol).collect();
    assert_eq!(own, [wire::Protocol::Http1, wire::Protocol::Tcp]);
}
