//! Pods, the app, and the pairs between them. Ours has pods of its own: no other subject passes its netfilter rules.

use std::fs;
use std::path::Path;

use postern_e2e::lab::{Lab, Pod};
use postern_e2e::mesh::Mesh;
use postern_e2e::process::{Process, eventually};

use crate::args::{Args, Kind};
use crate::subject::Subject;
use crate::wrk::Wrk;
use crate::{Flaw, haproxy, postern};

/// Where nginx listens in a server's pod.
pub(crate) const APP_PORT: u16 = 8_080;
/// The size of an answer's body.
const BODY_BYTES: usize = 1_024;

/// Everything that runs. Field order is drop order: processes end before their namespaces.
pub(crate) struct World {
    /// In the order of the command line's kinds.
    pub(crate) subjects: Vec<Subject>,
    /// The load.
    pub(crate) wrk: Wrk,
    _haproxy: Option<[Process; 2]>,
    _postern: Option<[Process; 2]>,
    mesh: Option<Mesh>,
    _apps: Vec<Process>,
    _lab: Lab,
}

impl World {
    /// Starts all that is to be measured, and waits until each answers and refuses as it should.
    pub(crate) fn new(args: &Args) -> Result<Self, Flaw> {
        let mut lab = Lab::new();
        bare_bridge(&lab);
        let directory = lab.directory().to_owned();
        let wrk = Wrk::new(&directory)?;
        let mut apps = Vec::new();
        let (mut subjects, mut haproxies, mut proxies, mut mesh) = (Vec::new(), None, None, None);
        if args.wants(Kind::Direct) || args.wants(Kind::Haproxy) {
            let (client, server) = (lab.pod("client"), lab.pod("server"));
            apps.push(nginx(&directory, &server)?);
            if args.wants(Kind::Direct) {
                subjects.push(direct(&client, &server));
            }
            if args.wants(Kind::Haproxy) {
                let pair = haproxy::Pair::start(&directory, &client, &server, args.workers)?;
                subjects.push(pair.subject);
                haproxies = Some(pair.processes);
            }
        }
        if args.wants(Kind::Postern) {
            let (client, server) = (lab.pod("pclient"), lab.pod("pserver"));
            apps.push(nginx(&directory, &server)?);
            let pair = postern::Pair::start(&mut lab, &client, &server, args.workers);
            subjects.push(pair.subject);
            proxies = Some(pair.processes);
            mesh = Some(pair.mesh);
        }
        let world = Self {
            subjects,
            wrk,
            _haproxy: haproxies,
            _postern: proxies,
            mesh,
            _apps: apps,
            _lab: lab,
        };
        world.subjects.iter().try_for_each(prove)?;
        Ok(world)
    }

    /// Our mesh, and our pair.
    pub(crate) fn postern(&self) -> Option<(&Mesh, &Subject)> {
        let ours = self.subjects.iter().find(|subject| subject.kind == Kind::Postern);
        self.mesh.as_ref().zip(ours)
    }
}

/// Hosts of Kubernetes pass bridged packets through netfilter, a second time; the wire between our pods is a wire.
/// Where the kernel has no `br_netfilter` the files are not there, and there is nothing to do.
fn bare_bridge(lab: &Lab) {
    let line = "for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ -w $f ] && echo 0 > $f; done";
    let _ = lab.switch().command(0, "sh").args(["-c", line]).status();
}

/// Answers, and, if it has a policy, refuses what the policy does not allow.
fn prove(subject: &Subject) -> Result<(), Flaw> {
    let name = subject.kind.as_str();
    eventually(&format!("answer through {name}"), || {
        (subject.status("GET") == "200").then_some(())
    });
    eprintln!(
        "pair: {name} answers; its proxies (client's, server's): {:?}",
        subject.proxies
    );
    if subject.hops.is_empty() {
        return Ok(());
    }
    match subject.status("DELETE") {
        refused if refused == "403" => Ok(()),
        status => Err(Flaw::Open(name, status)),
    }
}

fn direct(client: &Pod, server: &Pod) -> Subject {
    Subject {
        kind: Kind::Direct,
        pod: client.clone(),
        url: format!("http://{}:{APP_PORT}/", server.v4),
        proxies: Vec::new(),
        hops: Vec::new(),
    }
}

/// One process, so that nothing is left behind when it is killed; one worker is all it needs.
fn nginx(directory: &Path, pod: &Pod) -> Result<Process, Flaw> {
    let directory = directory.join(format!("nginx-{}", pod.name));
    fs::create_dir_all(&directory)?;
    let configuration = directory.join("nginx.conf");
    fs::write(
        &configuration,
        format!(
            "daemon off; master_process off; error_log {0}/error.log; pid {0}/pid;
events {{ worker_connections 2048; }}
http {{
  access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;
  uwsgi_temp_path {0}/u; scgi_temp_path {0}/s; keepalive_requests 1000000000; keepalive_timeout 300s;
  server {{ listen 0.0.0.0:{APP_PORT}; listen [::]:{APP_PORT}; default_type text/plain; return 200 \"{1}\"; }}
}}
",
            directory.display(),
            "x".repeat(BODY_BYTES)
        ),
    )?;
    Ok(pod.start_as_root("nginx", &format!("nginx -c {}", configuration.display())))
}
