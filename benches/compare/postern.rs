//! Our pair, as users run it: transparently captured, strict mutual TLS, one ALLOW policy, metrics and denial log on.

use postern_e2e::lab::{Lab, Pod};
use postern_e2e::mesh::Mesh;
use postern_e2e::process::Process;

use crate::args::Kind;
use crate::subject::{Hop, Subject};
use crate::world::APP_PORT;

/// CA, control and two proxies, and what to measure.
pub(crate) struct Pair {
    pub(crate) processes: [Process; 2],
    pub(crate) subject: Subject,
    pub(crate) mesh: Mesh,
}

impl Pair {
    /// Starts a mesh and one capturing proxy in each pod; the app listens in the server's.
    pub(crate) fn start(lab: &mut Lab, client: &Pod, server: &Pod, workers: u8) -> Self {
        // Longer than any run: no renewal falls into a measurement.
        let mesh = Mesh::start(lab, "24h");
        mesh.write("bench.yaml", &documents(client, server));
        let workers = workers.to_string();
        let arguments = ["--workers", &workers];
        let at_server = mesh.capture(server, "bench", "server", "server", &arguments);
        let at_client = mesh.capture(client, "bench", "client", "client", &arguments);
        let hop = |pod: &Pod, labels| Hop {
            pod: pod.clone(),
            metrics: "http://127.0.0.1:15020/metrics".into(),
            family: "postern_proxy_requests_total",
            labels,
        };
        let subject = Subject {
            kind: Kind::Postern,
            pod: client.clone(),
            url: format!("http://{}:{APP_PORT}/", server.v4),
            proxies: vec![at_client.id(), at_server.id()],
            hops: vec![
                hop(
                    client,
                    &["direction=\"outbound\"", "tls=\"mutual\"", "outcome=\"allowed\""],
                ),
                hop(
                    server,
                    &["direction=\"inbound\"", "tls=\"mutual\"", "outcome=\"allowed\""],
                ),
            ],
        };
        Self {
            processes: [at_client, at_server],
            subject,
            mesh,
        }
    }
}

fn documents(client: &Pod, server: &Pod) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: bench, labels: {{postern.dev/mode: protect}}}}
---
apiVersion: postern.dev/v1alpha1
kind: Workload
metadata: {{name: client, namespace: bench, labels: {{app: client}}}}
spec:
  serviceAccount: client
  addresses: [\"{}\", \"{}\"]
  capture: redirect
  ports: []
---
apiVersion: postern.dev/v1alpha1
kind: Workload
metadata: {{name: server, namespace: bench, labels: {{app: server}}}}
spec:
  serviceAccount: server
  addresses: [\"{}\", \"{}\"]
  capture: redirect
  ports:
  - {{name: http, number: {APP_PORT}, protocol: HTTP}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: server-from-client, namespace: bench}}
spec:
  selector: {{matchLabels: {{app: server}}}}
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/bench/sa/client]}}}}]
    to: [{{operation: {{methods: [GET], paths: [/*]}}}}]
",
        client.v4, client.v6, server.v4, server.v6
    )
}
