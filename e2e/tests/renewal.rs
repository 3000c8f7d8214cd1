//! Certificates that live for seconds: renewed under load, an outage of the CA, and a proxy that starts without a token.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod world;

use std::time::{Duration, SystemTime};

use postern_e2e::lab::Pod;
use postern_e2e::process::{PATIENCE, eventually};
use postern_e2e::requires;
use world::World;
use world::load::Sent;
use world::metrics::Scrape;

const PROGRAMS: [&str; 7] = ["ip", "setpriv", "curl", "nginx", "h2load", "ss", "python3"];
/// In its last second a certificate begins no connection (the proxy's `USE_MARGIN`), and what has just begun may see it.
const LAST_SECOND: Duration = Duration::from_millis(1_200);
/// What is promised after an outage of the CA.
const RECOVERY: Duration = Duration::from_secs(2);

/// CI holds the load for the minute that is promised; at a desk less shows as much. A CA looks at its keys each 30 s.
fn load_seconds() -> u64 {
    if std::env::var_os("CI").is_some_and(|ci| ci == "true") {
        60
    } else {
        45
    }
}

#[test]
fn ten_second_certificates_are_renewed_under_load_while_another_kek_seals_and_no_request_is_lost() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let world = World::new("10s");
    let seconds = load_seconds();
    let _lines = world.serve_lines();
    let hold = world.hold_lines(&world.web);
    let http1 = world.load(&world.web, "--h1", 8_080, 10, 25, seconds);
    let http2 = world.load(&world.web, "", 8_082, 5, 50, seconds);
    let began = SystemTime::now();
    replace_kek(&world);
    let replaced = began.elapsed().unwrap();
    assert!(replaced < Duration::from_secs(seconds), "the load had ended before");
    for (name, load) in [("HTTP/1.1", http1), ("HTTP/2", http2)] {
        let sent = load.finish();
        println!(
            "{name}: {} requests in {seconds} s; KEK replaced after {replaced:?}",
            sent.len()
        );
        let lost: Vec<&Sent> = sent.iter().filter(|sent| sent.status != 200).collect();
        assert!(
            lost.is_empty(),
            "{name}: {} of {} lost: {lost:?}",
            lost.len(),
            sent.len()
        );
        let rate = sent.len() as u64 / seconds;
        assert!(rate >= 150, "{name}: {rate} requests a second are no load");
    }
    for pod in [&world.web, &world.cart] {
        let renewals = Scrape::proxy(pod).sum("postern_proxy_certificate_renewals_total", &[]);
        assert!(renewals >= (seconds / 10) as f64, "{}: {renewals} renewals", pod.name);
    }
    // An opaque stream is readmitted each time, before what it was admitted on expires.
    let closed = hold.output().lines().filter(|line| line.starts_with("closed")).count();
    let reasons: Vec<String> = ["web", "cart"]
        .iter()
        .flat_map(|name| world.mesh.access_log(name))
        .map(|line| format!("{}:{}", line["port"], line["reason"].as_str().unwrap_or_default()))
        .collect();
    assert!(closed == 0 && reasons.is_empty(), "{closed} ends, {reasons:?}");
    for (pod, direction) in [
        (&world.web, "direction=\"outbound\""),
        (&world.cart, "direction=\"inbound\""),
    ] {
        let labels = [direction, "result=\"readmitted\""];
        let readmitted = Scrape::proxy(pod).sum("postern_proxy_readmissions_total", &labels);
        assert!(readmitted >= (seconds / 10) as f64, "{}: {readmitted}", pod.name);
    }
    for (name, proxy) in [("cart", &world.cart_proxy), ("web", &world.client_proxies[0])] {
        assert!(!proxy.output().contains("\"ERROR\""), "{name}: {}", proxy.output());
    }
}

