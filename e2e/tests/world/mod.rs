//! Four pods: web (may call cart), cart (nginx and others), mallory (in the mesh, no rule), outside (not in the mesh).
#![allow(dead_code, reason = "each test file uses its part of the world")]

pub mod envoy;
pub mod load;
pub mod metrics;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use postern_e2e::lab::{Lab, Pod};
use postern_e2e::mesh::Mesh;
use postern_e2e::process::{Process, eventually};

/// Field order is drop order: processes end before their namespaces.
pub struct World {
    pub nginx: Process,
    pub cart_proxy: Process,
    /// Those of web and mallory.
    pub client_proxies: Vec<Process>,
    pub mesh: Mesh,
    pub web: Pod,
    pub cart: Pod,
    pub mallory: Pod,
    pub outside: Pod,
    pub lab: Lab,
}

pub const ALLOW_SELF: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: cart-itself, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]
";

impl World {
    /// Everybody is there, and web has had an answer from cart.
    pub fn new(life: &str) -> Self {
        let mut world = Self::serving(life);
        for (name, pod) in [("web", &world.web), ("mallory", &world.mallory)] {
            let proxy = world.mesh.capture(pod, "shop", name, name, &[]);
            world.client_proxies.push(proxy);
        }
        eventually("the first answer through the mesh", || {
            (world.code(&world.web, 8080, "/") == "200").then_some(())
        });
        world
    }

    /// Only cart has a proxy: for callers that bring an SVID of their own, or none.
    pub fn serving(life: &str) -> Self {
        let mut lab = Lab::new();
        let mesh = Mesh::start(&mut lab, life);
        let [web, cart, mallory, outside] = ["web", "cart", "mallory", "outside"].map(|name| lab.pod(name));
        mesh.write("shop.yaml", &documents(&web, &cart, &mallory));
        fs::create_dir_all(lab.directory().join("pages/admin")).unwrap();
        fs::write(lab.directory().join("pages/index.html"), "welcome\n").unwrap();
        fs::write(lab.directory().join("pages/admin/index.html"), "admin\n").unwrap();
        let configuration = lab.directory().join("nginx.conf");
        fs::write(&configuration, nginx_configuration(lab.directory())).unwrap();
        let nginx = cart.start_as_root("nginx", &format!("nginx -c {}", configuration.display()));
        let cart_proxy = mesh.capture(&cart, "shop", "cart", "cart", &[]);
        Self {
            nginx,
            cart_proxy,
            client_proxies: Vec::new(),
            mesh,
            web,
            cart,
            mallory,
            outside,
            lab,
        }
    }

    /// The status that an app in `pod` gets from cart.
    pub fn code(&self, pod: &Pod, port: u16, path: &str) -> String {
        let cart = &self.cart.v4;
        pod.prints(&format!(
            "curl -s -o /dev/null -w '%{{http_code}}' -m 10 http://{cart}:{port}{path}"
        ))
    }

    /// The line protocol's server, on cart's port 7000.
    pub fn serve_lines(&self) -> Process {
        let program = program("lines.py");
        let mut server = self
            .cart
            .start_as_root("lines", &format!("python3 {program} serve 7000"));
        let listens = "ss -tln | grep -q ':7000 '";
        server.wait_for("listener", || self.cart.run(listens).status.success().then_some(()));
        server
    }

    /// A client that keeps a stream to it open, dialling again whenever it ends.
    pub fn hold_lines(&self, pod: &Pod) -> Process {
        let program = program("lines.py");
        pod.start_as_root("hold", &format!("python3 {program} hold {} 7000", self.cart.v4))
    }

    pub fn write_page(&self, name: &str, content: &str) {
        fs::write(self.lab.directory().join("pages").join(name), content).unwrap();
    }

    /// Records what crosses the bridge between web and cart.
    pub fn capture_wire(&self) -> Capture {
        let file = self.lab.directory().join("wire.pcap");
        let filter = format!("host {} or host {}", self.cart.v4, self.cart.v6);
        let mut process = self.lab.switch().start_as_root(
            "dumpcap",
            &format!("dumpcap -q -i br0 -f '{filter}' -w {}", file.display()),
        );
        process.wait_for("capture", || file.exists().then_some(()));
        Capture { process, file }
    }
}

pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Ends it; gives the TLS versions that servers chose, and every captured byte as text.
    pub fn finish(mut self, world: &World) -> (Vec<String>, String) {
        // dumpcap writes in blocks: what was sent is on disk once it has ended in good order.
        self.process.terminate();
        self.process.wait(std::time::Duration::from_secs(10));
        let file = self.file.display();
        // Between the two pods, control's and the CA's connections left out.
        let of = format!(
            "({0} == {1} || {2} == {3})",
            "ip.addr", world.web.v4, "ipv6.addr", world.web.v6
        );
        let tshark = |filter: &str, field: &str| {
            let as_tls = [8_080, 8_082, 7_000].map(|port| format!("-dtcp.port=={port},tls"));
            let out = Command::new("tshark")
                .args(as_tls)
                .args(["-r", &file.to_string(), "-Y", filter, "-T", "fields", "-e", field])
                .output()
                .unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8_lossy(&out.stdout).into_owned()
        };
        let mut versions: Vec<String> = tshark(
            &format!("{of} && tls.handshake.type == 2"),
            "tls.handshake.extensions.supported_version",
        )
        .split_whitespace()
        .map(ToOwned::to_owned)
        .collect();
        versions.sort();
        versions.dedup();
        // Every connection between them begins with a TLS handshake, or was there before and goes on with TLS records.
        let not_tls = tshark(
            &format!(
                "{of} && tcp.len > 0 && tcp.seq == 1 && !(tcp.payload[0] == 16) && !(tcp.payload[0:3] == 17:03:03)"
            ),
            "frame.number",
        );
        assert!(
            not_tls.trim().is_empty(),
            "frames that open a connection with something else than TLS: {not_tls}"
        );
        (
            versions,
            String::from_utf8_lossy(&fs::read(&self.file).unwrap()).into_owned(),
        )
    }
}

/// The namespace, its workloads, and who may call cart.
pub fn documents(web: &Pod, cart: &Pod, mallory: &Pod) -> String {
    documents_in("protect", web, cart, mallory)
}

/// The same in another mode.
pub fn documents_in(mode: &str, web: &Pod, cart: &Pod, mallory: &Pod) -> String {
    let workload = |name: &str, pod: &Pod, ports: &str| {
        format!(
            "---
apiVersion: postern.dev/v1alpha1
kind: Workload
metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}
spec:
  serviceAccount: {name}
  addresses: [\"{}\", \"{}\"]
  capture: redirect
  ports: {ports}
",
            pod.v4, pod.v6
        )
    };
    let cart_ports = "
  - {name: http, number: 8080, protocol: HTTP}
  - {name: h2c, number: 8082, protocol: HTTP2}
  - {name: feed, number: 8090, protocol: HTTP}
  - {name: grpc, number: 50051, protocol: GRPC}
  - {name: lines, number: 7000, protocol: TCP}
  - {name: smtp, number: 2525, protocol: TCP}";
    [
        format!(
            "apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{postern.dev/mode: {mode}}}}}
"
        ),
        workload("web", web, "[]"),
        workload("cart", cart, cart_ports),
        workload("mallory", mallory, "[]"),
        "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: cart-from-web, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  action: DENY
  rules:
  - to: [{operation: {ports: [\"8080\"], paths: [/admin, /admin/*]}}]
"
        .to_owned(),
    ]
    .concat()
}

fn nginx_configuration(directory: &Path) -> String {
    format!(
        "daemon off; master_process off; error_log {0}/nginx-error.log; pid {0}/nginx.pid; user root;
events {{ worker_connections 512; }}
http {{
  access_log {0}/nginx-access.log; client_body_temp_path {0}/nb; proxy_temp_path {0}/np; fastcgi_temp_path {0}/nf;
  uwsgi_temp_path {0}/nu; scgi_temp_path {0}/ns; keepalive_requests 1000000;
  server {{
    listen 0.0.0.0:8080; listen [::]:8080; root {0}/pages;
    location = /who {{ return 200 \"source=$http_x_postern_source certificate=$http_x_forwarded_client_cert\\n\"; }}
  }}
  server {{ listen 0.0.0.0:8082 http2; listen [::]:8082 http2; root {0}/pages; }}
}}
",
        directory.display()
    )
}

/// A word that occurs nowhere else.
pub fn nonce() -> String {
    let bytes = fs::read("/proc/sys/kernel/random/uuid").unwrap();
    format!("nonce-{}", String::from_utf8_lossy(&bytes).trim())
}

/// A Python that has these modules: `POSTERN_E2E_PYTHON`, else what `e2e/install` made, else `python3`.
pub fn python(modules: &[&str]) -> Option<String> {
    let python = std::env::var("POSTERN_E2E_PYTHON").unwrap_or_else(|_| {
        let made = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/e2e-python/bin/python");
        let python = if Path::new(made).is_file() { made } else { "python3" };
        python.to_owned()
    });
    let imports = modules
        .iter()
        .map(|m| format!("import {m}"))
        .collect::<Vec<_>>()
        .join(";");
    if Command::new(&python)
        .args(["-c", &imports])
        .output()
        .is_ok_and(|out| out.status.success())
    {
        return Some(python);
    }
    let wanted: Vec<String> = modules
        .iter()
        .map(|m| format!("Python module {m} (e2e/install)"))
        .collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let _ = postern_e2e::requires(&wanted, false);
    None
}

/// The path of one of our stock-library programs.
pub fn program(name: &str) -> String {
    format!("{}/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}
