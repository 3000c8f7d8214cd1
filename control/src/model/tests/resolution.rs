//! What an app asked for, and what its proxy may do about it.

use super::*;

mod endpoints;

fn shop() -> Model {
    model(
        &[
            namespace("lab", "postern.dev/mode: discover"),
            service(
                "shop/cart",
                "clusterIPs: [10.96.0.10, 'fd00:96::10'], ports: [{name: http, port: 80, targetPort: web}]",
            ),
            workload(
                "shop/cart-1",
                "serviceAccount: cart, addresses: [10.0.0.1, 'fd00::1'], ports: [{number: 8080, name: web}]",
            ),
            workload(
                "shop/cart-2",
                "serviceAccount: cart-b, addresses: [10.0.0.2], ports: [{number: 8080, name: web}]",
            ),
            service("lab/probe", "ports: [{port: 80}]"),
            service("shop/udp", "ports: [{port: 53, protocol: UDP}]"),
        ]
        .concat(),
    )
}

/// On one machine: all share the loopback address.
fn bench() -> Model {
    model(
        &[
            service("shop/web", "ports: [{name: http, port: 80, targetPort: 8080}]"),
            workload(
                "shop/web",
                "serviceAccount: web, ports: [{number: 8080, listen: 21001, app: 21002}]",
            ),
            workload(
                "shop/pay",
                "serviceAccount: pay, ports: [{number: 9090, listen: 21003, app: 21004}]",
            ),
            workload(
                "shop/far",
                "serviceAccount: far, address: 10.0.0.9, ports: [{number: 80, listen: 21001, app: 21002}]",
            ),
            workload(
                "shop/old",
                "mesh: false, capture: explicit, ports: [{number: 5432, name: postgres, app: 21005}]",
            ),
        ]
        .concat(),
    )
}

fn meshed(state: State) -> wire::Meshed {
    match state {
        State::Meshed(meshed) => meshed,
        other => panic!("{other:?}"),
    }
}

fn unreachable(state: State) -> (String, String) {
    match state {
        State::Unreachable(unreachable) => (unreachable.reason, unreachable.detail),
        other => panic!("{other:?}"),
    }
}

fn outside(state: &State) -> bool {
    matches!(state, State::Outside(_))
}

fn at(model: &Model, ip: &str, port: u16) -> State {
    model.resolve_address(ip.parse().unwrap(), port)
}

/// `address:port instance` of each endpoint.
fn endpoints(meshed: &wire::Meshed) -> Vec<String> {
    let text = |e: &wire::Endpoint| {
        let ip: IpAddr = match <[u8; 4]>::try_from(&*e.ip) {
            Ok(v4) => v4.into(),
            Err(_) => <[u8; 16]>::try_from(&*e.ip).unwrap().into(),
        };
        format!("{ip}:{} {}", e.port, e.instance)
    };
    meshed.endpoints.iter().map(text).collect()
}

#[test]
fn a_short_name_is_one_of_the_callers_namespace() {
    let model = shop();
    let cart = meshed(model.resolve_name("shop", "cart", 80));
    assert_eq!((&*cart.service, &*cart.namespace, cart.port), ("cart", "shop", 80));
    assert_eq!(endpoints(&cart), ["10.0.0.1:8080 cart-1", "10.0.0.2:8080 cart-2"]);
    assert_eq!(unreachable(model.resolve_name("lab", "cart", 80)).0, "unknown_host");
}

#[test]
fn a_name_with_its_namespace_is_the_same_from_everywhere_in_every_form() {
    let model = shop();
    let cart = model.resolve_name("shop", "cart", 80);
    for name in [
        "cart.shop",
        "cart.shop.svc",
        "cart.shop.svc.cluster.local",
        "cart.shop.svc.cluster.local.",
        "CART.Shop",
    ] {
        assert_eq!(model.resolve_name("lab", name, 80), cart, "{name}");
    }
}

