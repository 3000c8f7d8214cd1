//! `postern proxy redirect` as an init container and a CNI plug-in run it: what is captured, what is not, and that there
//! is never a moment without the rules.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod world;

use std::process::Output;
use std::time::Duration;

use postern_e2e::lab::{Lab, Pod, sh};
use postern_e2e::process::Process;
use postern_e2e::{postern, requires};
use postern_proxy::redirect::{self, Capture, apply_in, rules};

const PROGRAMS: [&str; 5] = ["ip", "setpriv", "unshare", "python3", "ss"];
/// An init container holds up its pod.
const QUICK: Duration = Duration::from_secs(5);

/// A pod whose captured connections end at a stand-in for the proxy, which says `captured`; and another pod, where the
/// same ports say `reached`.
struct Pair {
    _servers: Vec<Process>,
    pod: Pod,
    other: Pod,
    lab: Lab,
}

impl Pair {
    fn new(ports: &[u16]) -> Self {
        let mut lab = Lab::new();
        let (pod, other) = (lab.pod("pod"), lab.pod("other"));
        let mut servers = vec![serve(&pod, 15_001, "captured"), serve(&pod, 15_006, "captured")];
        for port in ports {
            servers.push(serve(&other, *port, "reached"));
            servers.push(serve(&pod, *port, "reached"));
        }
        Self {
            _servers: servers,
            pod,
            other,
            lab,
        }
    }

    /// What the pod's app finds at `address`.
    fn outward(&self, address: &str, port: u16) -> String {
        dial(&self.pod, address, port, 0.01)
    }

    /// What the other pod finds at the pod.
    fn inward(&self, address: &str, port: u16) -> String {
        dial(&self.other, address, port, 0.01)
    }
}

fn serve(pod: &Pod, port: u16, word: &str) -> Process {
    let program = world::program("catch.py");
    // As root: its own connections would be the proxy's otherwise.
    let mut server = pod.start_as_root(
        &format!("serve-{port}"),
        &format!("python3 {program} serve {port} {word}"),
    );
    let listens = format!("ss -tln | grep -q ':{port} '");
    server.wait_for("listener", || pod.run(&listens).status.success().then_some(()));
    server
}

/// The words that came, without their counts.
fn dial(pod: &Pod, address: &str, port: u16, seconds: f64) -> String {
    let program = world::program("catch.py");
    let said = pod.prints(&format!("python3 {program} dial {address} {port} {seconds}"));
    let words = said
        .split_whitespace()
        .map(|word| word.split('=').next().unwrap_or_default());
    words.collect::<Vec<_>>().join(" ")
}

fn redirect(pod: &Pod, more: &[&str]) -> Output {
    let mut command = pod.command(0, postern());
    command.args(["proxy", "redirect"]).args(more).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn skipped_ports_and_ranges_of_both_families_are_left_alone_and_the_rest_is_captured() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let pair = Pair::new(&[7_001, 7_002, 7_003, 15_020]);
    let elsewhere = "192.0.2.7";
    let out = redirect(
        &pair.pod,
        &[
            "--skip-inbound-ports",
            "7001",
            "--skip-outbound-ports",
            "7002",
            "--skip-outbound-cidrs",
            "198.51.100.0/24,2001:db8::/32",
        ],
    );
    assert!(out.status.success(), "{}", said(&out));
    for (v, other) in [(&pair.pod.v4, &pair.other.v4), (&pair.pod.v6, &pair.other.v6)] {
        assert_eq!(pair.inward(v, 7_001), "reached");
        assert_eq!(pair.inward(v, 7_002), "captured");
        assert_eq!(
            pair.inward(v, 15_020),
            "reached",
            "probes and metrics are never captured"
        );
        assert_eq!(pair.outward(other, 7_002), "reached");
        assert_eq!(pair.outward(other, 7_001), "captured");
        assert_eq!(
            pair.outward(other, 15_020),
            "captured",
            "only inbound is that port skipped"
        );
    }
    assert_eq!(
        pair.outward("127.0.0.1", 7_003),
        "reached",
        "loopback never left the app"
    );
    assert_eq!(pair.outward(elsewhere, 7_003), "captured");
    // The other pod takes an address in each of the ranges.
    for address in ["198.51.100.9/32", "2001:db8::9/128 nodad", "192.0.2.7/32"] {
        let namespace = pair.other.network_namespace();
        let name = namespace.file_name().unwrap().to_str().unwrap();
        sh(&format!("ip -n {name} addr add dev eth0 {address}"));
    }
    assert_eq!(pair.outward("198.51.100.9", 7_003), "reached");
    assert_eq!(pair.outward("2001:db8::9", 7_003), "reached");
    assert_eq!(pair.outward(elsewhere, 7_003), "captured", "outside of the ranges");
    // The next run says all there is: nothing of the one before remains.
    assert!(redirect(&pair.pod, &[]).status.success());
    assert_eq!(pair.inward(&pair.pod.v4, 7_001), "captured");
    assert_eq!(pair.outward("198.51.100.9", 7_003), "captured");
    assert!(redirect(&pair.pod, &["--remove"]).status.success());
    assert_eq!(pair.inward(&pair.pod.v4, 7_001), "reached");
    assert!(
        redirect(&pair.pod, &["--remove"]).status.success(),
        "there is nothing to remove, which is well"
    );
}