#[test]
fn a_new_issuer_is_put_in_place_under_load_and_no_request_is_lost() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let world = World::new("30s");
    let http1 = world.load(&world.web, "--h1", 8_080, 4, 25, 8);
    let http2 = world.load(&world.web, "", 8_082, 2, 50, 8);
    let renewals = || {
        [&world.web, &world.cart, &world.mallory]
            .map(|pod| Scrape::proxy(pod).sum("postern_proxy_certificate_renewals_total", &[]))
    };
    let before = renewals();
    let epoch = || Scrape::of(&world.mesh.pod, 15_021).sum("postern_ca_issuer_epoch", &[]);
    let first = epoch();
    world.mesh.rotate();
    assert!(epoch() > first, "another issuer signs");
    eventually("everybody to hold a certificate of the new issuer", || {
        renewals()
            .iter()
            .zip(before)
            .all(|(now, before)| *now > before)
            .then_some(())
    });
    for (name, load) in [("HTTP/1.1", http1), ("HTTP/2", http2)] {
        let sent = load.finish();
        let lost: Vec<&Sent> = sent.iter().filter(|sent| sent.status != 200).collect();
        assert!(
            lost.is_empty(),
            "{name}: {} of {} lost: {lost:?}",
            lost.len(),
            sent.len()
        );
    }
}

#[test]
fn c_09_the_root_is_replaced_under_load_and_no_request_is_lost_and_who_was_away_comes_back_by_a_new_token() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let mut world = World::new("10s");
    // Away through the whole overlap: it hears nothing, and its certificate runs out.
    let away = world.client_proxies.pop().unwrap();
    away.signal("STOP");
    let seconds = 40;
    let http1 = world.load(&world.web, "--h1", 8_080, 10, 25, seconds);
    let http2 = world.load(&world.web, "", 8_082, 5, 50, seconds);
    let since = SystemTime::now();
    world.mesh.rotate_root(false);
    // Its stream holds the publication back no longer than control takes it for connected.
    eventually("the new root to sign", || {
        (world.mesh.root_stage() == "activated").then_some(())
    });
    eventually("the old root to leave", || {
        (world.mesh.root_stage() == "retired").then_some(())
    });
    let took = since.elapsed().unwrap();
    let mut lost_in = Vec::new();
    for (name, load) in [("HTTP/1.1", http1), ("HTTP/2", http2)] {
        let sent = load.finish();
        let lost: Vec<&Sent> = sent.iter().filter(|sent| sent.status != 200).collect();
        println!(
            "{name}: {} requests in {seconds} s, {} lost; replaced in {took:?}",
            sent.len(),
            lost.len()
        );
        if !lost.is_empty() {
            lost_in.push(format!("{name}: {} of {} lost: {lost:?}", lost.len(), sent.len()));
        }
        let rate = sent.len() as u64 / seconds;
        assert!(rate >= 150, "{name}: {rate} requests a second are no load");
    }
    assert!(lost_in.is_empty(), "{lost_in:?}");
    assert!(took < Duration::from_secs(seconds), "the load had ended before");
    for (name, proxy) in [("cart", &world.cart_proxy), ("web", &world.client_proxies[0])] {
        assert!(!proxy.output().contains("\"ERROR\""), "{name}: {}", proxy.output());
    }

    away.signal("CONT");
    let readiness = "curl -s -m 5 http://127.0.0.1:15020/readyz";
    eventually("what is missing", || {
        world
            .mallory
            .prints(readiness)
            .contains("a new join token")
            .then_some(())
    });
    assert!(
        away.output().contains("no path from the peer's leaf to a root"),
        "{}",
        away.output()
    );
    world.mesh.hand_token("shop", "mallory", "mallory");
    eventually("readiness", || {
        (world.mallory.prints(readiness) == "ready\n").then_some(())
    });
    // Known again, and still without a rule.
    eventually("an answer", || {
        (world.code(&world.mallory, 8_080, "/") == "403").then_some(())
    });
}

