//! Two replicas, one of which lags: what they give out can be compared.

use super::*;

/// One replica's watches are held back; the other one hears of a DENY and is killed. What the first one gives out then
/// counts as older than what proxies have, until it has heard of the DENY as well.
#[tokio::test(start_paused = true)]
async fn what_a_replica_that_lags_gives_out_counts_as_older() {
    for only_policies in [false, true] {
        let etcd = shop();
        etcd.put(POLICIES, policy("shop", "first", deny_all()));
        let (good, bad) = (ApiServer::of(&etcd), ApiServer::of(&etcd));
        let (ahead, lagging) = (Replica::at(&good), Replica::at(&bad));
        ahead.ready().await;
        lagging.ready().await;
        if only_policies {
            bad.hold_only(&[POLICIES]);
        } else {
            bad.hold(true);
        }
        etcd.put(POLICIES, policy("shop", "second", deny_all()));
        // What else happens is heard.
        etcd.put(PODS, pod("shop", "x-1", "10.1.0.9", true));
        let held = ahead
            .until(|state| policy_names(state).contains(&"second"))
            .await
            .policy_revision;
        drop(ahead);
        tokio::time::sleep(Duration::from_secs(30)).await;
        let state = lagging.hub.state();
        assert_eq!(policy_names(&state), ["first"]);
        assert!(
            state.policy_revision < held,
            "{} would pass for as new as {held}",
            state.policy_revision
        );
        // A proxy says what it has: then the replica asks the API server itself.
        lagging.hub.want_policies(held);
        bad.hold(false);
        bad.hold_only(&[]);
        let state = lagging.until(|state| state.policy_revision >= held).await;
        assert_eq!(policy_names(&state), ["first", "second"]);
    }
}

/// A restarted replica begins where the API server is, which no other has heard of yet; both are as new.
#[tokio::test(start_paused = true)]
async fn a_replica_that_has_only_heard_less_catches_up_by_a_list() {
    let etcd = shop();
    let server = ApiServer::of(&etcd);
    let old = Replica::at(&server);
    let before = old.ready().await.policy_revision;
    for _ in 0..100 {
        etcd.pass();
    }
    let new = Replica::at(&server);
    let held = new.ready().await;
    assert!(held.policy_revision > before);
    old.hub.want_policies(held.policy_revision);
    old.hub.want_others(held.version);
    let state = old
        .until(|state| state.policy_revision >= held.policy_revision && state.version >= held.version)
        .await;
    assert_eq!(state.policy_version, before, "no policy changed");
    assert!(Arc::ptr_eq(&state.model, &old.hub.state().model));
}

/// Whoever has an SVID may say what it likes about what it has.
#[tokio::test(start_paused = true)]
async fn a_proxy_that_claims_what_there_cannot_be_does_not_have_everything_listed_again_and_again() {
    let etcd = shop();
    let server = ApiServer::of(&etcd);
    let replica = Replica::at(&server);
    replica.ready().await;
    for _ in 0..600 {
        replica.hub.want_policies(u64::MAX / 4);
        replica.hub.want_others(u64::MAX / 4);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(server.lists(PODS) <= 4, "{} lists in a minute", server.lists(PODS));
    // It is still heard what really happens.
    etcd.put(POLICIES, policy("shop", "p", deny_all()));
    replica.until(|state| policy_names(state) == ["p"]).await;
}

#[tokio::test(start_paused = true)]
async fn bookmarks_say_that_nothing_is_new() {
    let etcd = shop();
    let replica = Replica::at(&ApiServer::of(&etcd));
    let first = replica.ready().await;
    let newest = (0..10).map(|_| etcd.pass()).max().unwrap();
    let state = replica
        .until(|state| state.policy_revision >= newest && state.version >= newest)
        .await;
    assert!(
        Arc::ptr_eq(&state.model, &first.model),
        "no stream has to look at anything"
    );
}

/// With two kinds of policy a state counts as new as the older of the two.
#[tokio::test(start_paused = true)]
async fn a_policy_counts_only_with_the_other_kind_as_new() {
    let etcd = shop();
    etcd.install_istio(true);
    let server = ApiServer::of(&etcd);
    let replica = Replica::at(&server);
    replica.ready().await;
    let ours = etcd.put(POLICIES, policy("shop", "ours", deny_all()));
    let state = replica.until(|state| policy_names(state) == ["ours"]).await;
    assert!(
        state.policy_revision >= ours,
        "Istio's were asked for up to there before it was put in force"
    );
    // They cannot be heard: ours is in force nevertheless, but does not count as new.
    server.hold_only(&[played::ISTIO]);
    let next = etcd.put(POLICIES, policy("shop", "next", deny_all()));
    let state = replica.until(|state| policy_names(state).contains(&"next")).await;
    assert!(state.policy_revision < next);
    server.hold_only(&[]);
    replica.until(|state| state.policy_revision >= next).await;
}
