//! Lists and watches that break.

use postern_policy::MtlsMode;

use super::*;

#[tokio::test(start_paused = true)]
async fn nothing_is_in_force_before_every_kind_was_heard() {
    let server = ApiServer::of(&shop());
    server.hold_only(&[SLICES]);
    let replica = Replica::at(&server);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!replica.hub.state().is_there());
    let awaited = replica.hub.awaited();
    assert_eq!(awaited, "the cluster is not read yet: endpointslices.discovery.k8s.io");
    server.hold_only(&[]);
    replica.ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_cannot_be_read_says_why() {
    let server = ApiServer::of(&shop());
    server.breaks(true);
    let replica = Replica::at(&server);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let awaited = replica.hub.awaited();
    assert!(
        awaited.contains("pods list: ") && awaited.contains("etcd is away"),
        "{awaited}"
    );
    server.breaks(false);
    replica.ready().await;
}

/// Like a node whose network is gone: nothing is refused, nothing comes.
#[tokio::test(start_paused = true)]
async fn a_way_to_the_api_server_that_has_died_in_silence_is_noticed() {
    let etcd = shop();
    let server = ApiServer::of(&etcd);
    let replica = Replica::at(&server);
    replica.ready().await;
    server.hold(true);
    etcd.put(POLICIES, policy("shop", "p", deny_all()));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(policy_names(&replica.hub.state()).is_empty());
    server.hold(false);
    let back = tokio::time::Instant::now();
    replica.until(|state| policy_names(state) == ["p"]).await;
    assert!(back.elapsed() < Duration::from_secs(50), "{:?}", back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn changes_arrive_and_what_is_deleted_goes() {
    let etcd = shop();
    let replica = Replica::at(&ApiServer::of(&etcd));
    replica.ready().await;
    etcd.put(POLICIES, policy("shop", "p", deny_all()));
    replica.until(|state| policy_names(state) == ["p"]).await;
    etcd.delete(POLICIES, policy("shop", "p", deny_all()));
    replica.until(|state| policy_names(state).is_empty()).await;
    etcd.delete(PODS, pod("shop", "cart-1", "10.1.0.1", true));
    replica.until(|state| at(state, "10.96.0.1", 80) == ["cart-2"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_cut_watch_goes_on_where_it_was_without_a_new_list() {
    let etcd = shop();
    let server = ApiServer::of(&etcd);
    let replica = Replica::at(&server);
    replica.ready().await;
    for i in 0..5 {
        server.cut_watches();
        let name = format!("p{i}");
        etcd.put(POLICIES, policy("shop", &name, deny_all()));
        replica.until(|state| policy_names(state).contains(&&*name)).await;
    }
    assert_eq!(server.lists(POLICIES), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_heard_stays_while_the_api_server_is_away() {
    let etcd = shop();
    etcd.put(POLICIES, policy("shop", "p", deny_all()));
    let server = ApiServer::of(&etcd);
    let replica = Replica::at(&server);
    replica.ready().await;
    server.breaks(true);
    etcd.delete(POLICIES, policy("shop", "p", deny_all()));
    etcd.put(POLICIES, policy("shop", "q", deny_all()));
    tokio::time::sleep(Duration::from_secs(300)).await;
    let state = replica.hub.state();
    assert_eq!(policy_names(&state), ["p"]);
    assert_eq!(at(&state, "10.96.0.1", 80), ["cart-1", "cart-2"]);
    server.breaks(false);
    replica.until(|state| policy_names(state) == ["q"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_past_that_is_forgotten_is_listed_anew_and_never_shown_in_part() {
    let etcd = shop();
    for i in 0..10 {
        etcd.put(POLICIES, policy("shop", &format!("p{i}"), deny_all()));
    }
    let server = ApiServer::paging(&etcd, 3);
    let replica = Replica::at(&server);
    let state = replica.ready().await;
    assert_eq!(policy_names(&state).len(), 10);
    // While nothing goes through a policy is replaced, and the past is forgotten.
    server.hold(true);
    etcd.delete(POLICIES, policy("shop", "p9", deny_all()));
    etcd.put(POLICIES, policy("shop", "q", deny_all()));
    etcd.compact();
    let mut seen = Vec::new();
    let watched = async {
        let mut states = replica.hub.watch_state();
        loop {
            states.changed().await.unwrap();
            let state = Arc::clone(&states.borrow_and_update());
            seen.push(policy_names(&state).len());
            if policy_names(&state).contains(&"q") {
                return;
            }
        }
    };
    server.hold(false);
    server.cut_watches();
    tokio::time::timeout(PATIENCE_OF_TESTS, watched).await.unwrap();
    assert!(seen.iter().all(|n| *n == 10), "a part was shown: {seen:?}");
    assert!(!policy_names(&replica.hub.state()).contains(&"p9"));
    assert_eq!(server.lists(POLICIES), 2);
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_pods_is_put_in_force_together() {
    let etcd = shop();
    let replica = Replica::at(&ApiServer::of(&etcd));
    replica.ready().await;
    let mut states = replica.hub.watch_state();
    let counted = async {
        let mut n = 0;
        while replica.hub.state().model.workloads.len() < 104 {
            states.changed().await.unwrap();
            n += 1;
        }
        n
    };
    for i in 0..100 {
        etcd.put(PODS, pod("shop", &format!("x-{i}"), &format!("10.3.0.{i}"), true));
    }
    let n = tokio::time::timeout(PATIENCE_OF_TESTS, counted).await.unwrap();
    assert!(n <= 5, "{n} states for one burst");
}

#[tokio::test(start_paused = true)]
async fn istios_policies_are_read_once_they_are_installed_and_go_when_they_are_gone() {
    let etcd = shop();
    let server = ApiServer::of(&etcd);
    let replica = Replica::at(&server);
    replica.ready().await;
    let mut theirs = policy("shop", "istios", deny_all());
    theirs["apiVersion"] = json!("security.istio.io/v1");
    etcd.install_istio(true);
    etcd.put(played::ISTIO, theirs.clone());
    replica.until(|state| policy_names(state) == ["istios"]).await;
    // An API server that cannot be asked is not one that says no.
    server.breaks(true);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(policy_names(&replica.hub.state()), ["istios"]);
    server.breaks(false);
    etcd.install_istio(false);
    etcd.compact();
    server.cut_watches();
    replica.until(|state| policy_names(state).is_empty()).await;
}

/// Two replicas looked for the definition every 30 s, each at times of its own.
#[tokio::test(start_paused = true)]
async fn istios_kind_is_heard_of_as_it_is_installed_and_removed() {
    let etcd = shop();
    let server = ApiServer::of(&etcd);
    let replica = Replica::at(&server);
    replica.ready().await;
    let mut theirs = policy("shop", "istios", deny_all());
    theirs["apiVersion"] = json!("security.istio.io/v1");
    for _ in 0..3 {
        etcd.install_istio(true);
        etcd.put(played::ISTIO, theirs.clone());
        replica.until(|state| policy_names(state) == ["istios"]).await;
        etcd.install_istio(false);
        replica.until(|state| policy_names(state).is_empty()).await;
    }
    assert_eq!(server.lists(played::CRDS), 3, "each kind is told of, and not asked for");
}

fn issuers(state: &State) -> Vec<&str> {
    let all = state.model.authentications.iter().flat_map(|document| document.rules());
    all.map(|rule| rule.issuer.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn whose_tokens_are_believed_is_read_from_our_kind_and_from_istios() {
    let etcd = shop();
    let server = ApiServer::of(&etcd);
    let replica = Replica::at(&server);
    replica.ready().await;
    let ours = played::authentication(
        "shop",
        "sso",
        json!({ "jwtRules": [{ "issuer": "https://ours.test", "audiences": ["cart"] }] }),
    );
    etcd.put(played::AUTHENTICATIONS, ours.clone());
    replica.until(|state| issuers(state) == ["https://ours.test"]).await;
    // Istio's needs no audiences; ours does.
    let mut theirs = played::authentication(
        "shop",
        "istios",
        json!({ "jwtRules": [{ "issuer": "https://theirs.test" }] }),
    );
    theirs["apiVersion"] = json!("security.istio.io/v1");
    etcd.install_istio(true);
    etcd.put(played::ISTIO_AUTHENTICATIONS, theirs);
    replica
        .until(|state| issuers(state) == ["https://ours.test", "https://theirs.test"])
        .await;
    etcd.install_istio(false);
    replica.until(|state| issuers(state) == ["https://ours.test"]).await;
    etcd.delete(played::AUTHENTICATIONS, ours);
    replica.until(|state| state.model.authentications.is_empty()).await;
}

/// What port 80 and what all others of the web take.
fn taken(state: &State) -> Option<(MtlsMode, MtlsMode)> {
    let web = state
        .model
        .workloads
        .values()
        .find(|workload| workload.document.name == "web-1")?;
    Some((web.mtls.of(80), web.mtls.usual))
}

#[tokio::test(start_paused = true)]
async fn what_ports_take_is_read_from_our_kind_and_from_istios_and_a_mistake_is_strict() {
    use MtlsMode::{Disable, Permissive, Strict};
    let etcd = shop();
    let server = ApiServer::of(&etcd);
    let replica = Replica::at(&server);
    replica.ready().await;
    replica.until(|state| taken(state) == Some((Strict, Strict))).await;
    let of_web = |spec: serde_json::Value| {
        let mut spec = spec;
        spec["selector"] = json!({ "matchLabels": { "app": "web" } });
        spec
    };
    let ours = played::peer_authentication("shop", "door", of_web(json!({ "mtls": { "mode": "PERMISSIVE" } })));
    etcd.put(played::PEER_AUTHENTICATIONS, ours.clone());
    replica
        .until(|state| taken(state) == Some((Permissive, Permissive)))
        .await;
    // Istio's beside it: the stricter of the two holds at each port.
    let by_port = json!({ "mtls": { "mode": "DISABLE" }, "portLevelMtls": { "80": { "mode": "STRICT" } } });
    let mut theirs = played::peer_authentication("shop", "door", of_web(by_port));
    theirs["apiVersion"] = json!("security.istio.io/v1");
    etcd.install_istio(true);
    etcd.put(played::ISTIO_PEER_AUTHENTICATIONS, theirs);
    replica.until(|state| taken(state) == Some((Strict, Permissive))).await;
    etcd.delete(played::PEER_AUTHENTICATIONS, ours);
    replica.until(|state| taken(state) == Some((Strict, Disable))).await;
    // What cannot be read is strict, whatever others say, and it is told why.
    let broken = played::peer_authentication("shop", "broken", of_web(json!({ "mtls": { "mod": "DISABLE" } })));
    etcd.put(played::PEER_AUTHENTICATIONS, broken.clone());
    let state = replica.until(|state| taken(state) == Some((Strict, Strict))).await;
    let errors = &state.bad["PeerAuthentication/shop/broken"];
    assert!(
        errors[0].contains("unknown field `mod`; did you mean `mode`?"),
        "{errors:?}"
    );
    etcd.delete(played::PEER_AUTHENTICATIONS, broken);
    etcd.install_istio(false);
    replica
        .until(|state| taken(state) == Some((Strict, Strict)) && state.bad.is_empty())
        .await;
}
