//! One test's world: an authority that mints good and hostile certificates, proxies on real sockets, a canary behind
//! them that keeps every byte, and clients that send exactly what a test says.
//!
//! Everything runs on one thread, as a worker does; what a test started ends with its runtime.
#![allow(dead_code, unused_imports, missing_docs, unreachable_pub, clippy::unwrap_used)] // Each test binary uses its part.

pub mod authority;
pub mod authorizer;
pub mod canary;
pub mod client;
pub mod h2;
pub mod proxy;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use postern_proxy::snapshot::{Door, Endpoint, Protocol, Target};
use tokio::task::LocalSet;

pub use self::authority::{Authority, Card, hostile_client};
pub use self::canary::{Canary, Received};
pub use self::client::{Answer, Conn};
pub use self::proxy::{Proxy, endpoint, meshed, named};

pub const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
pub const MALLORY: &str = "spiffe://cluster.local/ns/shop/sa/mallory";

/// No test takes longer; one that does hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a state may take to come.
pub const SOON: Duration = Duration::from_secs(5);

/// The web may do anything but see what is secret.
pub const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secret, namespace: shop}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: [/secret, /secret/*]}}]
";

/// Only the web, by identity alone.
pub const WEB_ONLY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
";

/// Runs a test on a worker's kind of runtime.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // In real time: tests move the runtime's clock.
    let (over, hangs) = tokio::sync::oneshot::channel::<()>();
    let (done, finished) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if finished.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = over.send(());
        }
    });
    // A test holds all of its futures: too much for a thread's stack, in an unoptimized build.
    let test = Box::pin(test);
    let patient = async {
        tokio::select! {
            () = test => {}
            Ok(()) = hangs => panic!("the test hangs"),
        }
    };
    LocalSet::new().block_on(&runtime, patient);
    drop(done);
}

/// Waits until `state` holds.
pub async fn until(what: &str, mut state: impl FnMut() -> bool) {
    let waiting = async {
        while !state() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(SOON, waiting).await;
    assert!(waited.is_ok(), "never came true: {what}");
}

/// `future`, which must be ready soon.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(SOON, future).await {
        Ok(output) => output,
        Err(_) => panic!("took too long: {what}"),
    }
}

/// Moves the runtime's clock: what waits for a deadline within `span` finds it passed. Sockets are quiet meanwhile.
pub async fn pass(span: Duration) {
    tokio::time::pause();
    tokio::time::advance(span).await;
    tokio::time::resume();
}

/// The web's app calls the cart's through both proxies.
pub struct Pair {
    pub authority: Authority,
    pub web: Proxy,
    pub cart: Proxy,
    pub app: Canary,
    pub door: SocketAddr,
    /// Where the web's app finds its proxy.
    pub explicit: SocketAddr,
}

impl Pair {
    pub async fn new(protocol: Protocol) -> Self {
        Self::before(Canary::start().await, protocol).await
    }

    pub async fn before(app: Canary, protocol: Protocol) -> Self {
        Self::with(app, protocol, if protocol == Protocol::Tcp { WEB_ONLY } else { POLICY }).await
    }

    pub async fn with(app: Canary, protocol: Protocol, policy: &str) -> Self {
        let Shop {
            authority,
            cart,
            app,
            door,
        } = Shop::before(app, protocol, policy).await;
        let web = Proxy::new(&authority, WEB, "web-1");
        web.policy("");
        let cart_is = endpoint(door, CART, Some("cart-1"), protocol, Door::Sidecar);
        web.knows(named("cart.shop", 80), meshed(protocol, vec![cart_is]));
        let explicit = web.explicit().await;
        Self {
            authority,
            web,
            cart,
            app,
            door,
            explicit,
        }
    }

    /// The web's app, at the explicit port.
    pub async fn client(&self) -> Conn {
        Conn::plain(self.explicit).await
    }

    /// The same, in a tunnel to the cart.
    pub async fn tunnel(&self) -> Conn {
        let mut conn = self.client().await;
        conn.send("CONNECT cart.shop:80 HTTP/1.1\r\nHost: cart.shop:80\r\n\r\n")
            .await;
        let opened = conn.answer_to("HEAD").await;
        assert_eq!(opened.status, 200);
        conn
    }

    /// A connection that was captured on its way to the cart.
    pub async fn captured(&self, protocol: Protocol) -> Conn {
        let original: SocketAddr = "10.96.0.1:80".parse().unwrap();
        let cart_is = endpoint(self.door, CART, Some("cart-1"), protocol, Door::Sidecar);
        self.web
            .knows(Target::Address(original), meshed(protocol, vec![cart_is]));
        Conn::plain(self.web.captured(original).await).await
    }

    /// What the web's proxy does with one endpoint in the cart's place.
    pub fn instead(&self, protocol: Protocol, endpoints: Vec<Endpoint>) {
        self.web.knows(named("cart.shop", 80), meshed(protocol, endpoints));
    }
}

/// How a client asks for the cart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By absolute-form: hyper's.
    Absolute,
    /// By origin-form in a tunnel, as a captured connection does: our relay's.
    Tunnel,
}

pub const WAYS: [Way; 2] = [Way::Absolute, Way::Tunnel];

impl Way {
    pub async fn open(self, pair: &Pair) -> Conn {
        match self {
            Self::Absolute => pair.client().await,
            Self::Tunnel => pair.tunnel().await,
        }
    }

    /// A request's head up to its `Host`.
    pub fn head(self, method: &str, path: &str) -> String {
        match self {
            Self::Absolute => format!("{method} http://cart.shop{path} HTTP/1.1\r\nHost: cart.shop\r\n"),
            Self::Tunnel => format!("{method} {path} HTTP/1.1\r\nHost: cart.shop\r\n"),
        }
    }
}

pub const GET: &str = "GET http://cart.shop/a HTTP/1.1\r\nHost: cart.shop\r\n\r\n";

/// The web calls the cart: one inbound proxy before one canary.
pub struct Shop {
    pub authority: Authority,
    pub cart: Proxy,
    pub app: Canary,
    /// Where the cart's peers dial.
    pub door: SocketAddr,
}

impl Shop {
    /// An HTTP app that answers 200 with its request's path.
    pub async fn new() -> Self {
        Self::with(Protocol::Detect, POLICY).await
    }

    pub async fn with(protocol: Protocol, policy: &str) -> Self {
        Self::before(Canary::start().await, protocol, policy).await
    }

    pub async fn before(app: Canary, protocol: Protocol, policy: &str) -> Self {
        let authority = Authority::new("cluster.local");
        let cart = Proxy::new(&authority, CART, "cart-1");
        let door = cart.door(80, protocol, app.address).await;
        cart.policy(policy);
        Self {
            authority,
            cart,
            app,
            door,
        }
    }

    /// An mTLS connection of the web.
    pub async fn web(&self, alpn: &[u8]) -> Conn {
        self.connect(WEB, alpn).await
    }

    pub async fn connect(&self, id: &str, alpn: &[u8]) -> Conn {
        Conn::tls(self.door, self.authority.client(id, alpn)).await.unwrap()
    }

    /// An HTTP/1.1 connection of the web.
    pub async fn h1(&self) -> Conn {
        self.web(b"postern/h1").await
    }

    /// A well-behaved neighbour's request goes through, and everything before it has been dealt with.
    pub async fn probe(&self) {
        let mut neighbour = self.h1().await;
        let before = self.app.count();
        neighbour.send("GET /probe HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        let answer = neighbour.answer().await;
        assert_eq!(answer.status, 200, "a neighbour is not served: {answer:?}");
        let seen = self.app.since(before);
        assert_eq!(seen.len(), 1, "the app saw more than the neighbour: {seen:#?}");
        assert_eq!(seen.last().unwrap().target, "/probe");
        assert_eq!(
            self.cart
                .worker
                .metrics
                .panics
                .load(std::sync::atomic::Ordering::Relaxed),
            0
        );
    }
}
