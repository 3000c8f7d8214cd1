//! Who is which workload, and who is not served.

use postern_api::ca_client::control_id;
use postern_api::control::v1 as wire;
use postern_control::{IdentitySource, start};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use wire::proxy_message::Message as ToControl;

use crate::world::{Authority, World, config, domain, hello, id};

const MORE: &str = "
apiVersion: postern.dev/v1alpha1
kind: Workload
metadata: {name: plain, namespace: shop}
spec: {serviceAccount: plain, mesh: false}
---
apiVersion: postern.dev/v1alpha1
kind: Workload
metadata: {name: nameless, namespace: shop}
---
apiVersion: postern.dev/v1alpha1
kind: Workload
metadata: {name: legacy, namespace: shop}
spec: {serviceAccount: legacy, capture: foreign}
---
apiVersion: postern.dev/v1alpha1
kind: Workload
metadata: {name: cart, namespace: bank}
spec: {serviceAccount: cart}
";

async fn world() -> World {
    World::with(&[("shop.yaml", crate::world::SHOP), ("more.yaml", MORE)]).await
}

#[tokio::test]
async fn a_workload_is_the_namespace_of_its_id_and_the_instance_of_its_svid() {
    let world = world().await;
    for (namespace, name) in [("shop", "cart"), ("shop", "web"), ("bank", "cart")] {
        let id = format!("spiffe://cluster.local/ns/{namespace}/sa/{name}");
        let proxy = world.caller(&id, Some(name), hello()).await.started().await;
        let workload = proxy.held.workload.unwrap();
        assert_eq!((&*workload.namespace, &*workload.name), (namespace, name));
    }
}

#[tokio::test]
async fn the_app_beside_a_proxy_is_not_its_proxy() {
    let world = world().await;
    let app = world.authority.made(&id("cart"), Some("cart"), true, 3600);
    let mut client = world.dial(Some(&app)).await.unwrap();
    let status = client.connect(tokio_stream::pending()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(status.message().contains("app beside"), "{status}");
    // Its proxy's own is served.
    let proxy = world.caller(&id("cart"), Some("cart"), hello()).await.started().await;
    assert_eq!(proxy.held.workload.unwrap().name, "cart");
}

#[tokio::test]
async fn who_is_no_workload_of_ours_is_refused_with_the_nearest_and_whether_to_come_back() {
    let world = world().await;
    for (id, instance, says, retry) in [
        (
            id("cart"),
            Some("crat"),
            "there is no Workload `crat` in namespace `shop`; did you mean `cart`?",
            1,
        ),
        (
            id("cart"),
            Some("zzz"),
            "there is no Workload `zzz` in namespace `shop`",
            1,
        ),
        // A workload of another namespace is none of this one's.
        (
            "spiffe://cluster.local/ns/bank/sa/web".to_owned(),
            Some("web"),
            "there is no Workload `web` in namespace `bank`",
            1,
        ),
        // Any other's instance, under one's own account.
        (
            id("web"),
            Some("cart"),
            "Workload shop/cart runs as spiffe://cluster.local/ns/shop/sa/cart, not under service account `web`",
            1,
        ),
        (
            id("plain"),
            Some("plain"),
            "Workload shop/plain is not in the mesh, says more.yaml:2:1",
            1,
        ),
        (
            id("nameless"),
            Some("nameless"),
            "Workload shop/nameless is not in the mesh",
            1,
        ),
        (
            id("legacy"),
            Some("legacy"),
            "Workload shop/legacy has no proxy of ours",
            1,
        ),
        (id("cart"), None, "names no instance", 0),
        (
            "spiffe://cluster.local/robot".to_owned(),
            Some("cart"),
            "names no workload",
            0,
        ),
    ] {
        let refused = world.caller(&id, instance, hello()).await.refused().await;
        assert!(refused.reason.contains(says), "{says}: {}", refused.reason);
        assert_eq!(refused.retry_after_seconds, retry, "{says}");
    }
    // The same control serves on.
    world.proxy("cart").await.started().await;
}

#[tokio::test]
async fn a_proxy_two_minor_versions_apart_is_served_and_one_further_is_turned_away() {
    let world = world().await;
    let mut parts = postern_api::VERSION.split('.').map(|part| part.parse::<u64>().unwrap());
    let (major, minor) = (parts.next().unwrap(), parts.next().unwrap());
    let of = |version: String| wire::Hello { version, ..hello() };
    let newer = world
        .caller(&id("cart"), Some("cart"), of(format!("{major}.{}.7", minor + 2)))
        .await;
    newer.started().await;
    for version in [
        format!("{major}.{}.0", minor + 3),
        format!("{}.0.0", major + 1),
        "latest".to_owned(),
        String::new(),
    ] {
        let refused = world
            .caller(&id("cart"), Some("cart"), of(version.clone()))
            .await
            .refused()
            .await;
        // It comes back: permanently turned away it would stay so after control's own upgrade.
        assert!(
            (30..=60).contains(&refused.retry_after_seconds),
            "{version}: {} s, {}",
            refused.retry_after_seconds,
            refused.reason
        );
    }
}

#[tokio::test]
async fn without_a_certificate_of_ours_nobody_speaks() {
    let world = world().await;
    // TLS 1.3: the client may believe that it is through; its first call fails.
    if let Ok(mut client) = world.dial(None).await {
        assert!(
            client
                .connect(tokio_stream::empty::<wire::ProxyMessage>())
                .await
                .is_err()
        );
    }
    let stranger = Authority::new().svid(&id("cart"), Some("cart"), 3600);
    if let Ok(mut client) = world.dial(Some(&stranger)).await {
        assert!(
            client
                .connect(tokio_stream::empty::<wire::ProxyMessage>())
                .await
                .is_err()
        );
    }
    let expired = world.authority.svid(&id("cart"), Some("cart"), -5);
    if let Ok(mut client) = world.dial(Some(&expired)).await {
        assert!(
            client
                .connect(tokio_stream::empty::<wire::ProxyMessage>())
                .await
                .is_err()
        );
    }
}

#[tokio::test]
async fn a_stream_ends_with_the_svid_that_it_was_opened_under() {
    let world = world().await;
    let short = world.authority.svid(&id("cart"), Some("cart"), 4);
    let mut proxy = world
        .stream(&short, Some(ToControl::Hello(hello())))
        .await
        .started()
        .await;
    let status = proxy.ends().await.unwrap();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(
        status.message().ends_with("come back with a current certificate"),
        "{status:?}"
    );
}

#[tokio::test]
async fn hello_comes_first_once_and_in_time() {
    let world = world().await;
    let svid = world.authority.svid(&id("cart"), Some("cart"), 3600);
    let release = || ToControl::Release(wire::Release { id: 1 });
    let status = world.stream(&svid, Some(release())).await.ends().await.unwrap();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "the first message is Hello")
    );
    let mut twice = world.proxy("cart").await.started().await;
    twice.send(ToControl::Hello(hello())).await;
    let status = twice.ends().await.unwrap();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "Hello comes once")
    );
    let mut left = world.stream(&svid, None).await;
    left.out = None;
    assert!(left.ends().await.is_none());
    let status = world.stream(&svid, None).await.ends().await.unwrap();
    assert_eq!(
        (status.code(), status.message()),
        (Code::DeadlineExceeded, "no Hello came")
    );
}

