//! What a client's proxy makes of an answer.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use postern_identity::quarantine::{Serial, Subject};
use postern_identity::tls::{self, ClientAuth, alpn};
use postern_identity::{QuarantineSet, Svid};
use postern_proxy::drain::Phase;
use postern_proxy::snapshot::{Door, Protocol, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::world::{Authority, CART, Conn, Proxy, WEB, endpoint, meshed, run, until};

/// Of the web's first SVID.
const LIFE: i64 = 5;

/// A proxy of the cart that echoes, and agrees to everything once `before` has run.
async fn cart(authority: &Authority, before: impl Fn() + 'static) -> (SocketAddr, Svid) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let svid = |life| authority.svid_for(CART, Some("cart-1"), life);
    let trust = authority.shared_trust();
    let first = svid(3_600);
    let of = |svid: &Svid, alpn: &[u8]| {
        let config = tls::server_config(svid, Arc::clone(&trust), ClientAuth::Required, &[alpn]).unwrap();
        TlsAcceptor::from(config)
    };
    let accepting = [of(&first, alpn::POSTERN_TCP), of(&svid(7_200), alpn::POSTERN_RENEW)];
    tokio::task::spawn_local(async move {
        let mut held = Vec::new();
        for accepting in accepting {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut stream = accepting.accept(tcp).await.unwrap();
            if stream.get_ref().1.alpn_protocol() == Some(alpn::POSTERN_RENEW) {
                let mut name = [0; tls::NAME_BYTES];
                stream.read_exact(&mut name).await.unwrap();
                before();
                stream.write_all(&[0]).await.unwrap();
                stream.flush().await.unwrap();
            } else {
                let mut bytes = [0; 4];
                stream.read_exact(&mut bytes).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
                stream.flush().await.unwrap();
            }
            held.push(stream);
        }
        std::future::pending::<()>().await;
    });
    (address, first)
}

async fn streaming(web: &Proxy, to: SocketAddr) -> Conn {
    let original = "10.96.0.1:80".parse().unwrap();
    let cart_is = endpoint(to, CART, Some("cart-1"), Protocol::Tcp, Door::Sidecar);
    web.knows(Target::Address(original), meshed(Protocol::Tcp, vec![cart_is]));
    let mut conn = Conn::plain(web.captured(original).await).await;
    conn.send("ping").await;
    let mut back = [0; 4];
    conn.io.read_exact(&mut back).await.unwrap();
    conn
}

fn asked(web: &Proxy, reason: &str) -> u64 {
    let reason = format!("result=\"{reason}\"");
    web.metric("postern_proxy_readmissions_total", &["outbound", &reason])
}

#[test]
fn an_answer_is_worth_nothing_once_the_old_certificate_of_whoever_gives_it_is_cut_off() {
    run(async {
        let authority = Authority::new("cluster.local");
        let web = Proxy::new(&authority, WEB, "web-1");
        web.policy("");
        let svid = |life| authority.svid_for(WEB, Some("web-1"), life);
        web.shared.publish_identity(svid(LIFE)).unwrap();
        let cut_off: Rc<RefCell<Option<Serial>>> = Rc::default();
        let (shared, serial) = (Arc::clone(&web.shared), Rc::clone(&cut_off));
        // In force, and nobody is told: the next look comes after the answer, or with it.
        let quarantine = move || {
            let serial = Subject::Serial(serial.borrow().clone().unwrap());
            let set = QuarantineSet::new(1, BTreeSet::from([serial]));
            let next = shared.trust.load().with_quarantine(&set).unwrap();
            shared.trust.store(Arc::new(next));
        };
        let (door, first) = cart(&authority, quarantine).await;
        *cut_off.borrow_mut() = Some(Serial::of(&first.leaf().serial));
        let mut conn = streaming(&web, door).await;
        web.shared.publish_identity(svid(3_600)).unwrap();
        until("it was asked", || asked(&web, "peer_quarantined") == 1).await;
        assert_eq!(asked(&web, "readmitted"), 0);
        assert_eq!(conn.rest().await, b"");
    });
}

#[test]
fn a_proxy_that_drains_asks_for_nothing() {
    run(async {
        let authority = Authority::new("cluster.local");
        let web = Proxy::new(&authority, WEB, "web-1");
        web.policy("");
        let svid = |life| authority.svid_for(WEB, Some("web-1"), life);
        web.shared.publish_identity(svid(LIFE)).unwrap();
        let (door, _) = cart(&authority, || {}).await;
        let mut conn = streaming(&web, door).await;
        web.shared.publish_identity(svid(3_600)).unwrap();
        web.phase.send(Phase::Draining).unwrap();
        let mut rest = Vec::new();
        let over = conn.io.read_to_end(&mut rest);
        // Reset or closed: it is over at its time.
        let _ = tokio::time::timeout(Duration::from_secs(LIFE as u64 * 2), over)
            .await
            .unwrap();
        assert_eq!(web.metric("postern_proxy_readmissions_total", &[]), 0);
    });
}
