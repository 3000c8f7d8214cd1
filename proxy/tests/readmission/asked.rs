//! What a server's proxy says to whoever asks.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_identity::Instance;
use postern_identity::tls::{self, alpn, client_config};
use postern_proxy::limits::{LONG_LIVED, READMISSIBLE_FROM, READMIT_DEADLINE, SUPERVISE_TICK};
use postern_proxy::snapshot::Protocol;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::authorizer::{Authorizer, no, ok};
use crate::world::canary::Canary;
use crate::world::client::{Answer, Conn, handshake_name};
use crate::world::h2::{
    END_HEADERS, HEADERS, PREFACE, RST_STREAM, SETTINGS, block, frame, grpc_app, pseudo, read_frame,
};
use crate::world::{MALLORY, Shop, WEB, WEB_ONLY, pass, run, soon, until};

/// Of the client's SVID.
const LIFE: i64 = 6;

const READMITTED: u8 = 0;
const UNKNOWN: u8 = 1;

struct Caller<'a> {
    shop: &'a Shop,
    id: &'a str,
    instance: &'a str,
    life: i64,
}

impl<'a> Caller<'a> {
    fn web(shop: &'a Shop) -> Self {
        Self {
            shop,
            id: WEB,
            instance: "web-1",
            life: LIFE,
        }
    }

    fn config(&self, alpn: &[u8]) -> Arc<ClientConfig> {
        let svid = self.shop.authority.svid_for(self.id, Some(self.instance), self.life);
        client_config(Some(&svid), self.shop.authority.shared_trust(), &[alpn]).unwrap()
    }

    async fn stream(&self) -> (TlsStream<TcpStream>, [u8; tls::NAME_BYTES]) {
        let mut stream = dial(self.shop.door, self.config(alpn::POSTERN_TCP)).await.unwrap();
        let name = tls::name_of(stream.get_ref().1).unwrap();
        assert!(echoes(&mut stream).await);
        (stream, name)
    }

    /// Sends `bytes` where names are asked about; what comes back.
    async fn asks(&self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = dial(self.shop.door, self.config(alpn::POSTERN_RENEW)).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn::POSTERN_RENEW));
        stream.write_all(bytes).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        soon("an answer", stream.read_to_end(&mut answer)).await?;
        Ok(answer)
    }
}

async fn dial(address: SocketAddr, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    soon("a handshake", TlsConnector::from(config).connect(handshake_name(), tcp)).await
}

async fn echoes(stream: &mut TlsStream<TcpStream>) -> bool {
    let mut back = [0; 4];
    let said = stream.write_all(b"ping").await.is_ok() && stream.flush().await.is_ok();
    said && soon("an echo", stream.read_exact(&mut back)).await.is_ok() && back == *b"ping"
}

async fn shop() -> Shop {
    let app = Canary::serving(|mut stream, canary, _| async move {
        let mut bytes = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut bytes).await {
            canary.counted(n);
            stream.write_all(&bytes[..n]).await.unwrap();
        }
    })
    .await;
    Shop::before(app, Protocol::Tcp, WEB_ONLY).await
}

/// Until the server has learnt the name.
fn past_half() -> tokio::time::Sleep {
    tokio::time::sleep(Duration::from_secs(LIFE as u64).mul_f64(READMISSIBLE_FROM + 0.1))
}

fn answered(shop: &Shop, reason: &str) -> u64 {
    let reason = format!("result=\"{reason}\"");
    shop.cart
        .metric("postern_proxy_readmissions_total", &["inbound", &reason])
}

