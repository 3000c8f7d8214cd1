//! The proxy as Kubernetes runs it: probes and metrics of the app under default deny, and its end after the app's.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod world;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use postern_e2e::lab::Pod;
use postern_e2e::mesh::Sidecar;
use postern_e2e::process::{Process, eventually};
use postern_e2e::requires;
use world::World;

const PROGRAMS: [&str; 6] = ["ip", "setpriv", "curl", "nginx", "python3", "ss"];
const TOKEN: &str = "00112233445566778899aabbccddeeff";
/// Far less than the grace's start, far more than a loaded machine needs.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Cart's sidecar anew, as the injector would have written it for the pod's `address`. Ready, unless control is away.
fn sidecar(world: &mut World, address: &str, run: &[&str], environment: &[(&str, &str)]) {
    world.cart_proxy.kill();
    let environment = [&[("POD_IP", address)], environment].concat();
    world.cart_proxy = world.mesh.sidecar(
        &world.cart,
        "shop",
        "cart",
        "cart",
        Sidecar {
            run,
            environment: &environment,
            ..Sidecar::default()
        },
    );
}

fn ready(world: &mut World) {
    let (cart, ready) = (world.cart.clone(), "curl -sf http://127.0.0.1:15020/readyz");
    world
        .cart_proxy
        .wait_for("readiness", || cart.run(ready).status.success().then_some(()));
}

fn probes() -> String {
    let http = |port: u16, path: &str| {
        format!(
            r#"{{"kind":"http","scheme":"http","port":{port},"path":"{path}","host":null,"headers":[],"timeout_seconds":2}}"#
        )
    };
    format!(
        r#"{{"token":"{TOKEN}","targets":{{"nginx/liveness":{},"nginx/readiness":{},"lines/readiness":
           {{"kind":"tcp","port":7000,"host":null,"timeout_seconds":2}}}}}}"#,
        http(8_080, "/"),
        http(8_080, "/missing"),
    )
}

/// The status that a kubelet gets.
fn status(kubelet: &Pod, address: &str, path: &str) -> String {
    let host = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    };
    kubelet.prints(&format!(
        "curl -s -o /dev/null -w '%{{http_code}}' -m 5 http://{host}:15020{path}"
    ))
}

#[test]
fn a_kubelets_probes_pass_under_default_deny_before_the_mesh_is_ready_and_say_when_the_app_is_not_well() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let mut world = World::serving("1h");
    let lines = world.serve_lines();
    // Nobody gives this proxy an identity: its app is probed all the same.
    world.mesh.stop_ca();
    let probes = probes();
    for address in [world.cart.v4.clone(), world.cart.v6.clone()] {
        sidecar_without_ca(&mut world, &address, &[("POSTERN_PROBES", &probes)]);
        let kubelet = world.outside.clone();
        let probe = |which: &str| status(&kubelet, &address, &format!("/probe/{TOKEN}/{which}"));
        eventually("the endpoint", || {
            (status(&kubelet, &address, "/readyz") == "503").then_some(())
        });
        assert_eq!(probe("nginx/liveness"), "200", "{address}");
        assert_eq!(probe("lines/readiness"), "200", "{address}");
        assert_eq!(probe("nginx/readiness"), "503", "the app answers 404");
        // No forwarder, and nothing else on the port.
        for path in [
            "/livez",
            "/",
            "/probe/",
            "/probe/nginx/liveness",
            "/probe/00112233445566778899aabbccddeefe/nginx/liveness",
            &format!("/probe/{TOKEN}/nginx/startup"),
            &format!("/probe/{TOKEN}/nginx/liveness/../../../secret"),
            &format!("/probe/{TOKEN}/http:%2f%2f{address}:8080/"),
        ] {
            assert_eq!(status(&kubelet, &address, path), "404", "{path}");
        }
        // What the probe reaches, the kubelet itself does not.
        let host = if address.contains(':') {
            format!("[{address}]")
        } else {
            address.clone()
        };
        let direct = kubelet.prints(&format!("curl -sS -m 5 http://{host}:8080/"));
        assert!(!direct.contains("welcome"), "{direct}");
    }
    drop(lines);
    let (kubelet, address) = (world.outside.clone(), world.cart.v6.clone());
    let down = format!("/probe/{TOKEN}/lines/readiness");
    eventually("the app's end to be seen", || {
        (status(&kubelet, &address, &down) == "503").then_some(())
    });
    let log = world.cart_proxy.output();
    assert!(!log.contains(TOKEN), "a token in the log: {log}");
}