#[test]
fn an_outage_of_the_ca_costs_nothing_until_expiry_then_fails_closed_and_is_over_within_two_seconds() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let mut world = World::new("10s");
    let load = world.load(&world.web, "--h1", 8_080, 4, 25, 30);
    world.mesh.stop_ca();
    // A renewal that was under way has ended by now or never will.
    let (web, cart) = (expiry(&world.web), expiry(&world.cart));
    let (first, last) = (web.min(cart), web.max(cart));
    eventually("expiry", || (SystemTime::now() > last).then_some(()));
    let call = format!("curl -s -i -m 10 http://{}:8080/", world.cart.v4);
    let answer = world.web.prints(&call);
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("identity_expired"),
        "{answer}"
    );
    eventually("one more second without a CA", || {
        (SystemTime::now() > last + Duration::from_secs(1)).then_some(())
    });

    // A certificate holds through its last second.
    let readiness = world.web.prints("curl -s http://127.0.0.1:15020/readyz");
    assert!(readiness.contains("our own SVID has expired"), "{readiness}");
    let away_until = SystemTime::now();
    world.mesh.start_ca();
    let back = SystemTime::now();
    eventually("recovery", || {
        (world.code(&world.web, 8_080, "/") == "200").then_some(())
    });
    assert!(back.elapsed().unwrap() < RECOVERY, "{:?}", back.elapsed());
    // Whoever else is of the mesh recovered by itself as well.
    eventually("readiness", || {
        world
            .cart
            .run("curl -sf http://127.0.0.1:15020/readyz")
            .status
            .success()
            .then_some(())
    });

    let sent = load.finish();
    let (mut before, mut during, mut after) = (0, 0, 0);
    for request in &sent {
        if request.at < first - LAST_SECOND {
            before += 1;
            assert_eq!(
                request.status,
                200,
                "while certificates last: {:?} before expiry",
                first.duration_since(request.at)
            );
        } else if request.at > last && request.at < away_until {
            during += 1;
            assert!((500..600).contains(&request.status), "after expiry: {request:?}");
        } else if request.at > back + RECOVERY {
            after += 1;
            assert_eq!(request.status, 200, "after the CA's return: {request:?}");
        }
    }
    assert!(
        before > 100 && after > 100,
        "{before} before, {during} during, {after} after"
    );
}

#[test]
fn a_restarted_proxy_without_a_new_token_says_so_forwards_nothing_and_takes_one_when_it_comes() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let mut world = World::new("1h");
    world.client_proxies.remove(0).kill();
    let mut again = world.mesh.proxy_again(&world.web, "web", &[]);
    let readiness = "curl -s http://127.0.0.1:15020/readyz";
    let says = |word: &str| world.web.prints(readiness).contains(word).then_some(());
    again.wait_for("what is missing", || says("a new join token"));
    assert!(again.output().contains("a new join token"), "and so does the log");
    let answer = world
        .web
        .prints(&format!("curl -sS -i -m 5 http://{}:8080/", world.cart.v4));
    assert!(!answer.contains("welcome"), "{answer}");
    world.mesh.hand_token("shop", "web", "web");
    again.wait_for("readiness", || (world.web.prints(readiness) == "ready\n").then_some(()));
    assert_eq!(world.code(&world.web, 8_080, "/"), "200");
}

/// Another key-encryption key seals all that the CA has, and the one before is gone.
fn replace_kek(world: &World) {
    let ca = || Scrape::of(&world.mesh.pod, 15_021);
    let sealed = || ca().sum("postern_ca_records_rewrapped_total", &[]);
    let new = world.mesh.pod.prints("head -c 32 /dev/urandom | base64");
    let before = sealed();
    world.mesh.replace_keks(&(new.clone() + &world.mesh.keks()));
    // The CA looks each 30 s: longer than others wait for a state.
    let mut process = world.mesh.ca.output();
    let started = SystemTime::now();
    while sealed() == before || !process.contains("sealed anew") {
        assert!(
            started.elapsed().unwrap() < 2 * PATIENCE,
            "nothing was sealed anew: {process}"
        );
        std::thread::sleep(Duration::from_millis(200));
        process = world.mesh.ca.output();
    }
    world.mesh.replace_keks(&new);
    // It goes on to issue with the new key alone.
    let issued = || ca().sum("postern_ca_certificates_issued_total", &[]);
    let before = issued();
    eventually("another certificate", || (issued() > before).then_some(()));
}

/// When the certificate that this pod's proxy holds expires.
fn expiry(pod: &Pod) -> SystemTime {
    let unix = Scrape::proxy(pod).sum("postern_proxy_certificate_expiry_timestamp_seconds", &[]);
    SystemTime::UNIX_EPOCH + Duration::from_secs_f64(unix)
}
