//! Real servers on loopback, each with the same pages: what is public, and what holds the marker.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use postern_e2e::process::Process;
use postern_e2e::{requires, which};

/// It stands on every protected page, and nowhere else.
pub const MARKER: &str = "postern-marker-7f3a91";
/// It stands on the public one.
pub const PUBLIC: &str = "welcome";

pub struct Server {
    pub name: &'static str,
    pub address: SocketAddr,
    _process: Process,
}

/// A directory that holds the pages.
pub fn pages() -> tempfile::TempDir {
    let directory = tempfile::Builder::new().prefix("postern-attacks-").tempdir().unwrap();
    let root = directory.path().join("pages");
    for folder in ["admin", "tenants/acme", "public"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for page in ["admin/index.html", "admin/secret", "exact", "tenants/acme/keys"] {
        fs::write(root.join(page), format!("{MARKER}\n")).unwrap();
    }
    for page in ["public/page", "public/index.html", "index.html"] {
        fs::write(root.join(page), format!("{PUBLIC}\n")).unwrap();
    }
    // Servers that give up root must be able to read them.
    let open = Command::new("chmod")
        .arg("-R")
        .arg("a+rX")
        .arg(directory.path())
        .status();
    assert!(open.unwrap().success());
    directory
}

/// The server of that name; one that this machine lacks is said loudly, and is a failure where `CI=true`.
pub fn start(name: &'static str, directory: &Path) -> Option<Server> {
    let (program, command): (&str, fn(&Path, u16) -> Command) = match name {
        "nginx" => ("nginx", nginx),
        "apache" => ("apache2", apache),
        "node" => ("node", node),
        "python http.server" => ("python3", http_server),
        "python wsgi" => ("python3", wsgi),
        other => panic!("no server is called {other}"),
    };
    requires(&[program], false).then(|| Server::start(name, directory, command))
}

impl Server {
    /// Starts it on a free port, and waits until it listens.
    pub fn start(name: &'static str, directory: &Path, command: impl Fn(&Path, u16) -> Command) -> Self {
        let port = free_port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut process = Process::start(&name.replace(' ', "-"), command(directory, port), directory);
        process.wait_for("listener", || TcpStream::connect(address).ok());
        Self {
            name,
            address,
            _process: process,
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn program(name: &str) -> String {
    format!("{}/../e2e/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn nginx(directory: &Path, port: u16) -> Command {
    let at = directory.display();
    let configuration = format!(
        "daemon off; master_process off; error_log {at}/nginx-error.log crit; pid {at}/nginx.pid; user root;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {at}/nb; proxy_temp_path {at}/np; fastcgi_temp_path {at}/nf;
  uwsgi_temp_path {at}/nu; scgi_temp_path {at}/ns; keepalive_requests 1000000; underscores_in_headers on;
  server {{
    listen 127.0.0.1:{port}; root {at}/pages; autoindex on;
    location = /debug {{
      default_type text/plain;
      if ($http_x_debug ~ \"(^|,)[ \\t]*on[ \\t]*(,|$)\") {{ return 200 \"{MARKER}\\n\"; }}
      return 200 \"nothing to see\\n\";
    }}
  }}
}}
"
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, configuration).unwrap();
    let mut command = Command::new(which("nginx").unwrap());
    command.arg("-c").arg(file);
    command
}

fn apache(directory: &Path, port: u16) -> Command {
    let at = directory.display();
    let modules = "/usr/lib/apache2/modules";
    let loaded: String = ["mpm_event", "authz_core", "dir", "setenvif", "rewrite"]
        .iter()
        .map(|name| format!("LoadModule {name}_module {modules}/mod_{name}.so\n"))
        .collect();
    // As forgiving as it can be made, but for AcceptPathInfo: with it /exact/x is the page /exact, which an exact rule does not name.
    let configuration = format!(
        "{loaded}ServerRoot {at}\nServerName cart\nPidFile {at}/apache.pid\nErrorLog {at}/apache-error.log\nLogLevel crit
User nobody\nGroup nogroup\nListen 127.0.0.1:{port}\nDocumentRoot {at}/pages\nAllowEncodedSlashes On
MaxKeepAliveRequests 0\nHttpProtocolOptions Unsafe LenientMethods Allow0.9\nTraceEnable Off
<Directory {at}/pages>\nRequire all granted\nOptions +FollowSymLinks\n</Directory>
RewriteEngine On
RewriteCond %{{HTTP:X-Debug}} \"(^|,)[ \\t]*on[ \\t]*(,|$)\"
RewriteRule ^/debug$ {at}/pages/exact [L]
"
    );
    let file = directory.join("apache.conf");
    fs::write(&file, configuration).unwrap();
    let mut command = Command::new(which("apache2").unwrap());
    // One process: it ends with us.
    command.arg("-X").arg("-f").arg(file);
    command
}

fn node(directory: &Path, port: u16) -> Command {
    let mut command = Command::new(which("node").unwrap());
    command
        .args([program("site.js"), port.to_string()])
        .arg(directory.join("pages"))
        .arg(MARKER);
    command
}

fn http_server(directory: &Path, port: u16) -> Command {
    let mut command = Command::new(which("python3").unwrap());
    command
        .args([
            "-m",
            "http.server",
            "--protocol",
            "HTTP/1.1",
            "--bind",
            "127.0.0.1",
            "--directory",
        ])
        .arg(directory.join("pages"))
        .arg(port.to_string());
    command
}

fn wsgi(directory: &Path, port: u16) -> Command {
    let mut command = Command::new(which("python3").unwrap());
    command
        .args([program("site_wsgi.py"), port.to_string()])
        .arg(directory.join("pages"))
        .arg(MARKER);
    command
}

/// The gRPC server; `None` where Python has no grpcio.
pub fn grpc(directory: &Path) -> Option<Server> {
    let made = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/e2e-python/bin/python");
    let python = std::env::var("POSTERN_E2E_PYTHON").unwrap_or_else(|_| {
        let python = if Path::new(made).is_file() { made } else { "python3" };
        python.to_owned()
    });
    let has = Command::new(&python).args(["-c", "import grpc"]).output();
    if !has.is_ok_and(|out| out.status.success()) {
        let _ = requires(&["Python module grpc (e2e/install)"], false);
        return None;
    }
    Some(Server::start("grpc", directory, |_, port| {
        let mut command = Command::new(&python);
        command.args([
            program("grpc_echo.py"),
            "serve".to_owned(),
            port.to_string(),
            MARKER.to_owned(),
        ]);
        command
    }))
}
