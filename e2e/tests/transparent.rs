//! Stock programs through transparent capture, in network namespaces: they know nothing of the mesh.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod world;

use std::time::Duration;

use postern_e2e::process::eventually;
use postern_e2e::requires;
use world::metrics::Scrape;
use world::{World, nonce};

#[test]
fn curl_and_nginx_talk_over_ipv4_and_ipv6_and_only_tls_1_3_crosses_the_wire() {
    let programs = [
        "ip", "setpriv", "curl", "nginx", "wrk", "dumpcap", "tshark", "python3", "ss",
    ];
    if !requires(&programs, true) {
        return;
    }
    let world = World::new("1h");
    let _lines = world.serve_lines();
    let capture = world.capture_wire();
    let secret = nonce();
    world.write_page("secret.txt", &secret);
    for address in [world.cart.v4.clone(), format!("[{}]", world.cart.v6)] {
        let body = world
            .web
            .prints(&format!("curl -s -m 10 http://{address}:8080/secret.txt?q={secret}"));
        assert_eq!(body.trim(), secret, "through {address}");
        let wrk = world.web.prints(&format!(
            "wrk -c 8 -t 1 -d 1 -H 'x-nonce: {secret}' http://{address}:8080/secret.txt"
        ));
        assert!(wrk.contains("Requests/sec") && !wrk.contains("Non-2xx"), "{wrk}");
        let body = world.web.prints(&format!(
            "curl -s -m 10 --http2-prior-knowledge -H 'x-nonce: {secret}' http://{address}:8082/secret.txt"
        ));
        assert_eq!(body.trim(), secret, "HTTP/2 through {address}");
    }
    for address in [&world.cart.v4, &world.cart.v6] {
        // A stream that is no HTTP, closed by its client first.
        let echo = format!(
            "import socket; s = socket.create_connection(('{address}', 7000)); s.sendall(b'{secret}\\n'); \
             s.shutdown(socket.SHUT_WR); print(s.makefile().read())"
        );
        let said = world.web.prints(&format!("python3 -c \"{echo}\""));
        assert_eq!(said.trim(), format!("echo {secret}"));
    }
    let (versions, plain) = capture.finish(&world);
    assert_eq!(versions, ["0x0304"], "TLS 1.3 only");
    assert!(!plain.contains(&secret), "the nonce crossed the wire in clear");
}

#[test]
fn a_plaintext_client_from_outside_is_reset() {
    if !requires(&["ip", "setpriv", "curl", "nginx"], true) {
        return;
    }
    let world = World::new("1h");
    for address in [world.cart.v4.clone(), format!("[{}]", world.cart.v6)] {
        let out = world.outside.prints(&format!("curl -s -S -m 5 http://{address}:8080/"));
        // 56: connection reset by peer; some stacks see 52, an empty answer.
        assert!(out.contains("(56)"), "{address}: {out}");
    }
    let metrics = world.cart.prints("curl -s http://127.0.0.1:15020/metrics");
    assert!(
        metrics.contains("plaintext"),
        "the refusal is counted with its reason: {metrics}"
    );
}

#[test]
fn an_identity_without_a_rule_gets_403_with_a_decision_id_that_the_access_log_and_metric_carry() {
    if !requires(&["ip", "setpriv", "curl", "nginx"], true) {
        return;
    }
    let world = World::new("1h");
    let answer = world
        .mallory
        .prints(&format!("curl -s -i -m 10 http://{}:8080/", world.cart.v4));
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let id = answer
        .lines()
        .find_map(|l| l.strip_prefix("x-postern-decision-id: "))
        .unwrap_or_else(|| panic!("{answer}"));
    let line = eventually("access log line", || {
        world
            .mesh
            .access_log("cart")
            .into_iter()
            .find(|line| line["decision_id"] == id.trim())
    });
    assert_eq!(line["reason"], "no_allow_rule", "{line}");
    let metrics = world.cart.prints("curl -s http://127.0.0.1:15020/metrics");
    assert!(
        metrics
            .lines()
            .any(|l| l.starts_with("postern_proxy_denials_total{") && l.contains("no_allow_rule")),
        "{metrics}"
    );
    // A rule that denies is named by policy and reason.
    let answer = world
        .web
        .prints(&format!("curl -s -i -m 10 http://{}:8080/admin", world.cart.v4));
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let metrics = world.cart.prints("curl -s http://127.0.0.1:15020/metrics");
    let named = |l: &str| {
        l.starts_with("postern_proxy_denials_total{") && l.contains("shop/no-admin") && l.contains("deny_rule")
    };
    assert!(metrics.lines().any(named), "{metrics}");
}

