//! Control over a cluster, whose API server is played over a real socket.

use std::sync::Arc;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use postern_api::control::v1 as wire;
use postern_control::{Cluster, Running, Source};
use serde_json::json;
use wire::proxy_message::Message as ToControl;

use crate::world::{Proxy, World, dial, hello, id, policies_of, resolve, rules_of, trust_of};

// Other tests use other parts of it.
#[allow(dead_code)]
mod played;

use played::{ApiServer, Etcd, NAMESPACES, PODS, POLICIES, SERVICES, SLICES, namespace, pod, policy, service, slice};

fn shop() -> Arc<Etcd> {
    let etcd = Arc::new(Etcd::default());
    let (cart, web) = (
        pod("shop", "cart-1", "10.1.0.1", true),
        pod("shop", "web-1", "10.1.0.2", true),
    );
    etcd.put(
        NAMESPACES,
        namespace("shop", json!({ "postern.dev/inject": "enabled" })),
    );
    etcd.put(SERVICES, service("shop", "cart", "10.96.0.1"));
    etcd.put(SLICES, slice("shop", "cart", &[&cart]));
    etcd.put(PODS, cart);
    etcd.put(PODS, web);
    etcd
}

/// Where this API server is called; until the test ends.
async fn source(server: &Arc<ApiServer>) -> Source {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Arc::clone(server);
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let server = Arc::clone(&server);
                    async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
                });
                // A connection that is cut is one of the things that happen.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(tcp), service)
                    .await;
            });
        }
    });
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    Source::Kubernetes(Cluster {
        client: kube::Client::try_from(config).unwrap(),
        own_pod: None,
    })
}

async fn world(server: &Arc<ApiServer>) -> World {
    let source = source(server).await;
    World::configured(&[], |config| config.source = source).await
}

/// The proxy of a pod of `shop`, at this replica, that says what it has.
async fn proxy(world: &World, running: &Running, pod: &str, held: Vec<wire::Held>) -> Proxy {
    let account = pod.split('-').next().unwrap();
    let svid = world.authority.svid(&id(account), Some(&format!("uid-of-{pod}")), 3600);
    let client = dial(running, Some(&svid), &trust_of(world.authority.bundle()))
        .await
        .unwrap();
    let hello = wire::Hello { held, ..hello() };
    Proxy::open(client, Some(ToControl::Hello(hello))).await
}

fn address(id: u64, ip: [u8; 4], port: u32) -> ToControl {
    let ip = ip.to_vec();
    resolve(
        id,
        Some(wire::resolve::Target::Address(wire::AddressTarget { ip, port })),
    )
}

fn held(proxy: &Proxy) -> Vec<wire::Held> {
    let of = |kind: wire::Kind| {
        let version = proxy.held.versions(kind).into_iter().max().unwrap_or(0);
        let kind = kind as i32;
        wire::Held { kind, version }
    };
    [wire::Kind::Workload, wire::Kind::Policies, wire::Kind::Ranges]
        .map(of)
        .to_vec()
}

#[tokio::test]
async fn a_pods_proxy_is_served_by_its_uid_and_reaches_its_own_service_as_itself() {
    let world = world(&ApiServer::of(&shop())).await;
    let mut cart = proxy(&world, &world.running, "cart-1", Vec::new())
        .await
        .started()
        .await;
    let workload = cart.held.workload.clone().unwrap();
    assert_eq!((&*workload.namespace, &*workload.name), ("shop", "cart-1"));
    assert_eq!(workload.ports[0].number, 8080);
    cart.send(address(1, [10, 96, 0, 1], 80)).await;
    cart.until(|held| held.destinations.contains_key(&1)).await;
    let Some(wire::destination::State::Meshed(meshed)) = cart.held.destinations[&1].state.clone() else {
        panic!()
    };
    let [endpoint] = meshed.endpoints.as_slice() else {
        panic!()
    };
    assert_eq!(
        endpoint.instance, "uid-of-cart-1",
        "its own SVID's: a proxy knows itself by it"
    );
    assert_eq!(
        (&*endpoint.spiffe_ids[0], &*endpoint.workload),
        (&*id("cart"), "cart-1")
    );
    // Its name is nobody's.
    let stranger = world.authority.svid(&id("cart"), Some("cart-1"), 3600);
    let client = dial(&world.running, Some(&stranger), &trust_of(world.authority.bundle()))
        .await
        .unwrap();
    let refused = Proxy::open(client, Some(ToControl::Hello(hello())))
        .await
        .refused()
        .await;
    assert!(
        refused.reason.contains("there is no Workload `cart-1`"),
        "{}",
        refused.reason
    );
    assert_eq!(refused.retry_after_seconds, 1, "its pod may not have been heard of yet");
}

#[tokio::test]
async fn a_policy_that_is_applied_reaches_proxies_and_goes_when_it_is_deleted() {
    let etcd = shop();
    let world = world(&ApiServer::of(&etcd)).await;
    let mut cart = proxy(&world, &world.running, "cart-1", Vec::new())
        .await
        .started()
        .await;
    let deny = policy("shop", "no", json!({ "action": "DENY", "rules": [{}] }));
    let revision = etcd.put(POLICIES, deny.clone());
    cart.until(|held| held.policy_names() == ["no"]).await;
    let set = cart.held.policies.clone().unwrap();
    assert_eq!(set.version, revision, "it counts as the API server counts");
    assert_eq!(
        &*rules_of(&policies_of(&set)[0])[0].place.file,
        "AuthorizationPolicy/shop/no:spec.rules[0]"
    );
    etcd.delete(POLICIES, deny);
    cart.until(|held| held.policy_names().is_empty()).await;
}

