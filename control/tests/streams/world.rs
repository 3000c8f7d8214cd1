//! A control that runs for one test, and proxies that call it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use postern_api::ca_client::{ALPN, control_id};
use postern_api::control::v1 as wire;
use postern_api::control::v1::control_client::ControlClient;
use postern_api::control::v1::view_client::ViewClient;
use postern_api::policy_wire::{features_to_wire, from_wire};
use postern_api::transport::{self, DialError};
use postern_control::{FederationConfig, FetchConfig, IdentitySource, Mesh, Running, ServeConfig, Source, start};
use postern_identity::{BundleSet, Expected, SharedTrust, Svid, Trust, TrustBundle, TrustDomain, tls};
use postern_policy::{FeatureSet, Rule};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use wire::control_message::Message as FromControl;
use wire::proxy_message::Message as ToControl;

mod authority;

pub(crate) use authority::Authority;

/// Any wait for a state ends; only a fault takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The namespace `shop` with two workloads and what they are called by.
pub(crate) const SHOP: &str = "
apiVersion: postern.dev/v1alpha1
kind: Workload
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {serviceAccount: cart, ports: [{number: 80, name: http, listen: 8001, app: 8002}]}
---
apiVersion: postern.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {serviceAccount: web, address: 10.0.0.1}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
";

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

pub(crate) fn id(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

/// Control, its directory, and who signs its callers.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) authority: Authority,
    pub(crate) running: Running,
    trust: SharedTrust,
}

impl World {
    /// With these files in its directory.
    pub(crate) async fn with(files: &[(&str, &str)]) -> Self {
        Self::configured(files, |_| {}).await
    }

    /// With a change to its configuration.
    pub(crate) async fn configured(files: &[(&str, &str)], change: impl FnOnce(&mut ServeConfig)) -> Self {
        Self::of(Authority::new(), files, change).await
    }

    /// In the trust domain of this authority.
    pub(crate) async fn of(
        authority: Authority,
        files: &[(&str, &str)],
        change: impl FnOnce(&mut ServeConfig),
    ) -> Self {
        let (dir, config, identity) = Self::prepared(&authority, files, change);
        let running = start(config, identity).await.unwrap();
        let trust = trust_of(authority.bundle());
        Self {
            dir,
            authority,
            running,
            trust,
        }
    }

    /// Why it does not start.
    pub(crate) async fn does_not_start(change: impl FnOnce(&mut ServeConfig)) -> String {
        let (_dir, config, identity) = Self::prepared(&Authority::new(), &[("shop.yaml", SHOP)], change);
        start(config, identity).await.expect_err("it starts").to_string()
    }

    fn prepared(
        authority: &Authority,
        files: &[(&str, &str)],
        change: impl FnOnce(&mut ServeConfig),
    ) -> (tempfile::TempDir, ServeConfig, IdentitySource) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mesh")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join("mesh").join(name), text).unwrap();
        }
        let identity = IdentitySource::Given {
            svid: authority.svid(control_id(authority.domain()).unwrap().as_str(), None, 3600),
            bundle: authority.bundle(),
        };
        let mut config = config(&dir);
        config.mesh = Mesh::named(authority.domain().clone());
        change(&mut config);
        (dir, config, identity)
    }

    /// Another replica over the same directory.
    #[cfg(feature = "kubernetes")]
    pub(crate) async fn another(&self, change: impl FnOnce(&mut ServeConfig)) -> Running {
        let mut config = config(&self.dir);
        config.view_socket = None;
        change(&mut config);
        let identity = IdentitySource::Given {
            svid: self.authority.svid(control_id(&domain()).unwrap().as_str(), None, 3600),
            bundle: self.authority.bundle(),
        };
        start(config, identity).await.unwrap()
    }

    pub(crate) async fn shop() -> Self {
        Self::with(&[("shop.yaml", SHOP)]).await
    }

    pub(crate) fn view_socket(&self) -> PathBuf {
        self.dir.path().join("view.sock")
    }

    /// Saves a file as an editor does.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let mesh = self.dir.path().join("mesh");
        std::fs::write(mesh.join(".new"), text).unwrap();
        std::fs::rename(mesh.join(".new"), mesh.join(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.dir.path().join("mesh").join(name)).unwrap();
    }

    /// A connection under this SVID; none: without a certificate.
    pub(crate) async fn dial(&self, svid: Option<&Svid>) -> Result<ControlClient<Channel>, DialError> {
        dial(&self.running, svid, &self.trust).await
    }

    /// A proxy of `shop` that has said Hello.
    pub(crate) async fn proxy(&self, name: &str) -> Proxy {
        self.caller(&id(name), Some(name), hello()).await
    }

    pub(crate) async fn caller(&self, id: &str, instance: Option<&str>, hello: wire::Hello) -> Proxy {
        let svid = self.authority.svid(id, instance, 3600);
        self.stream(&svid, Some(ToControl::Hello(hello))).await
    }

    /// A stream with this first message.
    pub(crate) async fn stream(&self, svid: &Svid, first: Option<ToControl>) -> Proxy {
        let client = self.dial(Some(svid)).await.unwrap();
        Proxy::open(client, first).await
    }

    pub(crate) async fn viewer(&self) -> Viewer {
        Viewer::of(&self.view_socket()).await
    }
}