#[test]
fn no_spelling_of_a_denied_path_gets_past_us_to_a_real_nginx() {
    if !requires(&["ip", "setpriv", "curl", "nginx"], true) {
        return;
    }
    let world = World::new("1h");
    for path in [
        "/admin",
        "/admin/",
        "/admin/index.html",
        "/admin?x",
        "/admin%3fx",
        "//admin/",
        "/./admin/",
        "/x/../admin/",
        "/admin/x/../",
        "/%61dmin/",
        "/%2e/admin/",
        "/x/%2e%2e/admin/",
        "/x/.%2E/admin/",
        "/%2fadmin/",
        "/x%2f..%2fadmin/",
        "/x/..%2fadmin/",
        "/admin%2f",
        "/admin%2findex.html",
        "/admin;x/",
        "/x/..;/admin/",
        "/admin%00/",
        "/admin%20/",
        "/\\\\admin/",
        "/%5cadmin/",
        "/%2561dmin/",
        "/admin/.",
        "/admin#x",
    ] {
        let answer = world.web.prints(&format!(
            "curl -sS -i -m 10 --path-as-is 'http://{}:8080{path}'",
            world.cart.v4
        ));
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(["400", "403", "404"].contains(&status), "{path}: {answer}");
        assert!(!answer.contains("admin\n"), "{path}: {answer}");
    }
    assert_eq!(world.code(&world.web, 8_080, "/"), "200");
}

#[test]
fn grpc_streams_both_ways_with_trailers_and_a_denial_is_status_7() {
    let Some(python) = world::python(&["grpc"]) else { return };
    if !requires(&["ip", "setpriv", "curl", "nginx"], true) {
        return;
    }
    let world = World::new("1h");
    let program = world::program("grpc_echo.py");
    let mut server = world
        .cart
        .start_as_root("grpc", &format!("{python} {program} serve 50051"));
    server.wait_for("server", || server_says(&world, "cart-grpc", "serving"));
    for address in [world.cart.v4.clone(), format!("[{}]", world.cart.v6)] {
        let said = run(&world.web, &format!("{python} {program} unary {address}:50051 hello"));
        assert_eq!(said.trim(), "hello length 5", "trailers arrive");
        let said = run(&world.web, &format!("{python} {program} chat {address}:50051 50"));
        assert_eq!(said.trim(), "chatted 50 echo 49");
    }
    let said = run(
        &world.mallory,
        &format!("{python} {program} unary {}:50051 hello", world.cart.v4),
    );
    assert!(said.starts_with("status 7"), "{said}");
    assert!(said.contains("x-postern-decision-id"), "{said}");
}

#[test]
fn websockets_upgrade_and_a_denied_one_never_reaches_the_app() {
    let Some(python) = world::python(&["websockets"]) else {
        return;
    };
    if !requires(&["ip", "setpriv", "curl", "nginx"], true) {
        return;
    }
    let world = World::new("1h");
    let program = world::program("websocket_echo.py");
    let mut server = world
        .cart
        .start_as_root("ws", &format!("{python} {program} serve 8090"));
    server.wait_for("server", || server_says(&world, "cart-ws", "serving"));
    for address in [world.cart.v4.clone(), format!("[{}]", world.cart.v6)] {
        let said = run(
            &world.web,
            &format!("{python} {program} say ws://{address}:8090/feed hello"),
        );
        assert_eq!(said.trim(), "echo hello");
    }
    let said = run(
        &world.mallory,
        &format!("{python} {program} say ws://{}:8090/feed hello", world.cart.v4),
    );
    assert!(said.starts_with("status 403"), "{said}");
}

#[test]
fn a_server_that_speaks_first_is_heard_and_a_stranger_is_not_let_in() {
    let Some(python) = world::python(&["aiosmtpd"]) else {
        return;
    };
    if !requires(&["ip", "setpriv", "curl", "nginx"], true) {
        return;
    }
    let world = World::new("1h");
    let program = world::program("mail.py");
    let mut server = world
        .cart
        .start_as_root("mail", &format!("{python} {program} serve 2525"));
    server.wait_for("server", || server_says(&world, "cart-mail", "serving"));
    for address in [&world.cart.v4, &world.cart.v6] {
        let subject = nonce();
        assert_eq!(
            run(&world.web, &format!("{python} {program} send {address} 2525 {subject}")).trim(),
            "sent"
        );
        server.wait_for("the mail", || server_says(&world, "cart-mail", &subject));
    }
    let subject = nonce();
    let said = run(
        &world.mallory,
        &format!("{python} {program} send {} 2525 {subject}", world.cart.v4),
    );
    assert!(said.starts_with("refused"), "{said}");
    assert!(!server.output().contains(&subject));
}

