//! A proxy without control and CA: its snapshot is written by the test.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use postern_identity::{Expected, Instance, SpiffeId};
use postern_policy::document;
use postern_policy::peer_authentication::PortModes;
use postern_policy::{AuthorizationPolicy, Authorizer, Compiled, Mode, RequestAuthentication};
use postern_proxy::drain::Phase;
use postern_proxy::outcome::Failure;
use postern_proxy::providers;
use postern_proxy::snapshot::{
    Destination, Door, Endpoint, Peers, PolicyState, Port, Protocol, Service, Shared, Target, Workload,
};
use postern_proxy::stream::Stream;
use postern_proxy::worker::Worker;
use postern_proxy::{inbound, outbound};
use postern_token::{Authenticator, Keys};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::Authority;

pub struct Proxy {
    pub shared: Arc<Shared>,
    pub worker: Rc<Worker>,
    pub phase: watch::Sender<Phase>,
    pub id: String,
    ports: RefCell<Vec<Port>>,
    known: RefCell<HashMap<Target, Arc<Destination>>>,
    peers: RefCell<Arc<Peers>>,
    generation: Cell<u64>,
    authenticator: RefCell<Arc<Authenticator>>,
    answered: RefCell<HashMap<String, u64>>,
    /// Connections that are being served now.
    serving: Rc<Cell<usize>>,
}

impl Proxy {
    /// With an SVID, and nothing else.
    pub fn new(authority: &Authority, id: &str, instance: &str) -> Self {
        let proxy = Self::unready(authority, id);
        let svid = authority.svid(id, Some(instance));
        proxy.shared.publish_identity(svid).unwrap();
        proxy
    }

    /// Without an SVID.
    pub fn unready(authority: &Authority, id: &str) -> Self {
        let (ask, mut asks) = mpsc::channel::<postern_proxy::snapshot::Ask>(16);
        let shared = Arc::new(Shared::new(ask));
        shared.trust.store(Arc::new(authority.trust()));
        // What the test did not publish, control does not know: addresses are outside, of names it tells the nearest.
        tokio::task::spawn_local(async move {
            while let Some(ask) = asks.recv().await {
                let detail = "no such service; did you mean `cart.shop`?".to_owned();
                let answer = match ask.target {
                    Target::Address(_) => Destination::Outside,
                    Target::Name(..) => Destination::Unreachable(Failure::UnknownDestination, detail),
                };
                let _ = ask.answer.send(Ok(Arc::new(answer)));
            }
        });
        let (worker, phase) = Worker::standalone(Arc::clone(&shared));
        Self {
            shared,
            worker,
            phase,
            id: id.to_owned(),
            ports: RefCell::default(),
            known: RefCell::default(),
            peers: RefCell::default(),
            generation: Cell::new(0),
            authenticator: RefCell::default(),
            answered: RefCell::default(),
            serving: Rc::default(),
        }
    }

    /// Opens an inbound port before the app at `app`.
    pub async fn door(&self, number: u16, protocol: Protocol, app: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = listener.local_addr().unwrap();
        let port = Port {
            name: format!("port-{number}").into(),
            number,
            protocol,
            listen,
            app,
        };
        self.ports.borrow_mut().push(port.clone());
        self.accept(listener, move |worker, stream| {
            inbound::serve(worker, stream, port.clone())
        });
        listen
    }

    /// Opens the explicit port.
    pub async fn explicit(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = listener.local_addr().unwrap();
        self.accept(listener, outbound::serve_explicit);
        listen
    }

    /// Opens a port whose connections were captured on their way to `original`.
    pub async fn captured(&self, original: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = listener.local_addr().unwrap();
        self.accept(listener, move |worker, stream| {
            outbound::serve_captured(worker, stream, original)
        });
        listen
    }