#[test]
fn an_unknown_host_or_port_is_unreachable_and_told_the_nearest() {
    let model = shop();
    for (name, port, reason, says) in [
        (
            "crat",
            80,
            "unknown_host",
            "no service `crat` in namespace `shop`; did you mean `cart`?",
        ),
        ("zzz", 80, "unknown_host", "no service `zzz` in namespace `shop`"),
        ("crat.shop", 80, "unknown_host", "did you mean `cart`?"),
        (
            "cart.shpo.svc",
            80,
            "unknown_host",
            "no namespace `shpo`; did you mean `shop`?",
        ),
        (
            "cart.shpo.svc.cluster.local",
            80,
            "unknown_host",
            "no namespace `shpo`; did you mean `shop`?",
        ),
        ("", 80, "unknown_host", "not a host name"),
        (".", 80, "unknown_host", "not a host name"),
        (
            "udp",
            53,
            "unknown_port",
            "service `udp` in namespace `shop` has no port 53; it has none",
        ),
        (
            "cart",
            8080,
            "unknown_port",
            "service `cart` in namespace `shop` has no port 8080; it has 80",
        ),
    ] {
        let (got, detail) = unreachable(model.resolve_name("shop", name, port));
        assert_eq!(got, reason, "{name}");
        assert!(detail.ends_with(says), "{name}: {detail}");
    }
}

#[test]
fn names_of_others_are_outside() {
    let model = shop();
    for name in ["example.com", "api.example.com", "cart.nowhere", "a..b"] {
        assert!(outside(&model.resolve_name("shop", name, 80)), "{name}");
    }
    let longest = ["a."; 126].concat() + "a";
    assert_eq!(longest.len(), 253);
    assert!(outside(&model.resolve_name("shop", &longest, 80)));
    assert_eq!(
        unreachable(model.resolve_name("shop", &(longest + "b"), 80)).1,
        "not a host name"
    );
}

/// `cart-0.cart.shop.svc.cluster.local` was outside: in clear to the Pod's own port.
#[test]
fn no_name_of_the_clusters_own_domain_is_outside() {
    let model = shop();
    for name in [
        "cart-0.cart.shop.svc",
        "cart-0.cart.shop.svc.cluster.local",
        "CART-0.cart.shop.svc.cluster.local.",
        "a.b.cart.nowhere.svc.cluster.local",
        "_http._tcp.cart.shop.svc.cluster.local",
        "cart.svc",
        "cart.svc.cluster.local",
        "svc.cluster.local",
        "cart..svc",
    ] {
        let (reason, detail) = unreachable(model.resolve_name("shop", name, 80));
        assert_eq!(reason, "unknown_host", "{name}");
        assert!(!detail.is_empty(), "{name}");
    }
    let (_, detail) = unreachable(model.resolve_name("shop", "cart-0.cart.shop.svc", 80));
    assert_eq!(
        detail,
        "`cart-0.cart.shop.svc` is in the cluster's own domain, where only `service.namespace.svc` is known"
    );
}

#[test]
fn an_address_written_as_a_name_is_that_address() {
    let model = shop();
    for name in ["10.0.0.1", "::ffff:10.0.0.1", "[::ffff:a00:1]"] {
        assert_eq!(
            model.resolve_name("lab", name, 8080),
            at(&model, "10.0.0.1", 8080),
            "{name}"
        );
    }
    for name in ["fd00::1", "[fd00::1]"] {
        assert_eq!(
            endpoints(&meshed(model.resolve_name("lab", name, 8080))),
            ["fd00::1:8080 cart-1"],
            "{name}"
        );
    }
    assert!(outside(&model.resolve_name("shop", "192.0.2.1", 80)));
}

#[test]
fn a_cluster_address_is_its_service_at_addresses_of_the_same_family_where_there_are_any() {
    let model = shop();
    let v4 = meshed(at(&model, "10.96.0.10", 80));
    assert_eq!((&*v4.service, v4.port), ("cart", 80));
    assert_eq!(endpoints(&v4), ["10.0.0.1:8080 cart-1", "10.0.0.2:8080 cart-2"]);
    assert_eq!(at(&model, "::ffff:10.96.0.10", 80), at(&model, "10.96.0.10", 80));
    assert_eq!(
        endpoints(&meshed(at(&model, "fd00:96::10", 80))),
        ["fd00::1:8080 cart-1", "10.0.0.2:8080 cart-2"]
    );
    assert_eq!(unreachable(at(&model, "10.96.0.10", 8080)).0, "unknown_port");
}