#[test]
fn an_app_that_calls_its_own_service_is_authorized_like_any_other() {
    if !requires(&["ip", "setpriv", "curl", "nginx"], true) {
        return;
    }
    let world = World::new("1h");
    let call = format!(
        "curl -s -o /dev/null -w '%{{http_code}}' -m 10 http://{}:8080/",
        world.cart.v4
    );
    assert_eq!(world.cart.prints(&call), "403", "cart may not call itself yet");
    world.mesh.write("self.yaml", world::ALLOW_SELF);
    eventually("the new policy", || (world.cart.prints(&call) == "200").then_some(()));
    // Loopback never left the app; it is not the mesh's.
    assert_eq!(world.cart.prints(&call.replace(&world.cart.v4, "127.0.0.1")), "200");
}

#[test]
fn the_app_is_told_who_calls_whatever_the_caller_claims() {
    if !requires(&["ip", "setpriv", "curl", "nginx"], true) {
        return;
    }
    let world = World::new("1h");
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    for claims in [
        "",
        "-H 'x-postern-source: spiffe://cluster.local/ns/shop/sa/admin'",
        "-H 'X_Postern_Source: spiffe://cluster.local/ns/shop/sa/admin'",
        "-H 'x-forwarded-client-cert: URI=spiffe://cluster.local/ns/shop/sa/admin'",
        "-H 'connection: x-postern-source'",
        "-H 'x-postern-source: a' -H 'x-postern-source: b'",
    ] {
        let said = world
            .web
            .prints(&format!("curl -s -m 10 {claims} http://{}:8080/who", world.cart.v4));
        assert!(
            said.starts_with(&format!("source={web} certificate=")),
            "{claims}: {said}"
        );
        assert!(
            said.contains(&format!("URI={web}")) && !said.contains("admin"),
            "{claims}: {said}"
        );
    }
}

#[test]
fn what_is_not_of_the_mesh_is_reached_as_before_and_counted_as_such() {
    if !requires(&["ip", "setpriv", "curl", "nginx", "python3"], true) {
        return;
    }
    let world = World::new("1h");
    let pages = world.lab.directory().join("pages");
    let mut server = world.outside.start_as_root(
        "http",
        &format!("python3 -m http.server --bind :: --directory {} 8000", pages.display()),
    );
    server.wait_for("listener", || {
        world
            .outside
            .run("ss -tln | grep -q ':8000 '")
            .status
            .success()
            .then_some(())
    });
    for address in [world.outside.v4.clone(), format!("[{}]", world.outside.v6)] {
        let said = world.web.prints(&format!("curl -s -m 10 http://{address}:8000/"));
        assert_eq!(said, "welcome\n", "{address}");
    }
    let counted = Scrape::proxy(&world.web).sum(
        "postern_proxy_requests_total",
        &["direction=\"outbound\"", "service=\"outside\"", "tls=\"none\""],
    );
    assert!(counted >= 2.0, "{counted}");
}

#[test]
fn a_service_address_leads_to_its_workloads_port() {
    if !requires(&["ip", "setpriv", "curl", "nginx"], true) {
        return;
    }
    let world = World::new("1h");
    world.mesh.write(
        "service.yaml",
        "
apiVersion: v1
kind: Service
metadata: {name: basket, namespace: shop}
spec:
  clusterIPs: [10.99.0.1, 'fd99::1']
  selector: {app: cart}
  ports: [{name: http, port: 80, targetPort: http}]
",
    );
    for address in ["10.99.0.1", "[fd99::1]"] {
        let call = format!("curl -s -m 2 http://{address}/");
        eventually("the new Service", || {
            (world.web.prints(&call) == "welcome\n").then_some(())
        });
        let denied = world.mallory.prints(&format!("curl -s -i -m 10 http://{address}/"));
        assert!(denied.starts_with("HTTP/1.1 403"), "{denied}");
    }
    let answer = world.web.prints("curl -sS -i -m 10 http://10.99.0.1:81/");
    assert!(!answer.contains("HTTP/1.1 200"), "it has no such port: {answer}");
}

