//! Peers that are not ours: curl, OpenSSL and Envoy with SVIDs of our CA.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod world;

use std::fs;

use postern_e2e::lab::Pod;
use postern_e2e::process::{Process, eventually};
use postern_e2e::requires;
use world::World;
use world::envoy::{self, Envoy};
use world::metrics::Scrape;

const PROGRAMS: [&str; 5] = ["ip", "setpriv", "curl", "nginx", "openssl"];

#[test]
fn curl_with_an_svid_is_served_over_http1_and_http2_and_judged_by_its_identity() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let world = World::serving("1h");
    let curl = |name: &str, more: &str, address: &str| {
        let dir = world
            .mesh
            .svid(&world.outside, "shop", name, &format!("{name}-by-curl"));
        // curl can match a server's name only to DNS and IP SANs, and an SVID has a URI alone: hence --insecure. That
        // our chain verifies is asked of openssl and Envoy below.
        world.outside.prints(&format!(
            "curl -sS -i -m 10 --insecure --cert {0}/svid.pem --key {0}/key.pem --cacert {0}/bundle.pem {more} \
             https://{address}:8080/",
            dir.display()
        ))
    };
    for address in [world.cart.v4.clone(), format!("[{}]", world.cart.v6)] {
        let answer = curl("web", "--http1.1", &address);
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("welcome"),
            "{answer}"
        );
        let answer = curl("web", "--http2", &address);
        assert!(
            answer.starts_with("HTTP/2 200") && answer.contains("welcome"),
            "{answer}"
        );
        let answer = curl("web", "--no-alpn", &address);
        assert!(answer.starts_with("HTTP/1.1 200"), "without ALPN: {answer}");
        let answer = curl("mallory", "--http2", &address);
        assert!(answer.starts_with("HTTP/2 403"), "{answer}");
        assert!(answer.contains("x-postern-decision-id: "), "{answer}");
    }
}

#[test]
fn openssl_verifies_our_chain_and_who_proves_nothing_is_refused_with_a_counted_reason() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let world = World::serving("1h");
    let good = world.mesh.svid(&world.outside, "shop", "web", "web-by-openssl");
    let good = good.display();
    let connect = |more: &str| {
        world.outside.prints(&format!(
            "printf 'GET / HTTP/1.1\\r\\nhost: cart\\r\\nconnection: close\\r\\n\\r\\n' | timeout 10 openssl s_client \
             -connect {}:8080 -ign_eof -CAfile {good}/bundle.pem -verify_return_error {more}",
            world.cart.v4
        ))
    };
    let with_svid = format!("-cert {good}/svid.pem -cert_chain {good}/svid.pem -key {good}/key.pem");
    let said = connect(&with_svid);
    assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
    assert!(said.contains("New, TLSv1.3") && said.contains("HTTP/1.1 200"), "{said}");
    assert!(
        !said.contains("New Session Ticket"),
        "resumption would skip the verifier: {said}"
    );

    // Somebody else's certificate with the same name in it.
    let forged = world.lab.directory().join("forged");
    fs::create_dir_all(&forged).unwrap();
    postern_e2e::lab::sh(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=web \
         -addext subjectAltName=URI:spiffe://cluster.local/ns/shop/sa/web -addext basicConstraints=critical,CA:FALSE \
         -addext keyUsage=critical,digitalSignature -keyout {0}/key.pem -out {0}/svid.pem 2>/dev/null && \
         chmod 644 {0}/key.pem",
        forged.display()
    ));
    let forged = format!("-cert {0}/svid.pem -key {0}/key.pem", forged.display());
    let old = format!("-tls1_2 {with_svid}");
    for (what, arguments) in [("no certificate", ""), ("a forged one", &forged), ("TLS 1.2", &old)] {
        let before = failures(&world);
        let said = connect(arguments);
        assert!(!said.contains("HTTP/1.1 "), "{what}: {said}");
        assert!(said.contains("alert"), "{what} is refused by TLS itself: {said}");
        eventually("the failure's reason", || (failures(&world) > before).then_some(()));
    }
    let scrape = Scrape::proxy(&world.cart);
    for reason in ["no_certificate", "unknown_issuer", "incompatible_tls"] {
        let label = format!("reason=\"{reason}\"");
        let count = scrape.sum(
            "postern_proxy_handshake_failures_total",
            &["direction=\"inbound\"", &label],
        );
        assert!(count >= 1.0, "{reason}: {}", scrape.0);
    }
}

fn failures(world: &World) -> u64 {
    Scrape::proxy(&world.cart).sum("postern_proxy_handshake_failures_total", &["direction=\"inbound\""]) as u64
}