/// One replica's watches are held back; the other hears of a DENY, tells its proxy, and is killed. The proxy moves.
#[tokio::test]
async fn a_deny_is_not_lost_to_a_replica_that_has_not_heard_of_it() {
    let etcd = shop();
    etcd.put(POLICIES, policy("shop", "open", json!({ "rules": [{}] })));
    let (first, second) = (ApiServer::of(&etcd), ApiServer::of(&etcd));
    let world = world(&first).await;
    let source = source(&second).await;
    let lagging = world.another(|config| config.source = source).await;
    let mut cart = proxy(&world, &world.running, "cart-1", Vec::new())
        .await
        .started()
        .await;
    second.hold(true);
    etcd.put(
        POLICIES,
        policy("shop", "no", json!({ "action": "DENY", "rules": [{}] })),
    );
    cart.until(|held| held.policy_names() == ["no", "open"]).await;
    let before = cart.held.policies.clone().unwrap().version;
    // What the lagging replica tells counts as older than what the proxy has: it refuses that.
    let mut moved = proxy(&world, &lagging, "cart-1", held(&cart)).await;
    moved.until(|held| held.policies.is_some()).await;
    let told = moved.held.policies.clone().unwrap();
    assert_eq!(moved.held.policy_names(), ["open"]);
    assert!(
        told.version < before,
        "{} would turn the proxy back from {before}",
        told.version
    );
    // Once it is let through it hears of the DENY.
    second.hold(false);
    moved.until(|held| held.policy_names() == ["no", "open"]).await;
    assert!(moved.held.policies.clone().unwrap().version >= before);
}

/// Both replicas are well; one has only heard less of what does not matter. Nothing is refused.
#[tokio::test]
async fn a_proxy_that_moves_to_a_replica_that_has_heard_less_is_told_nothing_that_it_must_refuse() {
    let etcd = shop();
    let server = ApiServer::of(&etcd);
    let world = world(&server).await;
    for _ in 0..100 {
        etcd.pass();
    }
    let source = source(&server).await;
    let restarted = world.another(|config| config.source = source).await;
    let cart = proxy(&world, &restarted, "cart-1", Vec::new()).await.started().await;
    let has = held(&cart);
    let mut moved = proxy(&world, &world.running, "cart-1", has.clone()).await;
    moved.until(|held| held.ranges.is_some()).await;
    for (before, now) in has.iter().zip(held(&moved)) {
        assert!(now.version >= before.version, "{now:?} after {before:?}");
    }
}

#[tokio::test]
async fn control_is_not_ready_before_the_cluster_is_read_and_says_what_is_missing() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let server = ApiServer::of(&shop());
    server.hold_only(&[PODS]);
    let source = source(&server).await;
    let free = std::net::TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap();
    let starting = tokio::spawn(async move {
        World::configured(&[], |config| {
            config.source = source;
            config.metrics_listen = free;
        })
        .await
    });
    let readyz = || async {
        let mut tcp = loop {
            match tokio::net::TcpStream::connect(free).await {
                Ok(tcp) => break tcp,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        };
        tcp.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let mut answer = readyz().await;
    while !answer.ends_with("the cluster is not read yet: pods\n")
        && !answer.ends_with("the cluster is not read yet: pods")
    {
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        answer = readyz().await;
    }
    server.hold_only(&[]);
    let world = starting.await.unwrap();
    assert!(readyz().await.starts_with("HTTP/1.1 200"));
    drop(world);
}

/// What was refused for its age stayed unsaid for ever: it was the same when the replica had caught up.
#[tokio::test]
async fn what_a_proxy_refused_as_older_is_said_again_once_the_replica_has_caught_up() {
    let etcd = shop();
    etcd.put(POLICIES, policy("shop", "open", json!({ "rules": [{}] })));
    let server = ApiServer::of(&etcd);
    let world = world(&server).await;
    server.hold(true);
    let newest = (0..10).map(|_| etcd.pass()).max().unwrap();
    let has = [
        wire::Kind::Workload,
        wire::Kind::Policies,
        wire::Kind::Ranges,
        wire::Kind::Destination,
    ]
    .map(|kind| wire::Held {
        kind: kind as i32,
        version: newest,
    });
    let mut cart = proxy(&world, &world.running, "cart-1", has.to_vec()).await;
    cart.send(address(1, [10, 96, 0, 1], 80)).await;
    cart.until(|held| held.ranges.is_some() && held.destinations.contains_key(&1))
        .await;
    let versions = |held: &crate::world::Held| has.map(|of| held.versions(of.kind()).last().copied().unwrap());
    let told = versions(&cart.held);
    assert!(told.iter().all(|version| *version < newest), "{told:?}");
    for (of, version) in has.iter().zip(told) {
        let refused = format!("version {version} is older than {newest}, which is in force");
        cart.send(ToControl::Acknowledge(wire::Acknowledge {
            kind: of.kind,
            version,
            refused,
        }))
        .await;
    }
    server.hold(false);
    cart.until(|held| versions(held).iter().all(|version| *version >= newest))
        .await;
    assert_eq!(cart.held.policy_names(), ["open"]);
    assert_eq!(cart.held.endpoints(1), ["cart-1"]);
}
