//! What operators see: a stock Prometheus and promtool read every component.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod world;

use std::collections::BTreeSet;
use std::fs;

use postern_e2e::process::{Process, eventually};
use postern_e2e::requires;
use world::World;
use world::metrics::Scrape;

const PROGRAMS: [&str; 6] = ["ip", "setpriv", "curl", "nginx", "prometheus", "promtool"];
/// Where each component of the mesh's own pod shows its metrics.
const CA: u16 = 15_021;
const CONTROL: u16 = 15_022;

#[test]
fn promtool_finds_no_fault_with_any_component_and_open_metrics_is_given_to_whom_accepts_it() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let world = World::serving("1h");
    some_of_everything(&world);
    for (name, pod, port) in [
        ("proxy", &world.cart, 15_020),
        ("ca", &world.mesh.pod, CA),
        ("control", &world.mesh.pod, CONTROL),
    ] {
        let url = format!("http://127.0.0.1:{port}/metrics");
        let checked = pod.run(&format!("curl -sf {url} | promtool check metrics"));
        let said = [checked.stdout, checked.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(checked.status.success() && said.trim().is_empty(), "{name}: {said}");

        let kind = "curl -sf -o /dev/null -w '%{content_type}'";
        let plain = pod.prints(&format!("{kind} {url}"));
        assert!(plain.starts_with("text/plain; version=0.0.4"), "{name}: {plain}");
        let accept = "-H 'Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5'";
        let open = pod.prints(&format!("{kind} {accept} {url}"));
        assert!(
            open.starts_with("application/openmetrics-text; version=1.0.0"),
            "{name}: {open}"
        );
        let body = pod.prints(&format!("curl -sf {accept} {url}"));
        assert!(body.ends_with("# EOF\n"), "{name}");
    }
}

#[test]
fn a_stock_prometheus_finds_what_operators_ask_for() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    // Short lives, so that renewals are there to be seen.
    let world = World::new("6s");
    some_of_everything(&world);
    let mut prometheus = Prometheus::start(&world);
    for (question, query) in [
        ("everybody is scraped", "count(up == 1) == 5".to_owned()),
        (
            "handshakes",
            "postern_proxy_handshakes_total{direction='inbound'} > 0".into(),
        ),
        (
            "failed handshakes by reason",
            "postern_proxy_handshake_failures_total{direction='inbound',reason='no_certificate'} > 0".into(),
        ),
        (
            "handshakes of our own",
            "postern_proxy_handshakes_total{direction='outbound'} > 0".into(),
        ),
        (
            "what goes where",
            "postern_proxy_requests_total{direction='outbound',service='cart.shop',tls='mutual',outcome='allowed'} > 0"
                .into(),
        ),
        (
            "connections refused by reason",
            "postern_proxy_refused_connections_total{reason='plaintext'} > 0".into(),
        ),
        (
            "when our certificate expires",
            "postern_proxy_certificate_expiry_timestamp_seconds - time() > 0".into(),
        ),
        ("renewals", "postern_proxy_certificate_renewals_total > 0".into()),
        ("who may", requests("web", "allowed", "2xx")),
        ("who may not", requests("mallory", "denied", "4xx")),
        (
            "how long it takes",
            "histogram_quantile(0.99, sum by (le) (postern_proxy_request_duration_seconds_bucket)) > 0".into(),
        ),
        (
            "which policy denies",
            "postern_proxy_denials_total{policy='shop/no-admin',reason='deny_rule',enforced='true'} > 0".into(),
        ),
        (
            "who is denied for want of a rule",
            "postern_proxy_denials_total{policy='',reason='no_allow_rule'} > 0".into(),
        ),
        ("is control there", "postern_proxy_control_connected == 1".into()),
        (
            "the CA's work",
            "postern_ca_certificates_issued_total{attestation='renewal'} > 0".into(),
        ),
        ("the CA's refusals", "postern_ca_refused_total >= 0".into()),
        (
            "when the issuer expires",
            "postern_ca_issuer_not_after_timestamp_seconds - time() > 0".into(),
        ),
        (
            "how long the CA takes",
            "postern_ca_issue_duration_seconds_count > 0".into(),
        ),
        ("who is connected", "postern_control_connected_proxies == 3".into()),
        (
            "what was sent",
            "postern_control_pushes_total{kind='policies'} > 0".into(),
        ),
        ("is the directory good", "postern_control_bad_files == 0".into()),
        (
            "control's own certificate",
            "postern_control_certificate_not_after_timestamp_seconds - time() > 0".into(),
        ),
        (
            "control's renewals",
            "postern_control_certificate_renewals_total{outcome='done'} > 0".into(),
        ),
    ] {
        prometheus.wait_for(question, &query);
    }
}

