#![allow(clippy::unwrap_used)]
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::testing::{ApiServer, Reaction, status};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/x/leases/l";
const LIFE: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(60);

fn candidate(name: &str) -> Candidate {
    Candidate::new(name.to_owned(), LIFE)
}

/// Reads and writes at once, at `now`.
fn turn(candidate: &mut Candidate, lease: &mut LeaseSpec, now: Instant) -> Option<u64> {
    if let Some(mut wanted) = candidate.observe(lease, now) {
        // Two renewals within a microsecond are two renewals.
        wanted.renew_time = Some(MicroTime(
            Timestamp::from_microsecond(fastrand::i64(0..1 << 50)).unwrap(),
        ));
        *lease = wanted;
        candidate.wrote(lease, epoch_of(lease), now);
    }
    candidate.leadership(now).map(|leadership| leadership.epoch)
}

#[test]
fn an_empty_lease_is_taken_renewed_and_keeps_its_epoch() {
    let (mut one, mut lease, now) = (candidate("one"), LeaseSpec::default(), Instant::now());
    assert_eq!(turn(&mut one, &mut lease, now), Some(1));
    let acquired = lease.acquire_time.clone();
    assert_eq!(turn(&mut one, &mut lease, now + Duration::from_secs(3)), Some(1));
    assert_eq!((lease.acquire_time, lease.lease_duration_seconds), (acquired, Some(15)));
}

#[test]
fn another_waits_a_whole_duration_from_what_it_saw_itself_and_then_has_the_next_epoch() {
    let (mut one, mut two, mut lease) = (candidate("one"), candidate("two"), LeaseSpec::default());
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(turn(&mut one, &mut lease, at(0)), Some(1));
    assert_eq!(turn(&mut two, &mut lease, at(10)), None);
    // The holder fell silent at 0; what counts is when the other one saw it first.
    assert_eq!(turn(&mut two, &mut lease, at(24)), None);
    assert_eq!(turn(&mut two, &mut lease, at(25)), Some(2));
    assert_eq!(turn(&mut one, &mut lease, at(25)), None);
}

#[test]
fn wall_clocks_in_the_lease_decide_nothing() {
    let (mut one, start) = (candidate("one"), Instant::now());
    for stamp in ["1970-01-01T00:00:00Z", "2999-01-01T00:00:00Z"] {
        let mut lease = LeaseSpec {
            holder_identity: Some("other".to_owned()),
            renew_time: Some(MicroTime(stamp.parse().unwrap())),
            ..LeaseSpec::default()
        };
        assert_eq!(turn(&mut one, &mut lease, start), None, "{stamp}");
        assert_eq!(turn(&mut one, &mut lease, start + LIFE), Some(1), "{stamp}");
        one = candidate("one");
    }
}

#[test]
fn a_longer_duration_of_another_holder_is_respected() {
    let (mut one, start) = (candidate("one"), Instant::now());
    let mut lease = LeaseSpec {
        holder_identity: Some("other".to_owned()),
        lease_duration_seconds: Some(60),
        lease_transitions: Some(i32::MAX),
        ..LeaseSpec::default()
    };
    assert_eq!(turn(&mut one, &mut lease, start), None);
    assert_eq!(turn(&mut one, &mut lease, start + Duration::from_secs(59)), None);
    assert!(turn(&mut one, &mut lease, start + Duration::from_secs(60)).is_some());
}

#[test]
fn a_write_of_which_nobody_heard_is_a_new_term_and_not_the_old_one() {
    let (mut one, mut lease, now) = (candidate("one"), LeaseSpec::default(), Instant::now());
    lease = one.observe(&lease, now).unwrap();
    assert_eq!((epoch_of(&lease), one.leadership(now)), (1, None));
    assert_eq!(turn(&mut one, &mut lease, now), Some(2));
}

