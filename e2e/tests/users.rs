//! End users with a real OpenID Connect issuer (oidc-provider): its tokens, step-up by its own login, rotation of its keys
//! under load, and life without it.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use postern_e2e::lab::Pod;
use postern_e2e::process::{Process, eventually};
use postern_e2e::{requires, requires_installed};
use world::{World, program};

const PROGRAMS: [&str; 7] = ["ip", "setpriv", "curl", "nginx", "ss", "python3", "node"];
/// What `e2e/install` puts there.
const ISSUER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/e2e-oidc");
/// Control fetches the keys of an issuer no more often.
const FETCHES_APART: Duration = Duration::from_secs(10);

/// Mallory may call, but for the vault nobody may without a login that is good enough.
const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: cart-from-mallory, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/mallory]}}]
---
apiVersion: postern.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: vault, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  action: DENY
  rules:
  - to: [{operation: {paths: [/vault.html]}}]
    when: [{key: 'request.auth.claims[acr]', notValues: [gold]}]
---
apiVersion: postern.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: factors, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  action: DENY
  rules:
  - to: [{operation: {paths: [/factors.html]}}]
    when: [{key: 'request.auth.claims[amr]', notValues: [otp]}]
";

struct Sso {
    world: World,
    pod: Pod,
    issuer: Process,
    address: String,
}

/// What came of a request.
struct Answer {
    status: String,
    challenge: String,
}

impl Sso {
    fn start() -> Self {
        let mut world = World::new("1h");
        world.write_page("vault.html", "the vault\n");
        world.write_page("factors.html", "the factors\n");
        let pod = world.lab.pod("sso");
        let address = format!("http://{}:9000", pod.v4);
        let mut issuer = pod.start_as_root("issuer", &format!("node {ISSUER}/issuer.js {} 9000", pod.v4));
        let ready = format!("curl -sf {address}/.well-known/openid-configuration");
        issuer.wait_for("the issuer", || pod.run(&ready).status.success().then_some(()));
        world.mesh.write("vault.yaml", POLICIES);
        world.mesh.write(
            "sso.yaml",
            &format!(
                "apiVersion: postern.dev/v1alpha1
kind: RequestAuthentication
metadata: {{name: sso, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: cart}}}}
  jwtRules:
  - issuer: {address}
    audiences: [https://cart.test]
    bindToWorkload: [{{clientId: web, principals: [cluster.local/ns/shop/sa/web]}}]
"
            ),
        );
        let sso = Self {
            world,
            pod,
            issuer,
            address,
        };
        let first = sso.login("silver", "https://cart.test");
        eventually("the issuer's keys at cart's proxy", || {
            (sso.ask(&sso.world.web, "/", &[&bearer(&first)]).status == "200"
                && sso.ask(&sso.world.web, "/", &[&bearer("x")]).status == "401")
                .then_some(())
        });
        sso
    }

    /// A whole authorization code flow; its access token.
    fn login(&self, acr: &str, resource: &str) -> String {
        let url = format!("{}/login?acr={acr}&resource={resource}", self.address);
        let token = self.pod.prints(&format!("curl -sf -m 20 '{url}'"));
        assert_eq!(token.split('.').count(), 3, "no token: {token}");
        token
    }

    fn ask(&self, pod: &Pod, path: &str, fields: &[&str]) -> Answer {
        let fields: String = fields.iter().map(|field| format!(" -H '{field}'")).collect();
        let url = format!("http://{}:8080{path}", self.world.cart.v4);
        let head = pod.prints(&format!("curl -s -o /dev/null -D - -m 10{fields} {url}"));
        let challenge = head.lines().find_map(|line| line.strip_prefix("www-authenticate: "));
        Answer {
            status: head.split_whitespace().nth(1).unwrap_or_default().to_owned(),
            challenge: challenge.unwrap_or_default().trim().to_owned(),
        }
    }

    fn told(&self, what: &str) -> String {
        self.pod.prints(&format!("curl -sf {}/{what}", self.address))
    }
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

fn can_run() -> bool {
    requires(&PROGRAMS, true) && requires_installed(&[Path::new(ISSUER).join("node_modules/oidc-provider")])
}