#[test]
fn series_grow_with_identities_and_never_with_what_callers_make_up() {
    if !requires(&PROGRAMS, true) {
        return;
    }
    let world = World::serving("1h");
    some_of_everything(&world);
    let before = series(&world);

    // 300 hosts, paths, methods and agents; and plaintext from many ports.
    let svid = world
        .mesh
        .svid(&world.outside, "shop", "web", "web-many")
        .display()
        .to_string();
    let made_up: Vec<String> = (0..300)
        .map(|i| {
            format!(
                "url = \"https://{}:8080/made-up-{i}?q={i}\"\nheader = \"Host: host-{i}.example\"\nuser-agent = \
                 \"agent-{i}\"\nrequest = \"VERB{i}\"\ninsecure\nsilent\noutput = /dev/null\ncert = \
                 {svid}/svid.pem\nkey = {svid}/key.pem\n",
                world.cart.v4
            )
        })
        .collect();
    let file = world.lab.directory().join("made-up.curl");
    fs::write(&file, made_up.join("next\n")).unwrap();
    assert!(
        world
            .outside
            .run(&format!("curl -K {}", file.display()))
            .status
            .success()
    );
    let _ = world.outside.prints(&format!(
        "for i in $(seq 50); do curl -s http://{}:8080/; curl -sk https://{0}:8080/; done",
        world.cart.v4
    ));
    let seen = Scrape::proxy(&world.cart).sum("postern_proxy_requests_total", &["sa/web"]);
    assert!(seen > 300.0, "the requests were counted: {seen}");
    let after = series(&world);
    let new: Vec<_> = after.difference(&before).collect();
    assert!(new.is_empty(), "new series: {new:#?}");

    // 20 identities: one series each, for being refused.
    for i in 0..20 {
        let name = format!("stranger-{i}");
        let svid = world.mesh.svid(&world.outside, "shop", &name, &name);
        assert_eq!(call(&world, &svid.display().to_string(), "/"), "403");
    }
    let new = series(&world).difference(&after).count();
    assert_eq!(new, 20, "one series for each identity that was refused");
}

/// A sum of requests by caller, outcome and status class.
fn requests(source: &str, outcome: &str, code: &str) -> String {
    format!(
        "postern_proxy_requests_total{{direction='inbound',source='spiffe://cluster.local/ns/shop/sa/{source}',\
         outcome='{outcome}',code='{code}',tls='mutual'}} > 0"
    )
}

/// Allowed, denied either way, not found, without a certificate, and in plaintext.
fn some_of_everything(world: &World) {
    let web = world
        .mesh
        .svid(&world.outside, "shop", "web", "web-once")
        .display()
        .to_string();
    let mallory = world
        .mesh
        .svid(&world.outside, "shop", "mallory", "mallory-once")
        .display()
        .to_string();
    assert_eq!(call(world, &web, "/"), "200");
    assert_eq!(call(world, &web, "/nothing-here"), "404");
    assert_eq!(call(world, &web, "/admin"), "403");
    assert_eq!(call(world, &mallory, "/"), "403");
    let address = format!("{}:8080", world.cart.v4);
    assert!(
        !world
            .outside
            .run(&format!("curl -sk https://{address}/"))
            .status
            .success()
    );
    assert!(
        !world
            .outside
            .run(&format!("curl -s http://{address}/"))
            .status
            .success()
    );
    eventually("the refusals to be counted", || {
        let scrape = Scrape::proxy(&world.cart);
        (scrape.sum("postern_proxy_refused_connections_total", &[]) >= 2.0).then_some(())
    });
}

fn call(world: &World, svid: &str, path: &str) -> String {
    world.outside.prints(&format!(
        "curl -sk -o /dev/null -w '%{{http_code}}' -m 10 --cert {svid}/svid.pem --key {svid}/key.pem \
         https://{}:8080{path}",
        world.cart.v4
    ))
}

/// Names and labels of all series of cart's proxy.
fn series(world: &World) -> BTreeSet<String> {
    Scrape::proxy(&world.cart)
        .samples()
        .map(|(name, labels, _)| format!("{name}{{{labels}}}"))
        .collect()
}

struct Prometheus<'a> {
    process: Process,
    world: &'a World,
}

impl<'a> Prometheus<'a> {
    /// In the mesh's pod, where the CA and control show their metrics on loopback.
    fn start(world: &'a World) -> Self {
        let directory = world.lab.directory().join("prometheus");
        fs::create_dir_all(&directory).unwrap();
        let targets = [
            format!("{}:15020", world.cart.v4),
            format!("{}:15020", world.web.v4),
            // The other family.
            format!("[{}]:15020", world.mallory.v6),
            format!("127.0.0.1:{CA}"),
            format!("127.0.0.1:{CONTROL}"),
        ];
        let configuration = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: postern\n  \
             static_configs: [{{targets: {targets:?}}}]\n"
        );
        fs::write(directory.join("prometheus.yml"), configuration).unwrap();
        let process = world.mesh.pod.start_as_root(
            "prometheus",
            &format!(
                "prometheus --config.file={0}/prometheus.yml --storage.tsdb.path={0}/data \
                 --web.listen-address=127.0.0.1:9090 --log.level=warn",
                directory.display()
            ),
        );
        Self { process, world }
    }

    /// Until the query gives at least one series.
    fn wait_for(&mut self, question: &str, query: &str) {
        let ask = format!("curl -s -m 5 -G --data-urlencode \"query={query}\" http://127.0.0.1:9090/api/v1/query");
        let mut last = String::new();
        let pod = &self.world.mesh.pod;
        self.process.wait_for(&format!("answer to `{question}`: {query}"), || {
            last = pod.prints(&ask);
            let answer: serde_json::Value = serde_json::from_str(&last).ok()?;
            let found = answer["data"]["result"].as_array()?;
            (!found.is_empty()).then_some(())
        });
    }
}