proptest! {
    /// Whatever is read late, written late or lost: never two leaders at one instant, and epochs only grow.
    #[test]
    fn there_are_never_two_leaders(steps in prop::collection::vec((0usize..3, 0u64..9_000, 0u64..6_000, 0u8..8), 1..120)) {
        let mut all = [candidate("a"), candidate("b"), candidate("c")];
        let (mut lease, mut version, mut now, mut last) = (LeaseSpec::default(), 0_u64, Instant::now(), 0);
        for (who, pause, delay, luck) in steps {
            now += Duration::from_millis(pause);
            let read = version;
            let wanted = all[who].observe(&lease, now);
            let asked = now;
            now += Duration::from_millis(delay);
            if let Some(mut wanted) = wanted && luck != 0 && read == version {
                version += 1;
                wanted.renew_time = Some(MicroTime(Timestamp::from_second(i64::try_from(version).unwrap()).unwrap()));
                lease = wanted;
                // Some answers get lost.
                if luck != 1 {
                    all[who].wrote(&lease, epoch_of(&lease), asked);
                    all[who].seen.as_mut().unwrap().at = now;
                }
            }
            let leading: Vec<u64> = all.iter_mut().filter_map(|one| one.leadership(now)).map(|l| l.epoch).collect();
            prop_assert!(leading.len() <= 1, "{leading:?}");
            if let [epoch] = leading[..] {
                prop_assert!(epoch >= last);
                last = epoch;
            }
        }
    }
}

async fn leads(receiver: &mut watch::Receiver<Option<Leadership>>) -> u64 {
    let found = tokio::time::timeout(PATIENCE, receiver.wait_for(Option::is_some)).await;
    found.expect("somebody leads").unwrap().unwrap().epoch
}

#[tokio::test]
async fn of_two_replicas_one_leads_and_the_other_follows_when_it_is_gone() {
    let server = ApiServer::start().await;
    server.put(LEASE, json!({"metadata": {"name": "l", "namespace": "x"}}));
    let start = |holder| {
        let (receiver, work) = run(server.client(), "x", "l", holder, Duration::from_secs(2));
        (receiver, tokio::spawn(work))
    };
    let (mut one, first) = start("one");
    assert_eq!(leads(&mut one).await, 1);
    let (mut two, second) = start("two");
    assert_eq!(*two.borrow(), None);
    first.abort();
    assert_eq!(leads(&mut two).await, 2);
    let held = server.object(LEASE).unwrap();
    assert!(held["spec"]["holderIdentity"].as_str().unwrap().starts_with("two_"));
    assert_eq!(held["spec"]["leaseTransitions"], 2);
    second.abort();
}

#[tokio::test]
async fn a_leader_whose_writes_fail_or_hang_gives_up_and_comes_back_when_they_do_not() {
    let server = ApiServer::start().await;
    server.put(LEASE, json!({"metadata": {"name": "l", "namespace": "x"}}));
    let (mut one, work) = run(server.client(), "x", "l", "one", Duration::from_secs(1));
    let work = tokio::spawn(work);
    for fault in [
        Reaction::Answer(500, status(500, "InternalError", "etcd")),
        Reaction::Hang,
        Reaction::Lose,
    ] {
        let before = leads(&mut one).await;
        let broken = Arc::new(AtomicBool::new(true));
        let seen = Arc::clone(&broken);
        server.react(move |call| {
            if seen.load(Ordering::SeqCst) && call.method == "PUT" {
                fault.clone()
            } else {
                Reaction::Pass
            }
        });
        tokio::time::timeout(PATIENCE, one.wait_for(Option::is_none))
            .await
            .unwrap()
            .unwrap();
        broken.store(false, Ordering::SeqCst);
        assert!(leads(&mut one).await > before);
    }
    work.abort();
}

#[tokio::test]
async fn a_lease_that_is_missing_is_waited_for() {
    let server = ApiServer::start().await;
    let (mut one, work) = run(server.client(), "x", "l", "one", Duration::from_secs(1));
    let work = tokio::spawn(work);
    while server.calls().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(*one.borrow(), None);
    server.put(LEASE, json!({"metadata": {"name": "l", "namespace": "x"}}));
    assert_eq!(leads(&mut one).await, 1);
    work.abort();
}