#[test]
fn a_client_that_is_told_to_log_in_more_strongly_does_so_and_gets_in() {
    if !can_run() {
        return;
    }
    let sso = Sso::start();
    let web = &sso.world.web;
    // Nobody: what needs no user is open, what needs one says so.
    assert_eq!(sso.ask(web, "/", &[]).status, "200");
    let nobody = sso.ask(web, "/vault.html", &[]);
    assert_eq!((&*nobody.status, &*nobody.challenge), ("401", "Bearer realm=\"mesh\""));
    // RFC 9470: the answer says which login would do, the client asks its issuer for that.
    let weak = bearer(&sso.login("silver", "https://cart.test"));
    let told = sso.ask(web, "/vault.html", &[&weak]);
    assert_eq!(told.status, "401");
    assert!(
        told.challenge.contains("error=\"insufficient_user_authentication\""),
        "{}",
        told.challenge
    );
    let wanted = told
        .challenge
        .split("acr_values=\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    let strong = bearer(&sso.login(wanted.unwrap(), "https://cart.test"));
    assert_eq!(sso.ask(web, "/vault.html", &[&strong]).status, "200");
    // The same by factors: `amr`.
    assert_eq!(sso.ask(web, "/factors.html", &[&weak]).status, "401");
    assert_eq!(sso.ask(web, "/factors.html", &[&strong]).status, "200");
}

#[test]
fn t_jwt_tokens_of_a_real_issuer_that_are_not_for_us_or_tampered_with_are_refused() {
    if !can_run() {
        return;
    }
    let sso = Sso::start();
    let web = &sso.world.web;
    let good = sso.login("gold", "https://cart.test");
    assert_eq!(sso.ask(web, "/", &[&bearer(&good)]).status, "200");
    let other = sso.login("gold", "https://bank.test");
    // Signed with the issuer's public key as if it were a secret, and not at all.
    let key = sso.told("public-key");
    let forge = |algorithm: &str| {
        let forge = program("forge_token.py");
        sso.pod.prints(&format!("python3 {forge} {algorithm} '{good}' '{key}'"))
    };
    for (what, token) in [
        ("for another audience", other),
        ("HS256 with the public key", forge("HS256")),
        ("none", forge("none")),
        ("with another subject", forge("ES256")),
    ] {
        assert_eq!(token.split('.').count(), 3, "{what}: {token}");
        let answer = sso.ask(web, "/", &[&bearer(&token)]);
        assert_eq!(answer.status, "401", "{what}");
        assert!(
            answer.challenge.contains("error=\"invalid_token\""),
            "{what}: {}",
            answer.challenge
        );
    }
    let twice = sso.ask(web, "/", &[&bearer(&good), &bearer(&good)]);
    assert_eq!(twice.status, "400");
    assert!(
        twice.challenge.contains("error=\"invalid_request\""),
        "{}",
        twice.challenge
    );
    // Stolen: mallory may call, but not with web's token.
    let mallory = &sso.world.mallory;
    assert_eq!(sso.ask(mallory, "/", &[]).status, "200");
    assert_eq!(sso.ask(mallory, "/", &[&bearer(&good)]).status, "401");
}

#[test]
fn an_issuers_keys_are_rotated_under_load_and_no_good_token_is_refused() {
    if !can_run() {
        return;
    }
    let mut sso = Sso::start();
    // What curl sends; replaced at once by rename.
    let header: PathBuf = sso.world.lab.directory().join("bearer");
    let give = |token: &str| {
        let new = header.with_extension("new");
        fs::write(&new, format!("{}\n", bearer(token))).unwrap();
        fs::rename(&new, &header).unwrap();
    };
    give(&sso.login("gold", "https://cart.test"));
    let url = format!("http://{}:8080/vault.html", sso.world.cart.v4);
    let out = sso.world.lab.directory().join("answers");
    let request = format!(
        "curl -s -o /dev/null -w '%{{http_code}}\\n' -m 10 -H @{} {url}",
        header.display()
    );
    let stop = sso.world.lab.directory().join("stop");
    let lane = sso.world.lab.directory().join("lane.sh");
    let repeated = format!(
        "while [ ! -e {} ]; do {request} >>{}; done\n",
        stop.display(),
        out.display()
    );
    fs::write(&lane, repeated).unwrap();
    let mut lanes: Vec<Process> = (0..3)
        .map(|n| {
            sso.world
                .web
                .start_as_root(&format!("lane-{n}"), &format!("sh {}", lane.display()))
        })
        .collect();
    let answers = || fs::read_to_string(&out).unwrap_or_default();
    for _ in 0..2 {
        // So that the next key is not among those that were fetched a moment ago.
        std::thread::sleep(FETCHES_APART);
        assert_eq!(sso.told("rotate"), "done\n");
        give(&sso.login("gold", "https://cart.test"));
        let before = answers().lines().count();
        eventually("answers to the new token", || {
            (answers().lines().count() > before + 50).then_some(())
        });
    }
    // The issuer goes; its users stay.
    sso.issuer.kill();
    let gone = Instant::now();
    let before = answers().lines().count();
    eventually("answers without the issuer", || {
        (answers().lines().count() > before + 50 && gone.elapsed() > Duration::from_secs(3)).then_some(())
    });
    fs::write(&stop, "").unwrap();
    for lane in &mut lanes {
        lane.wait(Duration::from_secs(15));
    }
    let all = answers();
    let refused: Vec<&str> = all.lines().filter(|status| *status != "200").collect();
    assert!(
        refused.is_empty(),
        "{} of {}: {refused:?}",
        refused.len(),
        all.lines().count()
    );
    assert!(all.lines().count() > 150);
}