    fn accept<F>(&self, listener: TcpListener, serve: impl Fn(Rc<Worker>, Stream) -> F + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let worker = Rc::clone(&self.worker);
        let serving = Rc::clone(&self.serving);
        tokio::task::spawn_local(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tcp.set_nodelay(true).unwrap();
                let task = serve(Rc::clone(&worker), Stream::Tcp(tcp));
                let serving = Rc::clone(&serving);
                serving.set(serving.get() + 1);
                tokio::task::spawn_local(async move {
                    task.await;
                    serving.set(serving.get() - 1);
                });
            }
        });
    }

    /// Connections that are being served now.
    pub fn serving(&self) -> usize {
        self.serving.get()
    }

    /// Puts policies in force, in `protect`.
    pub fn policy(&self, yaml: &str) {
        self.policy_in(Mode::Protect, yaml);
    }

    pub fn policy_in(&self, mode: Mode, yaml: &str) {
        self.policy_at(mode, PortModes::usual(mode), yaml);
    }

    /// With what ports take.
    pub fn policy_at(&self, mode: Mode, mtls: PortModes, yaml: &str) {
        let objects = document::parse("policy.yaml", yaml).unwrap();
        let (authorizers, policies): (Vec<_>, Vec<_>) = objects.iter().partition(|object| object.kind == "Authorizer");
        let policies = policies
            .into_iter()
            .map(|object| AuthorizationPolicy::from_object(object).unwrap())
            .filter(|policy| policy.selects("postern-system", "shop", &BTreeMap::new()))
            // As control tells of it.
            .map(|policy| AuthorizationPolicy {
                provider: format!("shop/{}", policy.provider),
                ..policy
            })
            .collect();
        let authorizers = authorizers
            .into_iter()
            .map(|object| Authorizer::from_object(object).unwrap())
            .collect();
        let before = self.shared.policy.load();
        let before = before
            .as_ref()
            .map(|state| Arc::clone(&state.providers))
            .unwrap_or_default();
        self.generation.set(self.generation.get() + 1);
        self.shared.policy.store(Some(Arc::new(PolicyState {
            generation: self.generation.get(),
            workload: Workload {
                namespace: "shop".to_owned(),
                name: "w".to_owned(),
                mode,
                ports: self.ports.borrow().clone(),
                mtls,
            },
            compiled: Arc::new(Compiled::new(policies)),
            rules: self.generation.get(),
            providers: Arc::new(providers::load(authorizers, &before)),
            peers: Arc::clone(&self.peers.borrow()),
            authenticator: Arc::clone(&self.authenticator.borrow()),
            answered: Arc::new(self.answered.borrow().clone()),
        })));
        self.shared.changed();
    }

    /// Whose tokens are believed from the next policy on, with these keys of every provider.
    pub fn believes(&self, yaml: &str, keys: Option<&Keys>) {
        let objects = document::parse("sso.yaml", yaml).unwrap();
        let documents: Vec<_> = objects
            .iter()
            .map(|object| {
                RequestAuthentication::from_object(object)
                    .unwrap_or_else(|_| RequestAuthentication::refusing_tokens_for(object, "shop"))
            })
            .collect();
        *self.authenticator.borrow_mut() = Arc::new(Authenticator::new(&documents, |_| keys.cloned()));
    }

    /// What was asked about keys is answered by those of the next policy.
    pub fn answered(&self, provider: &str, question: u64) {
        self.answered.borrow_mut().insert(provider.to_owned(), question);
    }

    /// What control says of peers; in force with the next policy.
    pub fn peers(&self, peers: Peers) {
        *self.peers.borrow_mut() = Arc::new(peers);
    }

    /// What control says of a target.
    pub fn knows(&self, target: Target, destination: Destination) {
        self.known.borrow_mut().insert(target, Arc::new(destination));
        self.shared.destinations.publish(self.known.borrow().clone());
    }

    /// Puts trust as `change` leaves it in force.
    pub fn trust(&self, change: impl FnOnce(&mut postern_identity::Trust)) {
        let mut trust = (**self.shared.trust.load()).clone();
        trust.revision += 1;
        change(&mut trust);
        self.shared.trust.store(Arc::new(trust));
        self.shared.changed();
    }

    /// The value of a series: its name and label parts that must all stand in its line.
    pub fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.worker.metrics.registry()).unwrap();
        text.lines()
            .filter(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64)
            .sum()
    }

    /// All series whose name begins so, as they are scraped.
    pub fn series(&self, name: &str) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.worker.metrics.registry()).unwrap();
        text.lines()
            .filter(|line| line.starts_with(name))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// How often inbound connections were refused for `reason`.
    pub fn refused(&self, reason: &str) -> u64 {
        let reason = format!("reason=\"{reason}\"");
        self.metric("postern_proxy_refused_connections_total", &["inbound", &reason])
    }
}

/// An endpoint that is a sidecar of ours.
pub fn endpoint(address: SocketAddr, id: &str, instance: Option<&str>, protocol: Protocol, door: Door) -> Endpoint {
    Endpoint {
        address,
        workload_port: 80,
        expected: Expected {
            ids: vec![SpiffeId::parse(id).unwrap()],
            instance: instance.map(|instance| Instance::parse(instance).unwrap()),
        },
        protocol,
        door,
        readmits: door == Door::Sidecar,
        workload: "cart-1".into(),
    }
}

/// The cart's service with these endpoints.
pub fn meshed(protocol: Protocol, endpoints: Vec<Endpoint>) -> Destination {
    Destination::Meshed(Service {
        name: "cart".into(),
        namespace: "shop".into(),
        port: 80,
        protocol,
        mode: Mode::Protect,
        endpoints: endpoints.into_iter().map(Arc::new).collect(),
    })
}

pub fn named(name: &str, port: u16) -> Target {
    Target::Name(name.into(), port)
}