pub(crate) async fn dial(
    control: &Running,
    svid: Option<&Svid>,
    trust: &SharedTrust,
) -> Result<ControlClient<Channel>, DialError> {
    let config = tls::client_config(svid, Arc::clone(trust), ALPN).unwrap();
    let bundles = trust.load().bundles.clone();
    let domain = bundles.iter().next().unwrap().trust_domain().clone();
    let expected = Expected {
        ids: vec![control_id(&domain).unwrap()],
        instance: None,
    };
    let channel = transport::connect(&control.listen.to_string(), config, trust, &expected).await?;
    Ok(ControlClient::new(channel))
}

pub(crate) fn trust_of(bundle: TrustBundle) -> SharedTrust {
    Arc::new(ArcSwap::from_pointee(Trust {
        bundles: BundleSet::default().with(bundle),
        ..Trust::default()
    }))
}

pub(crate) fn config(dir: &tempfile::TempDir) -> ServeConfig {
    ServeConfig {
        source: Source::Directory(dir.path().join("mesh")),
        mesh: Mesh::named(domain()),
        listen: ([127, 0, 0, 1], 0).into(),
        metrics_listen: ([127, 0, 0, 1], 0).into(),
        view_socket: Some(dir.path().join("view.sock")),
        max_proxies: 4096,
        // The issuers of these tests are on this machine.
        keys: FetchConfig {
            allowed: vec!["127.0.0.0/8".parse().expect("it is a range")],
            ..FetchConfig::default()
        },
        federation: FederationConfig::default(),
        bundle_endpoints: Vec::new(),
        ready_file: None,
        #[cfg(feature = "kubernetes")]
        api: None,
    }
}

/// Of this version, with everything that it evaluates.
pub(crate) fn hello() -> wire::Hello {
    wire::Hello {
        version: postern_api::VERSION.to_owned(),
        features: features_to_wire(FeatureSet::all()),
        held: Vec::new(),
        capture: wire::Capture::Redirect as i32,
        federation: true,
    }
}

/// A policy of `shop` that says `spec`.
pub(crate) fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: postern.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: shop}}, \
         spec: {spec}}}\n"
    )
}

/// The policies of a set.
pub(crate) fn policies_of(set: &wire::PolicySet) -> Vec<wire::AuthorizationPolicy> {
    let read = |bytes: &Bytes| wire::AuthorizationPolicy::decode(bytes.clone()).unwrap();
    set.policies.iter().map(read).collect()
}

/// A policy's rules, as a proxy reads them.
pub(crate) fn rules_of(policy: &wire::AuthorizationPolicy) -> Vec<Rule> {
    from_wire(policy.clone()).unwrap().rules
}

pub(crate) fn named(id: u64, host: &str, port: u32) -> ToControl {
    let host = host.to_owned();
    let name = wire::NamedTarget { host, port };
    resolve(id, Some(wire::resolve::Target::Name(name)))
}

pub(crate) fn resolve(id: u64, target: Option<wire::resolve::Target>) -> ToControl {
    ToControl::Resolve(wire::Resolve { id, target })
}

/// What a proxy was told last, and in which order.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) workload: Option<wire::WorkloadConfig>,
    pub(crate) policies: Option<wire::PolicySet>,
    pub(crate) ranges: Option<wire::Ranges>,
    pub(crate) peer_labels: Option<wire::PeerLabels>,
    pub(crate) keys: HashMap<String, wire::KeySet>,
    pub(crate) bundle: Option<wire::BundleSet>,
    pub(crate) federation: Option<wire::Federation>,
    pub(crate) destinations: HashMap<u64, wire::Destination>,
    pub(crate) refused: Option<wire::Refused>,
    pub(crate) heard: Vec<wire::Kind>,
    versions: Vec<(wire::Kind, u64)>,
}

impl Held {
    pub(crate) fn policy_names(&self) -> Vec<String> {
        let policies = self.policies.iter().flat_map(policies_of);
        policies.map(|policy| policy.name).collect()
    }

    /// The versions of one kind, in the order of coming.
    pub(crate) fn versions(&self, kind: wire::Kind) -> Vec<u64> {
        let of_kind = self.versions.iter().filter(|(k, _)| *k == kind);
        of_kind.map(|(_, version)| *version).collect()
    }

