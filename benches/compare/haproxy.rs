//! HAProxy's pair, set up to do what ours does and as lean as it can be: mutual TLS 1.3 with P-256 keys, the server's name
//! and the client's name checked, method and path looked at, connections reused always, no log.

use std::fs;
use std::path::Path;

use postern_benches::certificates::Authority;
use postern_e2e::lab::Pod;
use postern_e2e::process::Process;
use postern_identity::TrustDomain;

use crate::Flaw;
use crate::args::Kind;
use crate::subject::{Hop, Subject};
use crate::world::APP_PORT;

const CLIENT: &str = "client.bench.test";
const SERVER: &str = "server.bench.test";

/// The two processes, and what to measure.
pub(crate) struct Pair {
    pub(crate) processes: [Process; 2],
    pub(crate) subject: Subject,
}

impl Pair {
    /// Starts one HAProxy in each pod; the app listens in the server's.
    pub(crate) fn start(directory: &Path, client: &Pod, server: &Pod, workers: u8) -> Result<Self, Flaw> {
        let directory = directory.join("haproxy");
        fs::create_dir_all(&directory)?;
        write_certificates(&directory)?;
        let configuration = directory.join("client.cfg");
        fs::write(&configuration, client_configuration(&directory, &server.v4, workers))?;
        let at_client = client.start("haproxy", &format!("haproxy -db -f {}", configuration.display()));
        let configuration = directory.join("server.cfg");
        fs::write(&configuration, server_configuration(&directory, &server.v4, workers))?;
        let at_server = server.start("haproxy", &format!("haproxy -db -f {}", configuration.display()));
        let hop = |pod: &Pod| Hop {
            pod: pod.clone(),
            metrics: "http://127.0.0.1:8404/metrics".into(),
            family: "haproxy_frontend_http_requests_total",
            labels: &["proxy=\"in\""],
        };
        Ok(Self {
            subject: Subject {
                kind: Kind::Haproxy,
                pod: client.clone(),
                url: "http://127.0.0.1:9080/".into(),
                proxies: vec![at_client.id(), at_server.id()],
                hops: vec![hop(client), hop(server)],
            },
            processes: [at_client, at_server],
        })
    }
}

fn write_certificates(directory: &Path) -> Result<(), Flaw> {
    let trust_domain = TrustDomain::parse("bench.test").map_err(|error| Flaw::Io(std::io::Error::other(error)))?;
    let authority = Authority::new(&trust_domain)?;
    fs::write(directory.join("root.pem"), authority.root_pem())?;
    for name in [CLIENT, SERVER] {
        let leaf = authority.leaf(&format!("spiffe://bench.test/ns/bench/sa/{name}"), Some(name))?;
        // Readable for the app's user, which HAProxy runs as: the keys live as long as this run.
        fs::write(directory.join(format!("{name}.pem")), leaf.pem_with_key())?;
    }
    Ok(())
}

/// `pool-purge-delay`: HAProxy would close half of its idle connections every 5 s, and pay for handshakes again.
fn client_configuration(directory: &Path, server: &str, workers: u8) -> String {
    format!(
        "{}
frontend in
  bind 127.0.0.1:9080
  default_backend peer
backend peer
  server peer {server}:9443 ssl crt {d}/{CLIENT}.pem ca-file {d}/root.pem verify required verifyhost {SERVER} \
  ssl-min-ver TLSv1.3 alpn http/1.1 pool-purge-delay 300s
",
        common(workers),
        d = directory.display()
    )
}

fn server_configuration(directory: &Path, address: &str, workers: u8) -> String {
    format!(
        "{}
frontend in
  bind {address}:9443 ssl crt {d}/{SERVER}.pem ca-file {d}/root.pem verify required ssl-min-ver TLSv1.3 alpn http/1.1
  http-request deny deny_status 403 unless {{ ssl_c_s_dn(CN) -m str {CLIENT} }} {{ method GET }} {{ path_beg / }}
  default_backend app
backend app
  server app 127.0.0.1:{APP_PORT} pool-purge-delay 300s
",
        common(workers),
        d = directory.display()
    )
}

fn common(workers: u8) -> String {
    format!(
        "global
  nbthread {workers}
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  timeout http-keep-alive 300s
  http-reuse always
frontend metrics
  bind 127.0.0.1:8404
  http-request use-service prometheus-exporter if {{ path /metrics }}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_insist_on_the_other_s_certificate_and_name() {
        let client = client_configuration(Path::new("/d"), "10.0.0.2", 2);
        assert!(client.contains("verify required verifyhost server.bench.test ssl-min-ver TLSv1.3"));
        let server = server_configuration(Path::new("/d"), "10.0.0.2", 2);
        assert!(server.contains("verify required ssl-min-ver TLSv1.3"));
        assert!(server.contains("deny deny_status 403 unless { ssl_c_s_dn(CN) -m str client.bench.test }"));
        assert!(client.contains("nbthread 2\n") && server.contains("nbthread 2\n"));
    }
}
