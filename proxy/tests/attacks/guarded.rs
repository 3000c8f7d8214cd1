//! A server behind the proxy, under two policies; and how attacks are sent, to the proxy and past it.

use std::cell::RefCell;
use std::io::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use postern_proxy::snapshot::{Door, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::corpus::{Attack, Block};
use crate::servers::PUBLIC;
use crate::world::h2::{self, frame};
use crate::world::{Authority, CART, Conn, Proxy, WEB, endpoint, meshed, named};

/// Everything but what is protected.
const DENYING: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all, namespace: shop}
spec:
  rules: [{}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: protected, namespace: shop}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: ['/admin*', /exact, '/tenants/{*}/keys', '/echo.Admin/*']}}]
  - when: [{key: 'request.headers[x-debug]', values: ['on']}]
";

/// Nothing but what is public.
const ALLOWING: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: public, namespace: shop}
spec:
  rules:
  - to: [{operation: {paths: ['/public*', /echo.Echo/Unary]}}]
";

/// Requests under way at once.
const LANES: usize = 8;
/// A server that says nothing for so long has nothing to say: it waits for more, and will not get it.
const QUIET: Duration = Duration::from_millis(300);

pub struct Guarded {
    authority: Authority,
    /// Doors of the proxies under the two policies.
    pub denying: SocketAddr,
    pub allowing: SocketAddr,
    explicit: SocketAddr,
    _proxies: [Proxy; 3],
}

impl Guarded {
    pub async fn before(app: SocketAddr) -> Self {
        Self::with(app, Protocol::Http1).await
    }

    pub async fn before_grpc(app: SocketAddr) -> Self {
        Self::with(app, Protocol::Http2).await
    }

    async fn with(app: SocketAddr, protocol: Protocol) -> Self {
        let authority = Authority::new("cluster.local");
        let [denies, allows] = [DENYING, ALLOWING].map(|policy| (Proxy::new(&authority, CART, "cart-1"), policy));
        let denying = denies.0.door(80, protocol, app).await;
        denies.0.policy(denies.1);
        let allowing = allows.0.door(80, protocol, app).await;
        allows.0.policy(allows.1);
        let web = Proxy::new(&authority, WEB, "web-1");
        web.policy("");
        let cart = endpoint(denying, CART, Some("cart-1"), protocol, Door::Sidecar);
        web.knows(named("cart.shop", 80), meshed(protocol, vec![cart]));
        let explicit = web.explicit().await;
        Self {
            authority,
            denying,
            allowing,
            explicit,
            _proxies: [denies.0, allows.0, web],
        }
    }

    /// What came back for each attack over HTTP/1.1: raw bytes through mTLS.
    pub async fn attack(&self, door: SocketAddr, attacks: Vec<Attack>) -> Vec<(Attack, Vec<u8>)> {
        let lanes: Vec<RefCell<Option<Conn>>> = (0..LANES).map(|_| RefCell::default()).collect();
        let free = RefCell::new((0..LANES).collect::<Vec<_>>());
        in_lanes(attacks, async |attack| {
            let lane = free.borrow_mut().pop().unwrap();
            let mut conn = lanes[lane].take();
            let got = self.one(door, &mut conn, attack).await;
            lanes[lane].replace(conn);
            free.borrow_mut().push(lane);
            got
        })
        .await
    }

    /// Honest lines share a connection for as long as it lasts; what might be more than one request has its own.
    pub async fn one(&self, door: SocketAddr, kept: &mut Option<Conn>, attack: &Attack) -> Vec<u8> {
        let ambiguous = attack
            .target
            .as_ref()
            .is_none_or(|target| target.iter().any(|b| *b <= b' '));
        if ambiguous {
            let mut conn = self.connect(door, b"postern/h1").await;
            conn.send(attack.bytes("Connection: close\r\n")).await;
            return conn.until_quiet().await.0;
        }
        let mut conn = match kept.take() {
            Some(conn) => conn,
            None => self.connect(door, b"postern/h1").await,
        };
        conn.send(attack.bytes("")).await;
        let Some(answer) = conn.try_answer().await else {
            return Vec::new();
        };
        if !answer.closes() {
            *kept = Some(conn);
        }
        [format!("HTTP/1.1 {}\r\n", answer.status).as_bytes(), &answer.body].concat()
    }