#[test]
fn no_token_or_key_is_in_anything_that_anybody_prints() {
    if !requires(&["ip", "setpriv", "curl", "nginx"], true) {
        return;
    }
    let mut world = World::new("1h");
    world.mesh.hand_token("shop", "web", "web");
    let token = std::fs::read_to_string(world.lab.directory().join("mesh/proxy-web/token")).unwrap();
    // Used, and then used again, which is refused.
    for outcome in ["first SVID for", "of no use"] {
        world.client_proxies.remove(0).kill();
        world
            .client_proxies
            .insert(0, world.mesh.proxy_again(&world.web, "web", &[]));
        let web = &mut world.client_proxies[0];
        let (log, before) = (web.output_file(), web.output().matches(outcome).count());
        web.wait_for(outcome, || {
            let said = std::fs::read_to_string(&log).unwrap();
            (said.matches(outcome).count() > before).then_some(())
        });
    }
    let mut printed = String::new();
    for file in files(world.lab.directory())
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "log"))
    {
        printed.push_str(&std::fs::read_to_string(file).unwrap_or_default());
    }
    for (pod, port) in [
        (&world.web, 15_020),
        (&world.mesh.pod, 15_021),
        (&world.mesh.pod, 15_022),
    ] {
        printed.push_str(&Scrape::of(pod, port).0);
    }
    assert!(printed.contains("first SVID for"), "the logs were read");
    // postern-join.1.<id>.<secret>.<root>: all but the secret may be shown.
    let secret = token.split('.').nth(3).unwrap();
    assert!(
        secret.len() > 40 && !printed.contains(secret),
        "a token's secret was printed"
    );
    assert!(!printed.contains("PRIVATE KEY"));
}

#[test]
fn the_listener_ports_of_a_proxy_are_no_destination() {
    if !requires(&["ip", "setpriv", "curl", "nginx"], true) {
        return;
    }
    let world = World::new("1h");
    let svid = world.mesh.svid(&world.outside, "shop", "web", "web-outside");
    for port in [15_001, 15_002, 15_006] {
        // From another machine, in clear and as somebody who may call cart.
        let out = world
            .outside
            .prints(&format!("curl -sS -i -m 5 http://{}:{port}/", world.cart.v4));
        assert!(!out.contains("HTTP/1.1"), "{port}: {out}");
        let out = world.outside.prints(&format!(
            "curl -sS -i -k -m 5 --cert {0}/svid.pem --key {0}/key.pem https://{1}:{port}/",
            svid.display(),
            world.cart.v4
        ));
        assert!(!out.contains(" 200") && !out.contains("welcome"), "{port}: {out}");
    }
    for port in [15_001, 15_006] {
        let out = world
            .web
            .prints(&format!("curl -s -S -m 5 http://{}:{port}/", world.cart.v4));
        assert!(!out.contains("HTTP/1.1 200"), "{port}: {out}");
        let out = world.web.prints(&format!("curl -s -S -m 5 http://127.0.0.1:{port}/"));
        assert!(out.contains("curl:"), "{port} on loopback: {out}");
    }
    // And the proxy is alive and well after it.
    let code = format!(
        "curl -s -o /dev/null -w '%{{http_code}}' -m 10 http://{}:8080/",
        world.cart.v4
    );
    assert_eq!(world.web.prints(&code), "200");
}

#[test]
fn sigterm_lets_a_download_finish_and_leaves_no_process() {
    if !requires(&["ip", "setpriv", "curl", "nginx"], true) {
        return;
    }
    let mut world = World::new("1h");
    world.write_page("large.bin", &"x".repeat(20_000_000));
    let mut download = world.web.start(
        "download",
        &format!(
            "curl -s --limit-rate 8M -o /dev/null -w '%{{http_code}} %{{size_download}}' http://{}:8080/large.bin",
            world.cart.v4
        ),
    );
    let flows = "curl -s http://127.0.0.1:15020/metrics";
    eventually("the download to begin", || {
        let metrics = world.cart.prints(flows);
        metrics
            .lines()
            .any(|l| l.starts_with("postern_proxy_connections{") && !l.ends_with(" 0"))
            .then_some(())
    });
    world.cart_proxy.terminate();
    assert!(download.wait(Duration::from_secs(30)).success());
    assert_eq!(download.output(), "200 20000000");
    assert!(
        world.cart_proxy.wait(Duration::from_secs(40)).success(),
        "{}",
        world.cart_proxy.output()
    );
}

fn run(pod: &postern_e2e::lab::Pod, shell: &str) -> String {
    let out = pod.command(0, "sh").args(["-c", shell]).output().unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

fn files(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .collect()
}

fn server_says(world: &World, log: &str, word: &str) -> Option<()> {
    std::fs::read_to_string(world.lab.directory().join(format!("{log}.log")))
        .ok()?
        .contains(word)
        .then_some(())
}