fn sidecar_without_ca(world: &mut World, address: &str, environment: &[(&str, &str)]) {
    world.cart_proxy.kill();
    let environment = [&[("POD_IP", address)], environment].concat();
    let sidecar = Sidecar {
        environment: &environment,
        ..Sidecar::default()
    };
    world.cart_proxy = world.mesh.start_proxy(&world.cart, "cart", sidecar);
}

#[test]
fn a_probe_that_makes_no_sense_ends_the_proxy_with_the_reason() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let mut world = World::serving("1h");
    let address = world.cart.v4.clone();
    sidecar(
        &mut world,
        &address,
        &[],
        &[("POSTERN_PROBES", r#"{"token":"short","targets":{}}"#)],
    );
    assert_eq!(world.cart_proxy.wait(AT_ONCE).code(), Some(1));
    let said = world.cart_proxy.output();
    assert!(
        said.contains("POSTERN_PROBES: the token is not 32 lower-case"),
        "{said}"
    );
}

#[test]
fn the_apps_metrics_follow_ours_for_a_scraper_without_a_certificate_and_an_app_that_fails_costs_only_its_own() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let mut world = World::serving("1h");
    let page = "# HELP cart_items Items\n# TYPE cart_items gauge\ncart_items{user=\"a\"} 3\n";
    world.write_page("metrics.txt", &format!("{page}postern_proxy_requests_total 0\n"));
    let address = world.cart.v4.clone();
    let app = r#"{"port":8080,"path":"/metrics.txt","scheme":"http"}"#;
    sidecar(&mut world, &address, &[], &[("POSTERN_APP_METRICS", app)]);
    ready(&mut world);
    let scrape = |how: &str| {
        world
            .outside
            .prints(&format!("curl -s -m 10 {how} http://{address}:15020/metrics"))
    };
    let both = scrape("");
    assert!(
        both.contains("\npostern_proxy_build_info{") && both.ends_with(page),
        "{both}"
    );
    assert!(
        both.contains("\npostern_app_scrape_dropped_samples_total 1\n"),
        "{both}"
    );
    // What curl shows, a real parser takes, in both formats.
    if let Some(promtool) = postern_e2e::which("promtool") {
        let check = format!(
            "curl -s http://{address}:15020/metrics | {} check metrics",
            promtool.display()
        );
        let checked = world.outside.run(&check);
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
    std::thread::sleep(Duration::from_millis(1_100));
    let wants = "-H 'accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5'";
    assert!(scrape(wants).ends_with(page), "the app speaks text, so all is text");
    world.write_page("metrics.txt", "<html>not metrics</html>\n");
    let ours = eventually("the app's failure to count", || {
        let scraped = scrape("");
        scraped
            .contains("postern_app_scrape_failures_total{reason=\"malformed\"}")
            .then_some(scraped)
    });
    assert!(
        ours.contains("\npostern_proxy_build_info{") && !ours.contains("cart_items"),
        "{ours}"
    );
}

#[test]
fn metrics_over_mutual_tls_are_for_callers_whom_policy_lets_in_and_for_nobody_on_the_open_port() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let mut world = World::new("1h");
    let address = world.cart.v4.clone();
    sidecar(&mut world, &address, &["--metrics-mutual-tls"], &[]);
    ready(&mut world);
    assert_eq!(status(&world.outside, &address, "/metrics"), "404");
    assert_eq!(status(&world.outside, &address, "/readyz"), "200");
    let from = |pod: &Pod| pod.prints(&format!("curl -sS -m 10 -i http://{address}:15021/metrics"));
    let stranger = from(&world.outside);
    assert!(stranger.contains("(56)"), "in clear it is reset: {stranger}");
    let denied = from(&world.mallory);
    assert!(denied.starts_with("HTTP/1.1 403"), "{denied}");
    let allowed = from(&world.web);
    assert!(
        allowed.starts_with("HTTP/1.1 200") && allowed.contains("\npostern_proxy_build_info{"),
        "{allowed}"
    );
    let other = world.web.prints(&format!(
        "curl -s -o /dev/null -w '%{{http_code}}' -m 10 http://{address}:15021/readyz"
    ));
    assert_eq!(other, "404", "metrics and nothing else");
}

#[test]
fn a_sidecar_that_has_nothing_in_flight_ends_at_once() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let mut world = World::new("1h");
    let address = world.cart.v4.clone();
    sidecar(&mut world, &address, &[], &[]);
    ready(&mut world);
    // web's proxy keeps its connection after the answer; that is nothing in flight.
    eventually("an answer", || {
        (world.code(&world.web, 8_080, "/") == "200").then_some(())
    });
    world.cart_proxy.terminate();
    assert!(
        world.cart_proxy.wait(AT_ONCE).success(),
        "{}",
        world.cart_proxy.output()
    );
    let said = world.cart_proxy.output();
    assert!(said.contains("ended: 0 connections were cut"), "{said}");
}

