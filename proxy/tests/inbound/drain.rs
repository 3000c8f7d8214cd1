//! Shutdown: what is in flight ends well, nothing new begins on old connections, and what is cut is counted.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use postern_proxy::access_log::AccessLog;
use postern_proxy::drain::{Drain, Phase};
use postern_proxy::metrics::Metrics;
use postern_proxy::snapshot::{Port, Protocol};
use postern_proxy::worker::{self, Accepted, Ended, Handle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::world::canary::{Canary, ok};
use crate::world::h2::{Client, grpc_app, request, whole};
use crate::world::{Conn, POLICY, Shop, WEB, WEB_ONLY, run, soon, until};

#[test]
fn an_idle_connection_ends_when_draining_begins() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert!(!conn.answer().await.closes());
        shop.cart.phase.send(Phase::Draining).unwrap();
        conn.ends().await;
    });
}

#[test]
fn a_request_in_flight_finishes_and_its_answer_says_that_the_connection_closes() {
    run(async {
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let mut read = Vec::new();
            while let Some(request) = canary.read(&mut stream, &mut read, connection).await {
                canary.saw(request);
                tokio::time::sleep(Duration::from_millis(600)).await;
                stream.write_all(&ok("late")).await.unwrap();
            }
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        until("the app has it", || shop.app.requests().len() == 1).await;
        shop.cart.phase.send(Phase::Draining).unwrap();
        let answer = conn.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "late"));
        assert!(answer.closes());
        conn.ends().await;
        until("all is over", || shop.cart.serving() == 0).await;
    });
}

#[test]
fn a_connection_that_comes_while_draining_is_served_once() {
    run(async {
        let shop = Shop::new().await;
        shop.cart.phase.send(Phase::Draining).unwrap();
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        let answer = conn.answer().await;
        assert!(answer.status == 200 && answer.closes(), "{answer:?}");
        conn.ends().await;
    });
}

#[test]
fn http_2_hears_goaway_and_its_streams_in_flight_finish() {
    run(async {
        let shop = Shop::before(grpc_app().await, Protocol::Http2, POLICY).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        let (answer, mut send) = client.send.send_request(request(Method::POST, "/a"), false).unwrap();
        let answer = soon("a head", answer).await.unwrap();
        shop.cart.phase.send(Phase::Draining).unwrap();
        // A new stream is refused once GOAWAY has come.
        let refused = async {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                if client.get("/new").await.is_err() {
                    return;
                }
            }
        };
        soon("GOAWAY", refused).await;
        send.send_data(Bytes::from_static(b"end"), true).unwrap();
        let whole = whole(answer).await.unwrap();
        assert_eq!(
            (whole.body.as_slice(), &whole.trailers.unwrap()["grpc-status"]),
            (&b"end"[..], &"0".parse::<http::HeaderValue>().unwrap())
        );
        let ended = soon("the end", client.ended).await.unwrap();
        assert!(ended.is_ok(), "{ended:?}");
        until("all is over", || shop.cart.serving() == 0).await;
    });
}

#[test]
fn what_outlives_the_deadline_is_cut() {
    run(async {
        let app = Canary::serving(|mut stream, _, _| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let shop = Shop::before(app, Protocol::Tcp, WEB_ONLY).await;
        let http = shop.cart.door(81, Protocol::Http1, shop.app.address).await;
        shop.cart.policy(WEB_ONLY);
        let mut stream = shop.web(b"postern/tcp").await;
        stream.send("ping").await;
        let mut request = Conn::tls(http, shop.authority.client(WEB, b"postern/h1"))
            .await
            .unwrap();
        request.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        until("both reach the app", || shop.app.connections() == 2).await;
        shop.cart.phase.send(Phase::Draining).unwrap();
        assert!(
            stream.is_quiet(Duration::from_millis(300)).await,
            "a stream is not cut while draining"
        );
        assert!(request.is_quiet(Duration::from_millis(100)).await);
        shop.cart.phase.send(Phase::Cut).unwrap();
        stream.ends().await;
        request.rest().await;
        until("all is over", || shop.cart.serving() == 0 && shop.app.open() == 0).await;
    });
}

/// A worker with a thread of its own, as the process starts it.
pub(crate) struct Thread {
    shop: Shop,
    handle: Handle,
    phase: watch::Sender<Phase>,
    listener: TcpListener,
    port: Port,
}

impl Thread {
    pub(crate) async fn start(most: usize) -> (Self, SocketAddr) {
        let shop = Shop::before(grpc_app().await, Protocol::Http2, POLICY).await;
        let metrics = Arc::new(Metrics::default());
        let (phase, drain) = Drain::new();
        let log = AccessLog::off(Arc::clone(&metrics));
        let handle = worker::start(0, Arc::clone(&shop.cart.shared), log, metrics, drain, most).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let door = listener.local_addr().unwrap();
        let port = Port {
            name: "http".into(),
            number: 80,
            protocol: Protocol::Http2,
            listen: door,
            app: shop.app.address,
        };
        let thread = Self {
            shop,
            handle,
            phase,
            listener,
            port,
        };
        (thread, door)
    }

    pub(crate) fn open(&self) -> usize {
        self.handle.open()
    }

    /// An HTTP/2 connection of the web; `None`: the worker would not take it.
    pub(crate) async fn connect(&self, door: SocketAddr) -> Option<Client> {
        let tcp = tokio::net::TcpStream::connect(door).await.unwrap();
        let (socket, _) = self.listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let port = self.port.clone();
        self.handle.hand_over(Accepted::Inbound { socket, port }).ok()?;
        let connector = tokio_rustls::TlsConnector::from(self.shop.authority.client(WEB, b"postern/h2"));
        let stream = connector
            .connect(crate::world::client::handshake_name(), tcp)
            .await
            .unwrap();
        Some(Client::over(Conn::over(stream)).await)
    }

    async fn join(self) -> Ended {
        let handle = self.handle;
        tokio::task::spawn_blocking(move || handle.join()).await.unwrap()
    }
}

#[test]
fn a_worker_counts_what_it_had_to_cut_and_only_that() {
    run(async {
        let (thread, door) = Thread::start(10).await;
        let mut finishing = thread.connect(door).await.unwrap();
        let mut stuck = thread.connect(door).await.unwrap();
        let (stuck_answer, _open) = stuck.send.send_request(request(Method::POST, "/stuck"), false).unwrap();
        let _answer = soon("a head", stuck_answer).await.unwrap();
        assert_eq!(finishing.get("/a").await.unwrap().status, 200);
        thread.phase.send(Phase::Draining).unwrap();
        until("the idle one has ended", || thread.open() == 1).await;
        thread.phase.send(Phase::Cut).unwrap();
        assert_eq!(soon("the worker's end", thread.join()).await, Ended { cut: 1 });
    });
}