    async fn connect(&self, door: SocketAddr, alpn: &[u8]) -> Conn {
        Conn::tls(door, self.authority.client(WEB, alpn)).await.unwrap()
    }

    /// The same over HTTP/2, frames by hand; each on a connection of its own.
    pub async fn attack_h2(&self, door: SocketAddr, blocks: Vec<Block>) -> Vec<(Block, Vec<u8>)> {
        in_lanes(blocks, async |block| {
            let conn = self.connect(door, b"postern/h2").await;
            ask_h2(conn, block).await
        })
        .await
    }

    /// Through the caller's own proxy, by tunnel.
    pub async fn attack_outbound(&self, attacks: Vec<Attack>) -> Vec<(Attack, Vec<u8>)> {
        in_lanes(attacks, async |attack| {
            let mut conn = Conn::plain(self.explicit).await;
            conn.send("CONNECT cart.shop:80 HTTP/1.1\r\nHost: cart.shop:80\r\n\r\n")
                .await;
            assert_eq!(conn.answer_to("HEAD").await.status, 200);
            conn.send(attack.bytes("Connection: close\r\n")).await;
            conn.until_quiet().await.0
        })
        .await
    }
}

/// What a server says to these bytes when nothing is in between.
pub async fn directly(server: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let Ok(mut tcp) = TcpStream::connect(server).await else {
        return Vec::new();
    };
    let mut got = Vec::new();
    if tcp.write_all(bytes).await.is_err() {
        return got;
    }
    while let Ok(Ok(1..)) = tokio::time::timeout(QUIET, tcp.read_buf(&mut got)).await {}
    got
}

/// The same over HTTP/2 in clear.
pub async fn directly_h2(server: SocketAddr, block: &Block) -> Vec<u8> {
    ask_h2(Conn::plain(server).await, block).await
}

/// All payloads of the answer's frames. A gRPC call carries one message, and no other has a body.
async fn ask_h2(mut conn: Conn, block: &Block) -> Vec<u8> {
    let fields: Vec<(&str, &[u8])> = block.iter().map(|(name, value)| (*name, value.as_slice())).collect();
    let grpc = block.iter().any(|(name, _)| *name == "content-type");
    let flags = if grpc {
        h2::END_HEADERS
    } else {
        h2::END_HEADERS | h2::END_STREAM
    };
    let mut bytes = [h2::PREFACE, &frame(h2::SETTINGS, 0, 0, &[])].concat();
    bytes.extend(frame(h2::HEADERS, flags, 1, &h2::block(&fields)));
    if grpc {
        let message = [&[0, 0, 0, 0, PUBLIC.len() as u8], PUBLIC.as_bytes()].concat();
        bytes.extend(frame(h2::DATA, h2::END_STREAM, 1, &message));
    }
    conn.send(bytes).await;
    let mut got = Vec::new();
    while let Ok(Some(frame)) = tokio::time::timeout(Duration::from_secs(5), h2::read_frame(&mut conn.io)).await {
        got.extend_from_slice(&frame.payload);
        let ends = match frame.kind {
            h2::GOAWAY => true,
            h2::RST_STREAM => frame.stream == 1,
            h2::HEADERS | h2::DATA => frame.stream == 1 && frame.flags & h2::END_STREAM != 0,
            _ => false,
        };
        if ends {
            break;
        }
    }
    got
}

/// Asks about every item, several at once; answers stand beside their items.
pub async fn in_lanes<T, A>(items: Vec<T>, ask: impl AsyncFn(&T) -> A) -> Vec<(T, A)> {
    let items = Rc::new(RefCell::new(items.into_iter()));
    let lane = async || {
        let mut answers = Vec::new();
        loop {
            let Some(item) = items.borrow_mut().next() else {
                return answers;
            };
            let answer = ask(&item).await;
            answers.push((item, answer));
        }
    };
    let lanes = (0..LANES).map(|_| lane());
    futures_util::future::join_all(lanes)
        .await
        .into_iter()
        .flatten()
        .collect()
}

/// Straight to whoever runs the tests: the harness would swallow what a passing test prints.
pub fn tell(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}