#[test]
fn an_init_container_needs_net_admin_alone_and_writes_no_file_and_without_it_the_fix_is_named() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let pair = Pair::new(&[7_001]);
    // Root without capabilities but those named, no new privileges, and a root file system that nobody can write to.
    let contained = |capabilities: &str| {
        let mut command = pair.pod.command(0, "unshare");
        let line = format!(
            "mount -o remount,bind,ro / && mount -t tmpfs -o ro none /run && exec setpriv --no-new-privs --bounding-set={capabilities} \
             --inh-caps=-all {} proxy redirect",
            pair.lab.directory().join("postern").display()
        );
        command.args(["--mount", "sh", "-ec", &line]);
        command
    };
    sh(&format!(
        "cp {} {}/postern",
        postern().display(),
        pair.lab.directory().display()
    ));
    for _ in 0..2 {
        let mut init = Process::start("init", contained("-all,+net_admin"), pair.lab.directory());
        let status = init.wait(QUICK);
        assert!(status.success(), "{}", init.output());
        assert_eq!(pair.inward(&pair.pod.v4, 7_001), "captured");
    }
    let out = contained("-all").output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    for word in [
        "nothing has changed",
        "NET_ADMIN",
        "pod-security.kubernetes.io/enforce",
        "--netns",
    ] {
        assert!(said(&out).contains(word), "{word}: {}", said(&out));
    }
    assert_eq!(pair.inward(&pair.pod.v4, 7_001), "captured", "what was there stays");
}

#[test]
fn rules_are_set_in_a_given_namespace_and_nowhere_else() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let pair = Pair::new(&[7_001]);
    let path = pair.pod.network_namespace();
    // As a CNI plug-in does it: from another namespace, here that of the other pod.
    let out = redirect(&pair.other, &["--netns", path.to_str().unwrap()]);
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(pair.inward(&pair.pod.v4, 7_001), "captured");
    assert_eq!(dial(&pair.pod, &pair.other.v4, 7_001, 0.01), "captured");
    assert!(redirect(&pair.pod, &["--remove"]).status.success());
    assert_eq!(
        dial(&pair.pod, &pair.other.v4, 7_001, 0.01),
        "reached",
        "nothing was set in its own"
    );
    for (path, says) in [
        ("/var/run/netns/nobody", "cannot open the network namespace"),
        ("/proc/self/ns/uts", "it is no network namespace"),
        ("/etc/passwd", "it is no network namespace"),
    ] {
        let out = redirect(&pair.other, &["--netns", path]);
        assert!(
            !out.status.success() && said(&out).contains(says),
            "{path}: {}",
            said(&out)
        );
    }
}

#[test]
fn a_namespace_without_ipv6_is_captured_as_well() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let pair = Pair::new(&[7_001]);
    sh(&format!(
        "ip netns exec {} sh -c 'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6'",
        pair.pod.network_namespace().file_name().unwrap().to_str().unwrap()
    ));
    let out = redirect(&pair.pod, &["--skip-outbound-cidrs", "2001:db8::/32"]);
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(pair.inward(&pair.pod.v4, 7_001), "captured");
    assert_eq!(pair.outward(&pair.other.v4, 7_001), "captured");
}

#[test]
fn no_connection_slips_through_while_the_rules_are_set_again() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let pair = Pair::new(&[7_001]);
    assert!(redirect(&pair.pod, &[]).status.success());
    let program = world::program("catch.py");
    let mut dialling = pair
        .pod
        .start("dial", &format!("python3 {program} dial {} 7001 4", pair.other.v4));
    let mut runs = 0;
    let capture = |skip: &[u16]| Capture {
        proxy_uid: redirect::PROXY_UID,
        inbound_port: 15_006,
        outbound_port: 15_001,
        skip_inbound_ports: skip.iter().copied().collect(),
        skip_outbound_ports: skip.iter().copied().collect(),
        skip_outbound_cidrs: Vec::new(),
    };
    let path = pair.pod.network_namespace();
    while !pair.lab.directory().join("pod-dial.log").exists() || dialling.output().is_empty() {
        // Different rules each time, so that the kernel has something to do.
        apply_in(&path, &rules::program(&capture(&[80 + runs % 2]))).unwrap();
        runs += 1;
    }
    assert!(dialling.wait(QUICK).success());
    let said = dialling.output();
    assert!(runs > 20, "{runs} runs");
    assert!(
        said.starts_with("captured=") && said.split_whitespace().count() == 1,
        "{runs} runs: {said}"
    );

    // A batch that the kernel refuses in its last part changes nothing.
    let mut broken = rules::program(&capture(&[7_001]));
    broken.push(rules::Chain {
        name: Box::leak("x".repeat(300).into_boxed_str()),
        hook: rules::Hook::Output,
        rules: Vec::new(),
    });
    let error = apply_in(&path, &broken).unwrap_err();
    assert!(error.contains("refused"), "{error}");
    assert_eq!(pair.outward(&pair.other.v4, 7_001), "captured", "{error}");
}
