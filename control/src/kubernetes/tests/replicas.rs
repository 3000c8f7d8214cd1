//! Two replicas, one of which lags: what they give out can be compared.

use super::*;
use crate::source::Revisions;

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
            .revisions
            .policies
            .newest;
        drop(ahead);
        tokio::time::sleep(Duration::from_secs(30)).await;
        let state = lagging.hub.state();
        assert_eq!(policy_names(&state), ["first"]);
        assert!(
            state.revisions.policies.complete < held,
            "{:?} would pass for as new as {held}",
            state.revisions
        );
        // A proxy says what it has: then the replica asks the API server itself.
        lagging.hub.want(held);
        bad.hold(false);
        bad.hold_only(&[]);
        let state = lagging.until(|state| state.revisions.policies.complete >= held).await;
        assert_eq!(policy_names(&state), ["first", "second"]);
    }
}

/// A restarted replica begins where the API server is, which no other has heard of yet; both are as new.
#[tokio::test(start_paused = true)]
async fn a_replica_that_has_only_heard_less_catches_up_by_a_list() {
    let etcd = shop();
    let server = ApiServer::of(&etcd);
    let old = Replica::at(&server);
    let before = old.ready().await.revisions.policies.newest;
    for _ in 0..100 {
        etcd.pass();
    }
    let new = Replica::at(&server);
    let held = new.ready().await;
    let held = held.revisions.policies.newest.max(held.version());
    assert!(held > before);
    old.hub.want(held);
    let state = old.until(|state| complete(state) >= held).await;
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
        replica.hub.want(u64::MAX / 4);
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
    let state = replica.until(|state| complete(state) >= newest).await;
    assert!(
        Arc::ptr_eq(&state.model, &first.model),
        "no stream has to look at anything"
    );
}

/// With two kinds of policy a state is complete up to the older of the two; a change of the other is told of all the same.
#[tokio::test(start_paused = true)]
async fn a_policy_counts_only_with_the_other_kind_as_new() {
    let etcd = shop();
    etcd.install_istio(true);
    let server = ApiServer::of(&etcd);
    let replica = Replica::at(&server);
    replica.ready().await;
    server.hold_only(&[played::ISTIO]);
    let next = etcd.put(POLICIES, policy("shop", "next", deny_all()));
    let state = replica.until(|state| policy_names(state).contains(&"next")).await;
    let reach = state.revisions.policies;
    assert!(reach.newest >= next && reach.complete < next, "{reach:?}");
    // Where it goes through again, who asks for as much is given it.
    server.hold_only(&[]);
    replica.hub.want(next);
    replica.until(|state| state.revisions.policies.complete >= next).await;
}

/// Nothing that an answer depends on may be missing from what passes for as new as what another replica gave out: the newest
/// of all kinds hid that one of them was held back.
#[tokio::test(start_paused = true)]
async fn a_replica_whose_watch_of_one_kind_is_held_back_counts_as_older() {
    // Whether policies count as older as well: pods carry the labels that policies select by.
    for (held_back, policies_as_well) in [
        (NAMESPACES, true),
        (PODS, true),
        (SERVICES, false),
        (SLICES, false),
        (POLICIES, true),
        (played::AUTHENTICATIONS, true),
        (played::PEER_AUTHENTICATIONS, false),
        (played::CRDS, true),
    ] {
        let etcd = shop();
        let (good, bad) = (ApiServer::of(&etcd), ApiServer::of(&etcd));
        let (ahead, lagging) = (Replica::at(&good), Replica::at(&bad));
        ahead.ready().await;
        lagging.ready().await;
        bad.hold_only(&[held_back]);
        let missed = match held_back {
            NAMESPACES => etcd.put(NAMESPACES, namespace("shop", json!({ "postern.dev/mode": "monitor" }))),
            PODS => etcd.put(PODS, pod("shop", "new-1", "10.1.0.8", true)),
            SERVICES => etcd.put(SERVICES, service("shop", "web", "10.96.0.9")),
            SLICES => etcd.put(SLICES, slice("shop", "web", &[])),
            POLICIES => etcd.put(POLICIES, policy("shop", "no", deny_all())),
            played::AUTHENTICATIONS => {
                etcd.put(played::AUTHENTICATIONS, played::authentication("shop", "no", json!({})))
            }
            played::PEER_AUTHENTICATIONS => etcd.put(
                played::PEER_AUTHENTICATIONS,
                played::peer_authentication("shop", "no", json!({})),
            ),
            _ => {
                etcd.install_istio(true);
                etcd.pass()
            }
        };
        // All other kinds go on past it.
        let other = if held_back == SERVICES { SLICES } else { SERVICES };
        let last = match other {
            SLICES => etcd.put(SLICES, slice("shop", "later", &[])),
            _ => etcd.put(SERVICES, service("shop", "later", "10.96.0.10")),
        };
        let given = ahead.until(|state| state.version() >= last).await;
        let state = lagging.until(|state| state.version() >= last).await;
        let Revisions { policies, others } = state.revisions;
        if ![POLICIES, played::AUTHENTICATIONS, played::CRDS].contains(&held_back) {
            assert!(
                others.complete < missed && given.version() >= missed,
                "{held_back}: {others:?}"
            );
        }
        assert!(
            !policies_as_well || policies.complete < missed,
            "{held_back}: {policies:?}"
        );
        // What the other replica gave out is asked for, and is there once it goes through.
        bad.hold_only(&[]);
        lagging.hub.want(last);
        lagging.until(|state| complete(state) >= last).await;
    }
}

/// Of two that were said before anybody listened the newest is asked for, and not the one that came last.
#[tokio::test(start_paused = true)]
async fn the_newest_that_any_proxy_has_is_asked_for() {
    let etcd = shop();
    let server = ApiServer::of(&etcd);
    let replica = Replica::at(&server);
    let began = complete(&*replica.ready().await);
    server.hold(true);
    let newest = (0..10).map(|_| etcd.pass()).max().unwrap();
    replica.hub.want(newest);
    replica.hub.want(began);
    assert_eq!(replica.hub.watch_wanted().borrow().revision, newest);
    server.hold(false);
    replica.until(|state| complete(state) >= newest).await;
    // One that cannot be had does not outlast the list that shows it.
    replica.hub.want(u64::MAX / 4);
    let mut wanted = replica.hub.watch_wanted();
    while wanted.borrow_and_update().revision == u64::MAX / 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn complete(state: &State) -> u64 {
    state.revisions.policies.complete.min(state.revisions.others.complete)
}