#[test]
fn envoy_as_a_client_verifies_us_and_is_authorized_by_its_identity() {
    let Some(binary) = envoy::binary() else { return };
    if !requires(&PROGRAMS, true) {
        return;
    }
    let world = World::serving("1h");
    for (name, status) in [("web", "200"), ("mallory", "403")] {
        let svid = world
            .mesh
            .svid(&world.outside, "shop", name, &format!("{name}-by-envoy"));
        let mut envoy = Envoy::new(&svid);
        let mut port = 9_000;
        for address in [&world.cart.v4, &world.cart.v6] {
            for http2 in [false, true] {
                envoy.calls(port, address, 8_080, http2, "spiffe://cluster.local/ns/shop/sa/cart");
                port += 1;
            }
        }
        envoy.calls(
            9_100,
            &world.cart.v4,
            8_080,
            true,
            "spiffe://cluster.local/ns/shop/sa/somebody-else",
        );
        let mut running = start(&world, &world.outside, &binary, name, &envoy);
        let ask = |port: u16| {
            world.outside.prints(&format!(
                "curl -s -o /dev/null -w '%{{http_code}}' -m 10 http://127.0.0.1:{port}/"
            ))
        };
        running.wait_for("listeners", || (ask(9_000) != "000").then_some(()));
        for port in 9_000..port {
            assert_eq!(ask(port), status, "{name} through {port}: {}", running.output());
        }
        // It looks at who we are, not only at our root.
        assert_eq!(ask(9_100), "503", "{name}: cart is not somebody else");
    }
}

#[test]
fn envoy_as_a_server_is_called_with_our_identity_over_http1_and_http2() {
    let Some(binary) = envoy::binary() else { return };
    if !requires(&PROGRAMS, true) {
        return;
    }
    let world = World::new("1h");
    let legacy = &world.outside;
    world.mesh.write(
        "legacy.yaml",
        &format!(
            "apiVersion: postern.dev/v1alpha1
kind: Workload
metadata: {{name: legacy, namespace: shop}}
spec:
  serviceAccount: legacy
  capture: foreign
  addresses: [\"{}\", \"{}\"]
  ports:
  - {{name: http, number: 8443, protocol: HTTP1}}
  - {{name: http2, number: 8444, protocol: HTTP2}}
  - {{name: wrong, number: 8445, protocol: HTTP1}}
",
            legacy.v4, legacy.v6
        ),
    );
    let svid = world.mesh.svid(legacy, "shop", "legacy", "legacy");
    let mut envoy = Envoy::new(&svid);
    envoy.serves(8_443, "spiffe://cluster.local/ns/shop/sa/web");
    envoy.serves(8_444, "spiffe://cluster.local/ns/shop/sa/web");
    let _good = start(&world, legacy, &binary, "legacy", &envoy);
    // A valid SVID, but not that of legacy.
    let other = world.mesh.svid(legacy, "shop", "mallory", "impostor");
    let mut envoy = Envoy::new(&other);
    envoy.serves(8_445, "spiffe://cluster.local/ns/shop/sa/web");
    let _wrong = start(&world, legacy, &binary, "impostor", &envoy);
    let listens = |port: u16| legacy.run(&format!("ss -tln | grep -q ':{port} '")).status.success();
    eventually("both Envoys", || (8_443..=8_445).all(listens).then_some(()));

    for address in [legacy.v4.clone(), format!("[{}]", legacy.v6)] {
        for (port, more) in [(8_443, "--http1.1"), (8_444, "--http2-prior-knowledge")] {
            let call = format!("curl -s -i -m 10 {more} http://{address}:{port}/");
            let said = eventually("control's new document to arrive", || {
                let said = world.web.prints(&call);
                said.contains("hello from envoy").then_some(said)
            });
            assert!(
                said.contains("to spiffe://cluster.local/ns/shop/sa/web over TLSv1.3"),
                "{said}"
            );
        }
    }
    let said = world
        .web
        .prints(&format!("curl -s -i -m 10 http://{}:8445/", legacy.v4));
    assert!(
        said.starts_with("HTTP/1.1 502") && said.contains("wrong_peer"),
        "{said}"
    );
    // Envoy judges us as well.
    let said = world
        .mallory
        .prints(&format!("curl -s -i -m 10 http://{}:8443/", legacy.v4));
    assert!(
        !said.contains("hello from envoy") && said.starts_with("HTTP/1.1 50"),
        "{said}"
    );
}

fn start(world: &World, pod: &Pod, binary: &str, name: &str, envoy: &Envoy) -> Process {
    let file = world.lab.directory().join(format!("envoy-{name}.json"));
    fs::write(&file, envoy.configuration().to_string()).unwrap();
    pod.start_as_root(
        &format!("envoy-{name}"),
        &format!(
            "{binary} -c {} --concurrency 1 --disable-hot-restart --log-level warning",
            file.display()
        ),
    )
}