/// An app that named `localhost:PORT` of a meshed workload was sent to the app's own port, in clear.
#[test]
fn localhost_is_the_loopback_address() {
    let of_bench = bench();
    for name in ["localhost", "LOCALHOST.", "web.localhost"] {
        for port in [21001, 21002] {
            let found = meshed(of_bench.resolve_name("shop", name, port));
            assert_eq!(endpoints(&found), ["127.0.0.1:21001 web"], "{name}:{port}");
        }
        assert!(outside(&of_bench.resolve_name("shop", name, 22)), "{name}");
    }
    let of_v6 = model(&workload(
        "shop/six",
        "serviceAccount: six, address: '::1', ports: [{number: 80, listen: 21001, app: 21002}]",
    ));
    let found = meshed(of_v6.resolve_name("shop", "localhost", 21002));
    assert_eq!(endpoints(&found), ["::1:21001 six"]);
    assert!(outside(&of_v6.resolve_name("shop", "localhost", 22)));
}

/// The address that captured packets carry is compared in one notation.
#[test]
fn a_cluster_address_in_ipv4_mapped_notation_is_found() {
    let model = model(
        &[
            service("shop/cart", "clusterIP: '::ffff:10.96.0.10', ports: [{port: 80}]"),
            workload("shop/cart", "serviceAccount: a, address: 10.0.0.1"),
        ]
        .concat(),
    );
    assert_eq!(meshed(at(&model, "10.96.0.10", 80)).service, "cart");
    assert!(model.addresses().all(|ip| ip.is_ipv4()));
}

#[test]
fn a_workloads_own_address_leads_to_it_alone_under_the_name_of_its_one_service() {
    let model = shop();
    let one = meshed(at(&model, "10.0.0.2", 8080));
    assert_eq!((&*one.service, one.port), ("cart", 80));
    assert_eq!(endpoints(&one), ["10.0.0.2:8080 cart-2"]);
    assert_eq!(
        one.endpoints[0].spiffe_ids,
        ["spiffe://cluster.local/ns/shop/sa/cart-b"]
    );
    assert!(outside(&at(&model, "10.0.0.3", 8080)));
}

#[test]
fn before_a_captured_workload_every_port_is_its_proxys() {
    let model = shop();
    let any = meshed(at(&model, "10.0.0.1", 9999));
    assert_eq!(
        (&*any.service, any.port, any.protocol()),
        ("cart-1", 9999, wire::Protocol::Detect)
    );
    assert_eq!(endpoints(&any), ["10.0.0.1:9999 cart-1"]);
    assert_eq!(
        any.endpoints[0].alpn,
        ["postern/h1", "postern/h2", "postern/tcp", "postern/renew"]
    );
}

#[test]
fn an_explicit_workload_is_dialled_where_its_proxy_listens_also_by_who_knows_the_apps_port() {
    let model = bench();
    let by_name = meshed(model.resolve_name("shop", "web", 80));
    assert_eq!(endpoints(&by_name), ["127.0.0.1:21001 web"]);
    assert_eq!(by_name.endpoints[0].workload_port, 8080);
    for port in [21001, 21002] {
        let found = meshed(at(&model, "127.0.0.1", port));
        assert_eq!(endpoints(&found), ["127.0.0.1:21001 web"], "{port}");
    }
    assert_eq!(
        endpoints(&meshed(at(&model, "10.0.0.9", 21002))),
        ["10.0.0.9:21001 far"]
    );
    // The number is what policy calls the port; nobody listens there.
    let (reason, detail) = unreachable(at(&model, "10.0.0.9", 80));
    assert_eq!(
        (&*reason, &*detail),
        ("unknown_port", "10.0.0.9 is far, which has no port 80")
    );
}

#[test]
fn programs_that_share_loopback_are_told_apart_by_port_and_others_are_outside() {
    let model = bench();
    assert_eq!(
        endpoints(&meshed(at(&model, "127.0.0.1", 21003))),
        ["127.0.0.1:21003 pay"]
    );
    assert!(outside(&at(&model, "127.0.0.1", 8080)));
    assert!(outside(&at(&model, "127.0.0.1", 22)));
    let State::Unmeshed(old) = at(&model, "127.0.0.1", 21005) else {
        panic!()
    };
    assert_eq!((&*old.service, old.addresses[0].port), ("old", 21005));
}
