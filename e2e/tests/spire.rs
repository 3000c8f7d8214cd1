//! A mesh whose identities are a real SPIRE's: control and proxies are workloads of its agent. Needs no root.
#![allow(clippy::unwrap_used, missing_docs)]

use postern_e2e::live::{Kind, Line};
use postern_e2e::loopback::Loopback;
use postern_e2e::process::eventually;
use postern_e2e::requires;
use postern_e2e::spire::{PROGRAMS, Spire};

/// Seconds: SPIRE's agent renews at half of it, and looks every five seconds.
const LIFE: u32 = 16;
const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
    metadata: {name: no-w0, namespace: shop}\n\
    spec: {action: DENY, selector: {matchLabels: {app: w1}}, \
    rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/w0]}}]}]}\n";

fn requests(mesh: &Loopback, from: usize, to: usize) -> Vec<Line> {
    [Kind::Http1, Kind::Http2].map(|kind| mesh.line(from, to, kind)).into()
}

/// All of them go on, for so many more answers.
fn go_on(lines: &[Line], answers: u64) {
    for line in lines {
        let before = line.answers();
        eventually(&format!("answers of {:?} of {}", line.kind, line.host), || {
            assert_eq!(line.ended(), None, "{:?} of {}", line.kind, line.host);
            (line.answers() >= before + answers).then_some(())
        });
    }
}

fn roots(mesh: &Loopback, n: usize) -> Vec<String> {
    let told = mesh.certificates(n);
    let roots = told["bundle"]["roots_sha256"].as_array().cloned().unwrap_or_default();
    roots
        .iter()
        .filter_map(|root| root.as_str().map(str::to_owned))
        .collect()
}

fn have_roots(mesh: &Loopback, many: usize) {
    for n in [0, 1] {
        eventually(&format!("{many} roots at w{n}"), || {
            (roots(mesh, n).len() == many).then_some(())
        });
    }
}

fn have_other_svids(mesh: &Loopback, lines: &[Line]) {
    let before = [0, 1].map(|n| mesh.serial(n));
    for n in [0, 1] {
        eventually(&format!("a renewal of w{n}"), || {
            assert_eq!(lines.iter().find_map(Line::ended), None);
            (mesh.serial(n) != before[n]).then_some(())
        });
    }
}

#[test]
fn a_mesh_lives_on_identities_of_spire_through_renewals_another_root_and_an_agent_that_is_away() {
    if !requires(&PROGRAMS, false) {
        return;
    }
    let mut spire = Spire::start("cluster.local", LIFE);
    let mesh = Loopback::of_spire(&spire, 2);
    let lines = requests(&mesh, 0, 1);
    go_on(&lines, 3);
    let others: Vec<Line> = [Kind::Grpc, Kind::Opaque].map(|kind| mesh.line(0, 1, kind)).into();
    go_on(&others, 3);

    // Policy is by these identities, and a denial is one of ours.
    mesh.write("deny.yaml", DENY);
    for line in &lines {
        eventually("a denial", || line.ended().filter(|why| why.contains("403")));
    }
    let denials = mesh.access_log(1);
    let of_caller = |line: &serde_json::Value| line["peer_id"] == mesh.id(0) || line["source"] == mesh.id(0);
    assert!(denials.iter().any(of_caller), "{:?}", denials.last());
    mesh.write("deny.yaml", &DENY.replace("sa/w0", "sa/other"));
    let lines = eventually("requests that are allowed again", || {
        let lines = requests(&mesh, 0, 1);
        eventually("an answer", || {
            lines
                .iter()
                .all(|line| line.answers() > 0 || line.ended().is_some())
                .then_some(())
        });
        lines.iter().all(|line| line.ended().is_none()).then_some(lines)
    });

    // Nothing is lost over renewals, and over another root.
    have_other_svids(&mesh, &lines);
    have_other_svids(&mesh, &lines);
    let first = roots(&mesh, 0);
    spire.prepare_root();
    have_roots(&mesh, 2);
    spire.activate_root();
    have_other_svids(&mesh, &lines);
    have_other_svids(&mesh, &lines);
    spire.withdraw_old_root();
    have_roots(&mesh, 1);
    assert_ne!(roots(&mesh, 0), first);
    go_on(&lines, 10);

    // While the agent is away, what is held stays; afterwards renewals go on by themselves.
    spire.stop_agent();
    go_on(&lines, 100);
    spire.start_agent();
    have_other_svids(&mesh, &lines);
    go_on(&lines, 10);

    // Who is registered no more is nobody, at once and not at expiry.
    spire.deregister(&mesh.id(0));
    eventually("a proxy that is not ready", || {
        (!mesh.get(0, "/readyz").starts_with("ready")).then_some(())
    });
    for line in requests(&mesh, 0, 1) {
        eventually("a refusal", || line.ended());
        assert_eq!(line.answers(), 0);
    }
}
