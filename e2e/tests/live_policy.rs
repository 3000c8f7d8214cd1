//! Policy that changes while connections live: how soon it holds, what a broken file does, and life without control.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod world;

use std::fs;
use std::time::{Duration, SystemTime};

use postern_e2e::lab::Pod;
use postern_e2e::process::{PATIENCE, Process, eventually};
use postern_e2e::requires;
use world::World;
use world::load::Sent;
use world::metrics::Scrape;

const PROGRAMS: [&str; 7] = ["ip", "setpriv", "curl", "nginx", "h2load", "ss", "python3"];
/// What is promised for a change to hold on every live connection.
const EFFECT: Duration = Duration::from_secs(1);
/// How long the world is watched after each change has had its time.
const WATCHED: Duration = Duration::from_millis(1_200);

const ALLOW_MALLORY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: cart-from-mallory, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/mallory]}}]
";

const DENY_MALLORY: &str = "
apiVersion: postern.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: not-mallory, namespace: shop}
spec:
  action: DENY
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/mallory]}}]
";

/// When the world was changed, and whether mallory may from then on.
struct Edit {
    at: SystemTime,
    allowed: bool,
}

#[test]
fn a_policy_edit_holds_within_a_second_on_live_connections_and_fails_no_allowed_request() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let world = World::new("1h");
    let _lines = world.serve_lines();
    world.mesh.write("mallory.yaml", ALLOW_MALLORY);
    eventually("mallory's first answer", || {
        (world.code(&world.mallory, 8_080, "/") == "200").then_some(())
    });
    let mut edits = vec![Edit {
        at: SystemTime::now(),
        allowed: true,
    }];
    let loads = [&world.web, &world.mallory].map(|pod| {
        let http1 = world.load(pod, "--h1", 8_080, 4, 20, 16);
        let http2 = world.load(pod, "", 8_082, 2, 40, 16);
        (http1, http2)
    });
    let holds = [&world.web, &world.mallory].map(|pod| world.hold_lines(pod));
    eventually("open streams", || {
        holds.iter().all(|hold| hold.output().contains("open")).then_some(())
    });
    std::thread::sleep(EFFECT + WATCHED);
    let documents = world.mesh.documents();
    // A new denial, its end, the end of what allows, and its return.
    for change in 0..4 {
        let at = SystemTime::now();
        match change {
            0 => world.mesh.write("denial.yaml", DENY_MALLORY),
            1 => fs::remove_file(documents.join("denial.yaml")).unwrap(),
            2 => fs::remove_file(documents.join("mallory.yaml")).unwrap(),
            _ => world.mesh.write("mallory.yaml", ALLOW_MALLORY),
        }
        edits.push(Edit {
            at,
            allowed: change % 2 == 1,
        });
        std::thread::sleep(EFFECT + WATCHED);
    }
    let end = SystemTime::now();
    let mallory_lines = holds[1].output();
    assert_eq!(
        events(&holds[0], "closed").len(),
        0,
        "the stream of web, who always may: {}",
        holds[0].output()
    );
    drop(holds);
    let [(web1, web2), (mallory1, mallory2)] = loads;
    for (name, sent) in [("HTTP/1.1", web1.finish()), ("HTTP/2", web2.finish())] {
        let failed: Vec<&Sent> = sent.iter().filter(|sent| sent.status != 200).collect();
        assert!(
            failed.is_empty(),
            "{name}: {} of {} failed: {failed:?}",
            failed.len(),
            sent.len()
        );
    }
    let requests = [("HTTP/1.1", mallory1.finish()), ("HTTP/2", mallory2.finish())];
    for (i, edit) in edits.iter().enumerate() {
        let until = edits.get(i + 1).map_or(end, |next| next.at);
        let expected = if edit.allowed { 200 } else { 403 };
        for (name, sent) in &requests {
            let held: Vec<&Sent> = sent
                .iter()
                .filter(|s| s.at > edit.at + EFFECT && s.at < until)
                .collect();
            assert!(held.len() > 20, "{name}: {} requests after edit {i}", held.len());
            for request in held {
                let late = request.at.duration_since(edit.at).unwrap();
                assert_eq!(request.status, expected, "{name}: {late:?} after edit {i}");
            }
        }
        let within = |word: &str, from: SystemTime, to: SystemTime| {
            lines_of(&mallory_lines, word)
                .iter()
                .filter(|at| **at > from && **at <= to)
                .count()
        };
        if edit.allowed {
            assert_eq!(
                within("closed", edit.at + EFFECT, until),
                0,
                "edit {i}: {mallory_lines}"
            );
            assert!(
                i == 0 || within("open", edit.at, until) == 1,
                "edit {i}: {mallory_lines}"
            );
        } else {
            assert!(
                within("closed", edit.at, edit.at + EFFECT) >= 1,
                "edit {i}: {mallory_lines}"
            );
            assert_eq!(within("open", edit.at + EFFECT, until), 0, "edit {i}: {mallory_lines}");
        }
    }
}