#[tokio::test]
async fn who_is_no_more_what_it_was_is_told_so_and_cut() {
    let world = world().await;
    let cart = world
        .caller("spiffe://cluster.local/ns/bank/sa/cart", Some("cart"), hello())
        .await;
    let mut cart = cart.started().await;
    let mut legacy = world.proxy("web").await.started().await;
    world.write(
        "shop.yaml",
        &crate::world::SHOP.replace("serviceAccount: web", "serviceAccount: other"),
    );
    assert!(legacy.ends().await.is_none());
    let reason = legacy.held.refused.unwrap().reason;
    assert!(reason.contains("Workload shop/web runs as"), "{reason}");
    world.remove("more.yaml");
    assert!(cart.ends().await.is_none());
    let reason = cart.held.refused.unwrap().reason;
    assert!(
        reason.contains("there is no Workload `cart` in namespace `bank`"),
        "{reason}"
    );
}

/// Control said that it is ready with an SVID that no proxy believes.
#[tokio::test]
async fn control_is_not_ready_under_an_expired_svid_of_its_own() {
    for (seconds, says) in [(3600, "200 OK"), (-5, "not ready: our own SVID expired ")] {
        let authority = Authority::new();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mesh")).unwrap();
        let identity = IdentitySource::Given {
            svid: authority.svid(control_id(&domain()).unwrap().as_str(), None, seconds),
            bundle: authority.bundle(),
        };
        let running = start(config(&dir), identity).await.unwrap();
        let mut probe = tokio::net::TcpStream::connect(running.metrics).await.unwrap();
        let request = b"GET /readyz HTTP/1.1\r\nhost: control\r\nconnection: close\r\n\r\n";
        probe.write_all(request).await.unwrap();
        let mut answer = String::new();
        probe.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains(says), "{answer}");
    }
}
