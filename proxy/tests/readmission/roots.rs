//! The root is replaced under a long stream.

use std::time::{Duration, Instant};

use postern_identity::{BundleSet, TrustBundle};
use postern_proxy::limits::READMIT_HURRY;
use postern_proxy::snapshot::Protocol;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::canary::Canary;
use crate::world::{Authority, CART, Conn, Pair, Proxy, WEB, WEB_ONLY, run, soon};

/// Certificates last; roots do not.
async fn streaming() -> (Pair, Conn) {
    let app = Canary::serving(|mut stream, _, _| async move {
        let mut bytes = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut bytes).await {
            stream.write_all(&bytes[..n]).await.unwrap();
        }
    })
    .await;
    let pair = Pair::with(app, Protocol::Tcp, WEB_ONLY).await;
    let mut conn = pair.captured(Protocol::Tcp).await;
    assert!(echoes(&mut conn).await);
    (pair, conn)
}

async fn echoes(conn: &mut Conn) -> bool {
    let mut back = [0; 4];
    conn.try_send("ping").await.is_ok() && soon("an echo", conn.io.read_exact(&mut back)).await.is_ok()
}

/// What it signs ends later, by the second at least.
async fn later() -> Authority {
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    Authority::new("cluster.local")
}

fn believe(proxy: &Proxy, roots: &[&Authority]) {
    let domain = roots[0].domain().clone();
    let roots = roots.iter().map(|root| CertificateDer::from(root.root())).collect();
    let bundle = TrustBundle::new(domain, 2, roots, UnixTime::now());
    proxy.trust(|trust| trust.bundles = BundleSet::default().with(bundle));
}

/// Until a proxy says so; time enough for a second try.
async fn until_readmitted(proxy: &Proxy) {
    let until = Instant::now() + READMIT_HURRY * 4;
    while proxy.metric("postern_proxy_readmissions_total", &["result=\"readmitted\""]) == 0 {
        let shown = proxy.series("postern_proxy_readmissions");
        assert!(Instant::now() < until, "not readmitted: {shown}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_stream_goes_on_under_the_new_root_whoever_renews_first() {
    run(async {
        for web_first in [true, false] {
            let (pair, mut conn) = streaming().await;
            let new = later().await;
            for proxy in [&pair.web, &pair.cart] {
                believe(proxy, &[&pair.authority, &new]);
            }
            let web = || {
                pair.web
                    .shared
                    .publish_identity(new.svid_for(WEB, Some("web-1"), 3_600))
                    .unwrap()
            };
            let cart = || {
                let svid = new.svid_for(CART, Some("cart-1"), 3_600);
                pair.cart.shared.publish_identity(svid).unwrap();
            };
            if web_first {
                web();
                // Asked too early: the cart still is under the old root, and will be asked again.
                until_readmitted(&pair.cart).await;
                cart();
            } else {
                cart();
                web();
            }
            until_readmitted(&pair.web).await;
            until_readmitted(&pair.cart).await;
            for proxy in [&pair.web, &pair.cart] {
                believe(proxy, &[&new]);
            }
            for _ in 0..20 {
                assert!(echoes(&mut conn).await, "web first: {web_first}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
}

#[test]
fn a_stream_that_begins_between_both_renewals_goes_on_as_well() {
    run(async {
        for web_first in [true, false] {
            let (pair, before) = streaming().await;
            drop(before);
            let new = later().await;
            for proxy in [&pair.web, &pair.cart] {
                believe(proxy, &[&pair.authority, &new]);
            }
            let web = || new.svid_for(WEB, Some("web-1"), 3_600);
            let cart = || new.svid_for(CART, Some("cart-1"), 3_600);
            match web_first {
                true => pair.web.shared.publish_identity(web()).unwrap(),
                false => pair.cart.shared.publish_identity(cart()).unwrap(),
            }
            let mut conn = pair.captured(Protocol::Tcp).await;
            assert!(echoes(&mut conn).await);
            match web_first {
                true => pair.cart.shared.publish_identity(cart()).unwrap(),
                false => pair.web.shared.publish_identity(web()).unwrap(),
            }
            until_readmitted(&pair.web).await;
            until_readmitted(&pair.cart).await;
            for proxy in [&pair.web, &pair.cart] {
                believe(proxy, &[&new]);
            }
            for _ in 0..20 {
                assert!(echoes(&mut conn).await, "web first: {web_first}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
}

#[test]
fn a_stream_of_a_peer_that_has_only_the_old_root_s_certificate_ends_with_that_root() {
    run(async {
        for which in ["web", "cart"] {
            let (pair, mut conn) = streaming().await;
            let new = later().await;
            for proxy in [&pair.web, &pair.cart] {
                believe(proxy, &[&pair.authority, &new]);
            }
            // The other one does not renew.
            match which {
                "web" => pair
                    .web
                    .shared
                    .publish_identity(new.svid_for(WEB, Some("web-1"), 3_600))
                    .unwrap(),
                _ => {
                    let svid = new.svid_for(CART, Some("cart-1"), 3_600);
                    pair.cart.shared.publish_identity(svid).unwrap();
                }
            }
            tokio::time::sleep(READMIT_HURRY + Duration::from_secs(1)).await;
            assert!(echoes(&mut conn).await);
            for proxy in [&pair.web, &pair.cart] {
                believe(proxy, &[&new]);
            }
            while echoes(&mut conn).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
}