#[test]
fn the_name_and_a_new_svid_of_the_same_instance_extend_a_stream() {
    run(async {
        let shop = shop().await;
        let (mut stream, name) = Caller::web(&shop).stream().await;
        let half = past_half();
        // Not before it has lived long, nor then before half of its time is over.
        assert_eq!(Caller::web(&shop).asks(&name).await.unwrap(), [UNKNOWN]);
        tokio::time::sleep(LONG_LIVED + SUPERVISE_TICK * 2).await;
        assert_eq!(Caller::web(&shop).asks(&name).await.unwrap(), [UNKNOWN]);
        half.await;
        let newer = Caller {
            life: 30,
            ..Caller::web(&shop)
        };
        assert_eq!(newer.asks(&name).await.unwrap(), [READMITTED]);
        let until = Instant::now() + Duration::from_secs(LIFE as u64);
        while Instant::now() < until {
            assert!(echoes(&mut stream).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // And what ends before it is no renewal.
        assert_eq!(Caller::web(&shop).asks(&name).await.unwrap(), [3]);
        assert!(echoes(&mut stream).await);
        assert_eq!((answered(&shop, "readmitted"), answered(&shop, "older")), (1, 1));
        drop(stream);
        until_forgotten(&newer, &name).await;
    });
}

async fn until_forgotten(caller: &Caller<'_>, name: &[u8]) {
    until("the stream is over", || caller.shop.cart.serving() == 0).await;
    assert_eq!(caller.asks(name).await.unwrap(), [UNKNOWN]);
}

#[test]
fn whoever_has_the_name_and_not_the_identity_is_refused_and_the_stream_ends_at_its_time() {
    run(async {
        let shop = shop().await;
        let (mut stream, name) = Caller::web(&shop).stream().await;
        past_half().await;
        let others = [(MALLORY, "web-1"), (WEB, "web-2"), (MALLORY, "mallory-1")];
        for (id, instance) in others {
            let shop = &shop;
            let thief = Caller {
                shop,
                id,
                instance,
                life: 3_000,
            };
            // Not even whether there is such a connection.
            assert_eq!(thief.asks(&name).await.unwrap(), [UNKNOWN], "{id} {instance}");
        }
        assert_eq!(answered(&shop, "wrong_peer"), others.len() as u64);
        while echoes(&mut stream).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(answered(&shop, "readmitted"), 0);
    });
}

#[test]
fn names_that_are_not_there_and_garbage_get_nowhere_and_never_to_the_app() {
    run(async {
        let shop = shop().await;
        let (mut stream, mut name) = Caller::web(&shop).stream().await;
        past_half().await;
        name[0] ^= 1;
        let newer = Caller {
            life: 60,
            ..Caller::web(&shop)
        };
        assert_eq!(newer.asks(&name).await.unwrap(), [UNKNOWN]);
        let request = b"GET /secret HTTP/1.1\r\nHost: cart\r\n\r\n";
        assert_eq!(newer.asks(request).await.unwrap(), [UNKNOWN]);
        let much = newer.asks(&[0xff; 1 << 16]).await;
        assert!(much.is_err() || much.is_ok_and(|answer| answer == [UNKNOWN]));
        // Less than a name, and then nothing more.
        let mut short = dial(shop.door, newer.config(alpn::POSTERN_RENEW)).await.unwrap();
        short.write_all(&name[..31]).await.unwrap();
        short.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = soon("the end", short.read_to_end(&mut answer)).await;
        assert!(answer.is_empty(), "{answer:?}");
        until("counted", || answered(&shop, "malformed") == 1).await;
        // Silence has a deadline.
        let mut silent = dial(shop.door, newer.config(alpn::POSTERN_RENEW)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        pass(READMIT_DEADLINE).await;
        let _ = soon("the end", silent.read_to_end(&mut answer)).await;
        assert!(answer.is_empty(), "{answer:?}");
        assert!(echoes(&mut stream).await);
        assert_eq!((shop.app.connections(), shop.app.bytes()), (1, 8));
    });
}

#[test]
fn a_stream_is_decided_on_anew_and_whom_custom_policies_ask_is_asked_again() {
    run(async {
        let shop = shop().await;
        let opa = Authorizer::saying(ok()).await;
        let custom = format!(
            "{WEB_ONLY}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: asks, namespace: shop}}\n\
             spec: {{action: CUSTOM, provider: {{name: opa}}, rules: [{{to: [{{operation: {{ports: ['80']}}}}]}}]}}\n\
             ---\napiVersion: postern.dev/v1alpha1\nkind: Authorizer\nmetadata: {{name: opa, namespace: shop}}\n\
             spec: {{extAuthz: {{address: '{}'}}}}\n",
            opa.address
        );
        shop.cart.policy(&custom);
        let (mut stream, name) = Caller::web(&shop).stream().await;
        assert_eq!(opa.count(), 1);
        past_half().await;
        let newer = |life| Caller {
            life,
            ..Caller::web(&shop)
        };
        assert_eq!(newer(30).asks(&name).await.unwrap(), [READMITTED]);
        until("it is asked again", || opa.count() == 2).await;
        assert!(echoes(&mut stream).await);
        // It has changed its mind: nothing but a readmission asks it.
        opa.says(no(403, &[], ""));
        assert!(echoes(&mut stream).await);
        assert_eq!(newer(60).asks(&name).await.unwrap(), [READMITTED]);
        while echoes(&mut stream).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let denied = ["policy=\"shop/asks\"", "reason=\"custom_denied\""];
        assert_eq!(shop.cart.metric("postern_proxy_denials_total", &denied), 1);
    });
}

#[test]
fn whoever_is_cut_off_meanwhile_cannot_even_ask() {
    run(async {
        let shop = shop().await;
        let (mut stream, name) = Caller::web(&shop).stream().await;
        past_half().await;
        let web = Instance::parse("web-1").unwrap();
        shop.cart.trust(|trust| trust.quarantined_instances.extend([web]));
        let newer = Caller {
            life: 60,
            ..Caller::web(&shop)
        };
        assert!(newer.asks(&name).await.is_err());
        assert!(!echoes(&mut stream).await);
        assert_eq!(shop.cart.metric("postern_proxy_readmissions_total", &[]), 0);
    });
}

#[test]
fn a_client_that_goes_on_with_new_requests_on_a_readmitted_connection_is_refused_them_unprocessed() {
    run(async {
        let shop = Shop::before(grpc_app().await, Protocol::Http2, WEB_ONLY).await;
        let web = Caller::web(&shop);
        let mut stream = dial(shop.door, web.config(alpn::POSTERN_H2)).await.unwrap();
        let name = tls::name_of(stream.get_ref().1).unwrap();
        let get = |id| frame(HEADERS, END_HEADERS, id, &block(&pseudo("/a")));
        let greeting = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &get(1)].concat();
        stream.write_all(&greeting).await.unwrap();
        stream.flush().await.unwrap();
        past_half().await;
        let newer = Caller { life: 30, ..web };
        assert_eq!(newer.asks(&name).await.unwrap(), [READMITTED]);
        let handled = shop.app.connections();
        // It has not read that the connection is going away.
        stream.write_all(&get(3)).await.unwrap();
        stream.flush().await.unwrap();
        let reset = loop {
            let frame = soon("a frame", read_frame(&mut stream)).await.unwrap();
            if frame.kind == RST_STREAM {
                break frame;
            }
        };
        let refused = h2::Reason::REFUSED_STREAM;
        assert_eq!((reset.stream, reset.error_code()), (3, u32::from(refused)));
        assert_eq!(shop.app.connections(), handled);
    });
}

/// What a readmitted HTTP/1.1 connection does with a request that came behind the long one: `/long` answers its head first, `/late`
/// nothing before it is let go on.
async fn behind(target: &str) -> (Answer, Option<Answer>) {
    let go_on = Rc::new(tokio::sync::Notify::new());
    let waits = Rc::clone(&go_on);
    let app = Canary::serving(move |mut stream, canary, connection| {
        let waits = Rc::clone(&waits);
        async move {
            let mut read = Vec::new();
            while let Some(request) = canary.read(&mut stream, &mut read, connection).await {
                let (head, end) = ("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nlong", "over");
                let late = request.target == "/late";
                canary.saw(request);
                if late {
                    waits.notified().await;
                    stream.write_all(format!("{head}{end}").as_bytes()).await.unwrap();
                } else {
                    stream.write_all(head.as_bytes()).await.unwrap();
                    waits.notified().await;
                    stream.write_all(end.as_bytes()).await.unwrap();
                }
            }
        }
    })
    .await;
    let shop = Shop::before(app, Protocol::Http1, WEB_ONLY).await;
    let web = Caller::web(&shop);
    let stream = dial(shop.door, web.config(alpn::POSTERN_H1)).await.unwrap();
    let name = tls::name_of(stream.get_ref().1).unwrap();
    let mut conn = Conn::over(stream);
    let asked = format!("GET {target} HTTP/1.1\r\nhost: cart.shop\r\n\r\n");
    conn.send(format!("{asked}GET /next HTTP/1.1\r\nhost: cart.shop\r\n\r\n"))
        .await;
    until("it is asked", || shop.app.count() == 1).await;
    past_half().await;
    let newer = Caller { life: 30, ..web };
    assert_eq!(newer.asks(&name).await.unwrap(), [READMITTED]);
    go_on.notify_one();
    let first = conn.answer().await;
    assert_eq!((first.status, first.text().as_str()), (200, "longover"));
    let second = conn.try_answer().await;
    assert_eq!(conn.rest().await, b"");
    assert_eq!(shop.app.count(), 1, "it never reaches the app");
    (first, second)
}

#[test]
fn what_came_behind_a_long_request_of_http_1_is_refused_once_that_was_readmitted_and_the_connection_ends() {
    run(async {
        let (long, late, absolute) = tokio::join!(behind("/long"), behind("/late"), behind("http://cart.shop/long"));
        // The head said that the connection goes on, so that the one behind it is answered.
        let (first, second) = long;
        let second = second.unwrap();
        assert!(!first.closes());
        assert_eq!((second.status, second.closes()), (503, true));
        // It says that the connection ends.
        let (first, second) = late;
        assert!(first.closes() && second.is_none());
        // Not the relay's, hyper's.
        let (_, second) = absolute;
        assert!(second.is_none());
    });
}