#[test]
fn a_grpc_stream_and_a_websocket_end_within_a_second_of_their_denial() {
    let Some(python) = world::python(&["grpc", "websockets"]) else {
        return;
    };
    if !requires(&PROGRAMS, true) {
        return;
    }
    let world = World::new("1h");
    world.mesh.write("mallory.yaml", ALLOW_MALLORY);
    let (grpc, websocket) = (world::program("grpc_echo.py"), world::program("websocket_echo.py"));
    let _servers = [("grpc", &grpc, 50_051), ("ws", &websocket, 8_090)].map(|(name, program, port)| {
        let mut server = world
            .cart
            .start_as_root(name, &format!("{python} {program} serve {port}"));
        server.wait_for("listener", || {
            world
                .cart
                .run(&format!("ss -tln | grep -q ':{port} '"))
                .status
                .success()
                .then_some(())
        });
        server
    });
    eventually("mallory's first answer", || {
        (world.code(&world.mallory, 8_080, "/") == "200").then_some(())
    });
    let hold = |pod: &Pod| {
        let cart = &world.cart.v4;
        [
            pod.start_as_root("hold-grpc", &format!("{python} {grpc} hold {cart}:50051")),
            pod.start_as_root("hold-ws", &format!("{python} {websocket} hold ws://{cart}:8090/feed")),
        ]
    };
    let (mut web, mut mallory) = (hold(&world.web), hold(&world.mallory));
    for stream in web.iter_mut().chain(&mut mallory) {
        let output = stream.output_file();
        stream.wait_for("first echoes", || {
            fs::read_to_string(&output).unwrap().contains("echo").then_some(())
        });
    }
    let edited = SystemTime::now();
    world.mesh.write("denial.yaml", DENY_MALLORY);
    for (stream, end) in mallory.iter_mut().zip(["status", "closed"]) {
        stream.wait(PATIENCE);
        let ends = events(stream, end);
        assert_eq!(ends.len(), 1, "{}", stream.output());
        assert!(
            ends[0] < edited + EFFECT,
            "{end} after {:?}",
            ends[0].duration_since(edited)
        );
    }
    assert!(mallory[0].output().contains("status 7"), "{}", mallory[0].output());
    for stream in &mut web {
        let (output, before) = (stream.output_file(), stream.output().len());
        stream.wait_for("more echoes", || {
            (fs::read_to_string(&output).unwrap().len() > before + 50).then_some(())
        });
    }
}

