//! The same policy, embedded and behind OPA's own library as an ext_authz server (e2e/opa, built by e2e/install), says the
//! same of the same requests.
#![cfg(feature = "rego")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use postern_authorizer::rego::Source;
use postern_authorizer::{Address, AuthorizationClient, Check, Http, Peer, RegoPolicy, Verdict};

const POLICY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../e2e/opa/authz.rego");
const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/e2e-bin/opa-ext-authz");

struct Opa {
    process: Child,
    address: String,
}

impl Drop for Opa {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `None`: it is not installed, which is said, and under `CI=true` an error.
fn opa() -> Option<Opa> {
    if !Path::new(SERVER).exists() {
        let why = "target/e2e-bin/opa-ext-authz is not there: run e2e/install; OPA itself was NOT compared";
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
        eprintln!("SKIPPED: {why}");
        return None;
    }
    let mut process = Command::new(SERVER)
        .args(["127.0.0.1:0", "data.envoy.authz.allow", POLICY])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut address = String::new();
    BufReader::new(process.stdout.take().unwrap())
        .read_line(&mut address)
        .unwrap();
    Some(Opa {
        process,
        address: address.trim().to_owned(),
    })
}

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "DELETE", "HEAD"];
const PATHS: [&str; 8] = [
    "/public/index.html",
    "/carts/acme/1?reason=refund",
    "/carts/other/1?reason=NO&reason=refund",
    "/carts/acme",
    "/carts",
    "/caf%C3%A9/a%2Fb?x=1&x=2&y",
    "/public",
    "/carts/acme/%7Ea?reason=re%66und&a+b=c;d",
];
const CALLERS: [Option<&str>; 5] = [
    Some("spiffe://cluster.local/ns/shop/sa/web"),
    Some("spiffe://cluster.local/ns/bank/sa/web"),
    Some("spiffe://cluster.local/ns/shop/sa/"),
    Some("spiffe://other.example/x"),
    None,
];

/// 200 requests: each method, path and caller, with addresses and fields that go round.
fn requests() -> Vec<Check> {
    let mut all = Vec::new();
    for method in METHODS {
        for path in PATHS {
            for caller in CALLERS {
                let n = all.len();
                let mut http = Http {
                    id: n.to_string(),
                    method: method.to_owned(),
                    headers: BTreeMap::new(),
                    path: path.to_owned(),
                    host: "cart.shop".to_owned(),
                    scheme: "https",
                    protocol: if n % 2 == 0 { "HTTP/1.1" } else { "HTTP/2" },
                    size: if method == "GET" { -1 } else { 0 },
                    body: None,
                };
                http.add_header("x-n", n.to_string().as_bytes());
                if n % 4 == 0 {
                    http.add_header("x-debug", b"caf\xe9");
                }
                http.finish();
                let address = ["10.1.2.3:4000", "192.0.2.1:4000", "[2001:db8::1]:4000"][n % 3];
                let tenant = ["acme", "other"][n / 2 % 2];
                all.push(Check {
                    source: Peer {
                        address: Some(address.parse().unwrap()),
                        principal: caller.map(str::to_owned),
                    },
                    destination: Peer::default(),
                    time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
                    http: Some(http),
                    sni: (n % 5 == 0).then(|| "cart.shop".to_owned()),
                    context: [("tenant".to_owned(), tenant.to_owned())].into(),
                    facts: serde_json::Map::new(),
                });
            }
        }
    }
    all
}

#[tokio::test]
async fn opa_behind_ext_authz_and_the_same_rego_embedded_say_the_same_of_200_requests() {
    let Some(opa) = opa() else { return };
    let text = std::fs::read_to_string(POLICY).unwrap();
    let source = Source {
        modules: [("authz.rego".to_owned(), text)].into(),
        limit: Duration::from_millis(5),
        ..Source::default()
    };
    let mut embedded = RegoPolicy::load(&source).unwrap().evaluator();
    let external = AuthorizationClient::plain(Address::Tcp(opa.address.clone()), Duration::from_secs(10));
    let requests = requests();
    assert_eq!(requests.len(), 200);
    let (mut allowed, mut edited, mut denied, mut failed) = (0, 0, 0, 0);
    for check in &requests {
        let asked = check.http.as_ref().unwrap();
        let about = format!("{} {} by {:?}", asked.method, asked.path, check.source.principal);
        match (embedded.decide(check), external.decide(check).await) {
            (Ok(ours), Ok(theirs)) => {
                assert_eq!(ours, theirs, "{about}");
                match ours {
                    Verdict::Allow(edits) if edits.is_empty() => allowed += 1,
                    Verdict::Allow(_) => edited += 1,
                    Verdict::Deny(_) => denied += 1,
                }
            }
            (Err(_), Err(_)) => failed += 1,
            (ours, theirs) => panic!("{about}: embedded {ours:?}, OPA {theirs:?}"),
        }
    }
    println!("allowed {allowed}, with edits {edited}, denied {denied}, no verdict {failed}");
    assert!(
        allowed >= 10 && edited >= 3 && denied >= 50,
        "{allowed} {edited} {denied}"
    );
}