    pub(crate) fn endpoints(&self, id: u64) -> Vec<String> {
        match self.destinations.get(&id).and_then(|d| d.state.as_ref()) {
            Some(wire::destination::State::Meshed(meshed)) => {
                meshed.endpoints.iter().map(|e| e.workload.clone()).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// A proxy's end of the stream.
pub(crate) struct Proxy {
    pub(crate) out: Option<mpsc::Sender<wire::ProxyMessage>>,
    incoming: Streaming<wire::ControlMessage>,
    pub(crate) held: Held,
}

impl Proxy {
    /// A stream with this first message.
    pub(crate) async fn open(mut client: ControlClient<Channel>, first: Option<ToControl>) -> Self {
        let (out, messages) = mpsc::channel(16);
        let incoming = client
            .connect(ReceiverStream::new(messages))
            .await
            .unwrap()
            .into_inner();
        let mut proxy = Self {
            out: Some(out),
            incoming,
            held: Held::default(),
        };
        if let Some(first) = first {
            proxy.send(first).await;
        }
        proxy
    }

    pub(crate) async fn send(&mut self, message: ToControl) {
        let message = wire::ProxyMessage { message: Some(message) };
        // Control may have ended the stream already; what it said tells.
        let _ = self.out.as_ref().unwrap().send(message).await;
    }

    /// Reads until what is held is as wanted.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Held) -> bool) {
        let reading = async {
            while !wanted(&self.held) {
                let message = self.incoming.message().await.unwrap();
                self.take(message.expect("the stream ended"));
            }
        };
        if tokio::time::timeout(PATIENCE, reading).await.is_err() {
            panic!("it never came; held: {:#?}", self.held);
        }
    }

    /// Reads until the first set of everything is there.
    pub(crate) async fn started(mut self) -> Self {
        self.until(|held| held.ranges.is_some()).await;
        self
    }

    /// Reads to the end; the status, if it is one.
    pub(crate) async fn ends(&mut self) -> Option<Status> {
        let reading = async {
            loop {
                match self.incoming.message().await {
                    Ok(Some(message)) => self.take(message),
                    Ok(None) => return None,
                    Err(status) => return Some(status),
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading)
            .await
            .expect("the stream stays open")
    }

    /// Why it is not served.
    pub(crate) async fn refused(mut self) -> wire::Refused {
        let status = self.ends().await;
        assert!(status.is_none(), "{status:?}");
        assert_eq!(self.held.heard, [], "nothing else is told to whom is refused");
        self.held.refused.unwrap()
    }

    fn take(&mut self, message: wire::ControlMessage) {
        let held = &mut self.held;
        let (kind, version) = match message.message.unwrap() {
            FromControl::Workload(m) => (wire::Kind::Workload, held.workload.insert(m).version),
            FromControl::Policies(m) => (wire::Kind::Policies, held.policies.insert(m).version),
            FromControl::Ranges(m) => (wire::Kind::Ranges, held.ranges.insert(m).version),
            FromControl::PeerLabels(m) => (wire::Kind::PeerLabels, held.peer_labels.insert(m).version),
            FromControl::Bundle(m) => (wire::Kind::Bundle, held.bundle.insert(m).version),
            FromControl::Federation(m) => (wire::Kind::Federation, held.federation.insert(m).version),
            FromControl::Quarantine(m) => (wire::Kind::Quarantine, m.version),
            FromControl::Destination(m) => {
                let version = m.version;
                held.destinations.insert(m.id, m);
                (wire::Kind::Destination, version)
            }
            // Its age is its version.
            FromControl::Keys(m) => {
                held.keys.insert(m.provider.clone(), m);
                return;
            }
            FromControl::Refused(m) => {
                held.refused = Some(m);
                return;
            }
        };
        held.heard.push(kind);
        held.versions.push((kind, version));
    }
}

/// A screen.
pub(crate) struct Viewer {
    pictures: Streaming<wire::Picture>,
}

impl Viewer {
    pub(crate) async fn of(socket: &Path) -> Self {
        let channel = transport::connect_unix(socket).await.unwrap();
        let request = wire::WatchRequest { interval_ms: 100 };
        let pictures = ViewClient::new(channel).watch(request).await.unwrap().into_inner();
        Self { pictures }
    }

    /// Watches until a picture is as wanted.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&wire::Picture) -> bool) -> wire::Picture {
        let mut last = wire::Picture::default();
        let watching = async {
            loop {
                last = self.pictures.message().await.unwrap().expect("the view ended");
                if wanted(&last) {
                    return;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, watching).await.is_err() {
            panic!("it was never seen; last: {last:#?}");
        }
        last
    }

    /// Watches until an event says this.
    pub(crate) async fn event(&mut self, says: &str) -> wire::Event {
        let picture = self
            .until(|picture| picture.events.iter().any(|event| event.text.contains(says)))
            .await;
        let found = picture.events.into_iter().find(|event| event.text.contains(says));
        found.unwrap()
    }
}