#[test]
fn a_namespace_goes_through_its_modes_while_requests_flow() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let world = World::new("1h");
    let mode = |mode: &str| {
        let documents = world::documents_in(mode, &world.web, &world.cart, &world.mallory);
        world.mesh.write("shop.yaml", &documents);
    };
    let load = world.load(&world.web, "--h1", 8_080, 2, 25, 5);
    // Nobody outside of the mesh, nobody without a rule.
    assert_eq!(world.code(&world.outside, 8_080, "/"), "000");
    assert_eq!(world.code(&world.mallory, 8_080, "/"), "403");
    mode("monitor");
    eventually("monitor to let mallory in", || {
        (world.code(&world.mallory, 8_080, "/") == "200").then_some(())
    });
    assert_eq!(world.code(&world.outside, 8_080, "/"), "200");
    let would = Scrape::proxy(&world.cart).sum("postern_proxy_denials_total", &["enforced=\"false\""]);
    assert!(would >= 1.0, "what protect would deny is counted");
    mode("discover");
    eventually("discover", || {
        (world.code(&world.outside, 8_080, "/") == "200").then_some(())
    });
    mode("protect");
    eventually("protect to keep both out", || {
        let codes = [&world.outside, &world.mallory].map(|pod| world.code(pod, 8_080, "/"));
        (codes == ["000", "403"]).then_some(())
    });
    let sent = load.finish();
    let failed: Vec<&Sent> = sent.iter().filter(|sent| sent.status != 200).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn a_broken_file_changes_nothing_and_is_reported_with_its_place_and_the_nearest_name() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let world = World::new("1h");
    let good = world::documents(&world.web, &world.cart, &world.mallory);
    let broken = good.replace("{principals:", "{principal:");
    let line = broken.lines().position(|line| line.contains("{principal:")).unwrap() + 1;
    let bad_files = || Scrape::of(&world.mesh.pod, 15_022).sum("postern_control_bad_files", &[]);
    world.mesh.write("shop.yaml", &broken);
    eventually("the report", || (bad_files() == 1.0).then_some(()));
    let log = world.mesh.control.output();
    let report = log
        .lines()
        .find(|said| said.contains(&format!("shop.yaml:{line}")))
        .unwrap_or_else(|| panic!("line {line} is not named: {log}"));
    assert!(report.contains("did you mean `principals`"), "{report}");

    // What was in force still is.
    assert_eq!(world.code(&world.web, 8_080, "/"), "200");
    assert_eq!(world.code(&world.web, 8_080, "/admin"), "403");
    assert_eq!(world.code(&world.mallory, 8_080, "/"), "403");
    // And other files are still heard.
    world.mesh.write("mallory.yaml", ALLOW_MALLORY);
    eventually("the other file", || {
        (world.code(&world.mallory, 8_080, "/") == "200").then_some(())
    });
    assert_eq!(bad_files(), 1.0);

    world.mesh.write("shop.yaml", &good);
    eventually("the mended file", || (bad_files() == 0.0).then_some(()));
    assert_eq!(world.code(&world.web, 8_080, "/"), "200");
}

#[test]
fn without_control_what_is_known_goes_on_and_a_new_proxy_waits_and_forwards_nothing() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let mut world = World::new("1h");
    assert_eq!(world.code(&world.mallory, 8_080, "/"), "403");
    world.mesh.stop_control();
    // An edit that nobody sees yet.
    world.mesh.write("mallory.yaml", ALLOW_MALLORY);
    assert_eq!(world.code(&world.web, 8_080, "/"), "200");
    assert_eq!(world.code(&world.mallory, 8_080, "/"), "403");
    let mut mallory = world.client_proxies.remove(1);
    mallory.kill();
    let mut again = world.mesh.proxy(&world.mallory, "shop", "mallory", "mallory", &[]);
    let readiness = "curl -s http://127.0.0.1:15020/readyz";
    again.wait_for("why it is not ready", || {
        world.mallory.prints(readiness).contains("control").then_some(())
    });
    let answer = world
        .mallory
        .prints(&format!("curl -sS -i -m 5 http://{}:8080/", world.cart.v4));
    assert!(!answer.contains("welcome"), "{answer}");

    world.mesh.start_control();
    again.wait_for("readiness", || {
        (world.mallory.prints(readiness) == "ready\n").then_some(())
    });
    eventually("the edit", || {
        (world.code(&world.mallory, 8_080, "/") == "200").then_some(())
    });
    assert_eq!(world.code(&world.web, 8_080, "/"), "200");
}

/// When a client of the line protocol said `word`.
fn events(hold: &Process, word: &str) -> Vec<SystemTime> {
    lines_of(&hold.output(), word)
}

fn lines_of(output: &str, word: &str) -> Vec<SystemTime> {
    output
        .lines()
        .filter(|line| line.starts_with(word))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .map(|unix| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(unix))
        .collect()
}