#[test]
fn while_what_is_in_flight_ends_the_app_still_reaches_others() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let mut world = World::new("1h");
    let program = world::program("catch.py");
    let mut other = world
        .outside
        .start_as_root("other", &format!("python3 {program} serve 7100 reached"));
    listens(&world.outside, &mut other, 7_100);
    let go = world.lab.directory().join("go");
    let mut app = world.cart.start(
        "hold",
        &format!("python3 {program} hold 8090 {} {} 7100", go.display(), world.outside.v4),
    );
    listens(&world.cart, &mut app, 8_090);
    let url = format!("http://{}:8090/", world.cart.v4);
    let mut request = world.web.start("request", &format!("curl -s -m 20 {url}"));
    let heard = app.output_file();
    app.wait_for("the request", || {
        fs::read_to_string(&heard).unwrap().contains("asked").then_some(())
    });
    world.cart_proxy.terminate();
    // Past the grace's start: no peer is let in any more.
    eventually("the inbound port to close", || {
        let open = world.cart.run("ss -tln | grep -q ':15006 '").status.success();
        (!open).then_some(())
    });
    fs::write(&go, "").unwrap();
    assert!(request.wait(Duration::from_secs(20)).success());
    assert_eq!(request.output(), "reached");
    assert!(
        world.cart_proxy.wait(AT_ONCE).success(),
        "{}",
        world.cart_proxy.output()
    );
}

fn listens(pod: &Pod, server: &mut Process, port: u16) {
    let listens = format!("ss -tln | grep -q ':{port} '");
    server.wait_for("listener", || pod.run(&listens).status.success().then_some(()));
}

#[test]
fn a_proxy_whose_control_goes_turns_to_the_other_behind_the_same_name_and_learns_what_changed() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let mut world = World::serving("1h");
    let second = world.lab.pod("mesh2");
    let mut other = second_control(&world, &second);
    let _hosts = Hosts::write(&world.cart, "control.test", &[&world.mesh.pod.v4, &second.v4]);
    world.mesh.control_is_at("control.test:15010");
    let connected = |log: &str| log.matches("\"message\":\"connected\"").count();
    let with_first = connected(&world.mesh.control.output());
    world.cart_proxy.kill();
    world.cart_proxy = world
        .mesh
        .sidecar(&world.cart, "shop", "cart", "cart", Sidecar::default());
    ready(&mut world);
    let itself = format!(
        "curl -s -o /dev/null -w '%{{http_code}}' -m 10 http://{}:8080/",
        world.cart.v4
    );
    assert_eq!(world.cart.prints(&itself), "403", "it may not call itself yet");
    // Whichever it chose goes.
    if connected(&world.mesh.control.output()) > with_first {
        world.mesh.stop_control();
    } else {
        other.kill();
    }
    world.mesh.write("self.yaml", world::ALLOW_SELF);
    eventually("the new policy", || (world.cart.prints(&itself) == "200").then_some(()));
}

/// Another control that reads the same documents.
fn second_control(world: &World, pod: &Pod) -> Process {
    let directory = world.lab.directory();
    let (token, ready) = (directory.join("second.token"), directory.join("second.json"));
    let id = "spiffe://cluster.local/ns/postern-system/sa/postern-control";
    fs::write(&token, world.mesh.token(id, "postern-control-2")).unwrap();
    let line = format!(
        "{}/postern control --ca {}:15012 --listen {}:15010 --trust-domain cluster.local --metrics-listen 127.0.0.1:15022 \
         --directory {} --join-token-file {} --view-socket {}/second.sock --ready-file {}",
        directory.display(),
        world.mesh.pod.v4,
        pod.v4,
        world.mesh.documents().display(),
        token.display(),
        directory.display(),
        ready.display(),
    );
    let mut control = pod.start_as_root("control", &line);
    control.wait_for("ready file", || ready.exists().then_some(()));
    control
}

/// What `ip netns exec` mounts over a pod's /etc/hosts: several addresses behind one name, as a headless Service has.
struct Hosts(PathBuf);

impl Hosts {
    fn write(pod: &Pod, name: &str, addresses: &[&str]) -> Self {
        let namespace = pod.network_namespace();
        let etc = PathBuf::from("/etc/netns").join(namespace.file_name().unwrap());
        fs::create_dir_all(&etc).unwrap();
        let lines: String = addresses.iter().map(|address| format!("{address} {name}\n")).collect();
        fs::write(etc.join("hosts"), format!("127.0.0.1 localhost\n{lines}")).unwrap();
        Self(etc)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
