//! Founding, following and what is never overwritten, against an API server that is played.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use postern_cluster::testing::{ApiServer, Reaction, status};
use serde_json::{Value, json};

use super::*;
use crate::attest::pod::{ByApi, ByPod};
use crate::authority::{RootPace, Stage};
use crate::issuance::{Attesting, Keeping};
use crate::ledger::{Ledger, LedgerConfig, Lines};
use crate::metrics::Metrics;
use crate::store::Seals;

const SECRET: &str = "/api/v1/namespaces/x/secrets/s";

async fn server() -> ApiServer {
    let server = ApiServer::start().await;
    server.put(
        SECRET,
        json!({"metadata": {"name": "s", "namespace": "x", "labels": {"a": "b"}}, "type": "Opaque"}),
    );
    server
}

fn founding() -> Founding {
    Founding {
        trust_domain: TrustDomain::parse("cluster.local").unwrap(),
        root_life: Duration::from_secs(365 * 24 * 3600),
        issuer_life: Duration::from_secs(30 * 24 * 3600),
    }
}

fn shared(server: &ApiServer) -> Shared {
    Shared {
        store: SecretStore::new(server.client(), "x", "s", Seals::Clear),
        founding: founding(),
    }
}

async fn found(shared: &Shared) -> Authority {
    crate::csr::prepare();
    found_or_load(&shared.store, None, (&shared.founding, None), &crate::clock::system())
        .await
        .unwrap()
}

/// A replica that loads what is there, or founds it.
async fn replica(server: &ApiServer) -> (Arc<Ca>, Shared) {
    let shared = shared(server);
    let authority = found(&shared).await;
    let trust = Arc::new(arc_swap::ArcSwap::from_pointee(authority.trust()));
    let reviewer = Box::new(ByApi {
        client: server.client(),
    });
    let by_pod = ByPod::new(reviewer, authority.trust_domain().clone(), authority.own_id().clone());
    let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
    let clock = crate::clock::system();
    let config = LedgerConfig {
        lines: Lines::to(|_| Ok(())),
        ..LedgerConfig::default()
    };
    let key = ledger_key(&shared.store).await.unwrap();
    let root = authority.root_sha256();
    let ledger = Ledger::as_lines(&key, root, "one", &config, Arc::clone(&clock), metrics.clone()).unwrap();
    let (keeping, attesting) = (
        (Keeping::Secret(shared.clone()), ledger),
        (Attesting::Pods(by_pod), trust),
    );
    let life = (Duration::from_secs(3600), RootPace::PATIENT);
    let ca = Ca::new(authority, keeping, attesting, life, clock, metrics);
    (Arc::new(ca), shared)
}

fn writes(server: &ApiServer) -> usize {
    server
        .calls()
        .iter()
        .filter(|call| call.method == "PUT" && call.path == SECRET)
        .count()
}

#[tokio::test]
async fn an_empty_secret_is_filled_with_sealed_records_and_keeps_what_else_it_has() {
    let server = server().await;
    let authority = found(&shared(&server)).await;
    let secret = server.object(SECRET).unwrap();
    assert_eq!(
        (secret["metadata"]["labels"]["a"].as_str(), secret["type"].as_str()),
        (Some("b"), Some("Opaque"))
    );
    let keys: Vec<&String> = secret["data"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["authority.json", "jwt.json", "root.json"]);
    // The same records as in a directory: its head line is what a key would seal.
    let store = SecretStore::new(server.client(), "x", "s", Seals::Clear);
    let again = store.read().await.unwrap().authority(UnixTime::now()).unwrap().unwrap();
    assert!(again.is(&authority));
    let text = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        secret["data"]["authority.json"].as_str().unwrap(),
    );
    assert!(text.unwrap().starts_with(b"postern-ca-store 1 authority sha256="));
}

#[tokio::test]
async fn c_07_of_replicas_that_found_a_ca_at_once_one_wins_and_all_have_its_root() {
    let server = server().await;
    let all: Vec<Shared> = (0..4).map(|_| shared(&server)).collect();
    let founded = futures_util::future::join_all(all.iter().map(found)).await;
    assert!(founded.iter().all(|authority| authority.is(&founded[0])));
    // And one that had read before anybody wrote.
    let empty = ApiServer::start().await;
    empty.put(SECRET, json!({"metadata": {"name": "s", "namespace": "x"}}));
    let late = shared(&empty);
    let read = late.store.read().await.unwrap();
    let first = found(&shared(&empty)).await;
    let refused = late.store.write(read, vec![(Kind::Root, b"mine".to_vec())]).await;
    assert!(matches!(refused, Err(SecretError::Conflict(_))));
    assert!(found(&late).await.is(&first));
    assert_eq!(writes(&empty), 2);
}

#[tokio::test]
async fn c_06_an_emptied_secret_founds_no_other_ca_while_the_roots_of_the_first_are_published() {
    const ROOTS: &str = "/api/v1/namespaces/x/configmaps/r";
    let server = server().await;
    let roots = RootsMap::new(server.client(), "x", "r");
    let shared = shared(&server);
    let clock = crate::clock::system();
    crate::csr::prepare();
    let attempted = || attempt(&shared.store, Some(&roots), (&shared.founding, None), clock());
    // Nobody knows yet whether a CA was here: waited for.
    assert!(attempted().await.unwrap_err().is_outage());
    server.put(
        ROOTS,
        json!({"metadata": {"name": "r", "namespace": "x"}, "data": {"roots.sha256": "5e1f"}}),
    );
    let error = attempted().await.unwrap_err();
    let text = error.to_string();
    assert!(!error.is_outage());
    assert!(
        text.contains("Secret x/s is empty, but ConfigMap x/r publishes the root 5e1f"),
        "{text}"
    );
    assert_eq!(writes(&server), 0);
    // Emptied by somebody who has read that.
    server.put(ROOTS, json!({"metadata": {"name": "r", "namespace": "x"}}));
    let authority = attempted().await.unwrap();
    // As it is after every restart.
    server.put(
        ROOTS,
        json!({"metadata": {"name": "r", "namespace": "x"}, "data": {"roots.sha256": "5e1f"}}),
    );
    assert!(attempted().await.unwrap().is(&authority));
    // And without the ConfigMap, which a CA that is there does not need.
    let elsewhere = RootsMap::new(server.client(), "x", "gone");
    let again = attempt(&shared.store, Some(&elsewhere), (&shared.founding, None), clock()).await;
    assert!(again.unwrap().is(&authority));
}

#[tokio::test]
async fn an_api_server_that_fails_at_first_is_waited_for() {
    let server = server().await;
    let left = AtomicUsize::new(3);
    server.react(move |call| {
        let failing = left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok();
        match (failing, call.method.as_str()) {
            (true, "GET") => Reaction::Answer(404, status(404, "NotFound", "not yet")),
            (true, _) => Reaction::Answer(503, status(503, "ServiceUnavailable", "starting")),
            (false, _) => Reaction::Pass,
        }
    });
    let authority = found(&shared(&server)).await;
    assert_eq!(authority.issuer_epoch(), 1);
}

#[tokio::test]
async fn of_a_founding_whose_answer_was_lost_there_is_one_ca() {
    let server = server().await;
    let mut lost = false;
    server.react(move |call| {
        if call.method == "PUT" && !std::mem::replace(&mut lost, true) {
            Reaction::Lose
        } else {
            Reaction::Pass
        }
    });
    let authority = found(&shared(&server)).await;
    assert_eq!(writes(&server), 1);
    assert!(found(&shared(&server)).await.is(&authority));
}

#[tokio::test]
async fn a_secret_of_another_trust_domain_is_refused() {
    let server = server().await;
    found(&shared(&server)).await;
    let mut other = shared(&server);
    other.founding.trust_domain = TrustDomain::parse("example.org").unwrap();
    let error = found_or_load(&other.store, None, (&other.founding, None), &crate::clock::system())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("cluster.local, not of example.org"),
        "{error}"
    );
}

/// Changes the Secret as somebody else would.
fn tamper(server: &ApiServer, change: impl FnOnce(&mut Value)) {
    let mut secret = server.object(SECRET).unwrap();
    change(&mut secret["data"]);
    server.put(SECRET, secret);
}

#[tokio::test]
async fn c_06_a_damaged_secret_is_refused_at_the_start_with_its_remedy_and_never_overwritten() {
    let server = server().await;
    found(&shared(&server)).await;
    let whole = server.object(SECRET).unwrap()["data"].clone();
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 4] = [
        (
            |data| data["authority.json"] = json!("cG9zdGVybg=="),
            "key authority.json, is damaged",
        ),
        (
            |data| data["root.json"] = json!("cG9zdGVybg=="),
            "key root.json, is damaged",
        ),
        (
            |data| drop(data.as_object_mut().unwrap().remove("authority.json")),
            "it is missing",
        ),
        (
            |data| data["root.json"] = data["authority.json"].clone(),
            "another kind of file",
        ),
    ];
    for (change, says) in changes {
        tamper(&server, |data| *data = whole.clone());
        tamper(&server, change);
        let before = server.object(SECRET);
        let shared = shared(&server);
        let error = found_or_load(&shared.store, None, (&shared.founding, None), &crate::clock::system())
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains(says) && text.contains("backup"), "{text}");
        assert_eq!(server.object(SECRET), before);
    }
}

#[tokio::test]
async fn a_replica_takes_over_what_another_one_wrote_and_keeps_its_own_if_that_is_damaged_or_gone() {
    let server = server().await;
    let (one, _) = replica(&server).await;
    let (two, following) = replica(&server).await;
    let mut seen = None;
    assert_eq!(one.rotate(Why::Asked).await.unwrap().issuer_epoch(), 2);
    assert_eq!(two.authority().issuer_epoch(), 1);
    following.look(&two, &mut seen).await.unwrap();
    assert!(two.authority().is(&one.authority()));

    let whole = server.object(SECRET).unwrap()["data"].clone();
    tamper(&server, |data| data["authority.json"] = json!("cG9zdGVybg=="));
    let damaged = following.look(&two, &mut seen).await.unwrap_err();
    assert_eq!(damaged.outcome(), "damaged");
    // Told for as long as it lasts, not once.
    assert!(following.look(&two, &mut seen).await.is_err());
    tamper(&server, |data| *data = Value::Null);
    let gone = following.look(&two, &mut seen).await.unwrap_err();
    assert!(gone.to_string().contains("is empty"), "{gone}");
    let before = server.object(SECRET);
    assert!(two.rotate(Why::Asked).await.is_err());
    assert_eq!((server.object(SECRET), two.authority().issuer_epoch()), (before, 2));

    tamper(&server, |data| *data = whole);
    following.look(&two, &mut seen).await.unwrap();
    server.react(|_| Reaction::Answer(500, status(500, "InternalError", "etcd")));
    assert_eq!(following.look(&two, &mut seen).await.unwrap_err().outcome(), "failed");
    assert_eq!(two.authority().issuer_epoch(), 2);
}

#[tokio::test]
async fn c_07_replicas_that_rotate_at_once_never_lose_an_issuer_that_signs() {
    let server = server().await;
    let (one, _) = replica(&server).await;
    let (two, following) = replica(&server).await;
    let (first, second) = tokio::join!(one.rotate(Why::Asked), two.rotate(Why::Asked));
    let mut epochs = [first.unwrap().issuer_epoch(), second.unwrap().issuer_epoch()];
    epochs.sort_unstable();
    assert_eq!(epochs, [2, 3]);
    let mut seen = None;
    following.look(&two, &mut seen).await.unwrap();
    assert_eq!(two.authority().issuer_epoch(), 3);
    // What is due was done by the other one: not done again.
    let before = writes(&server);
    assert_eq!(one.rotate(Why::Due).await.unwrap().issuer_epoch(), 3);
    assert_eq!(writes(&server), before);
    // Leaves of either issuer hold under the one root that all publish.
    assert_eq!(one.authority().root(), two.authority().root());
}

async fn comes_to(ca: &Arc<Ca>, stage: Stage) {
    while ca.authority().root_stage().unwrap().1 != stage {
        let wait = ca.advance_root().await.unwrap();
        sleep(wait.min(Duration::from_millis(100))).await;
    }
}

#[tokio::test]
async fn the_root_is_replaced_in_the_secret_once_and_every_replica_follows_each_stage() {
    let server = server().await;
    let (one, first) = replica(&server).await;
    let (two, second) = replica(&server).await;
    let (mut seen_by_one, mut seen) = (None, None);
    let founded = one.authority();
    one.change_root(RootChange::Begin).await.unwrap();
    assert!(one.advance_root().await.is_some());
    second.look(&two, &mut seen).await.unwrap();
    assert!(two.authority().is(&one.authority()));
    assert_eq!(two.authority().bundle().roots().len(), 2);
    // One replica does not hear from the controls of the others: time alone counts.
    let control = crate::acknowledged::Caller {
        name: "control".to_owned(),
        serial: vec![1],
    };
    let _watching = one.acknowledged.connect(control.clone());
    one.acknowledged.report(&control, u64::MAX, 1);
    assert!(one.advance_root().await.is_some());
    assert_eq!(one.authority().root_stage().unwrap().1, Stage::Published);
    // Begun twice it is refused, whichever replica is asked.
    assert!(two.change_root(RootChange::Begin).await.is_err());
    let before = writes(&server);
    let founding = server.object(SECRET).unwrap()["data"].clone();
    two.change_root(RootChange::Taint).await.unwrap();
    assert_eq!(writes(&server), before + 1, "all records at once");
    comes_to(&two, Stage::Activated).await;
    assert_eq!(writes(&server), before + 2);
    first.look(&one, &mut seen_by_one).await.unwrap();
    assert!(one.authority().is(&two.authority()));
    let good = server.object(SECRET).unwrap()["data"].clone();
    // Nothing brings the root back that is in wrong hands, and nothing hinders those that sign.
    tamper(&server, |data| *data = founding);
    let error = first.look(&one, &mut seen_by_one).await.unwrap_err();
    assert!(error.to_string().contains("in wrong hands"), "{error}");
    assert!(two.rotate(Why::Asked).await.is_err());
    assert!(one.authority().is(&two.authority()) && one.authority().ready(one.now()).is_ok());
    tamper(&server, |data| *data = good);
    first.look(&one, &mut seen_by_one).await.unwrap();
    assert_ne!(one.authority().root(), founded.root());
    // As one that starts now finds it, with the key of the new root.
    let again = found(&shared(&server)).await;
    assert!(again.is(&two.authority()));
    let stored = first.store.read().await.unwrap();
    assert_eq!(stored.root_of(&again).unwrap().unwrap().cert(), again.root());
}

#[tokio::test]
async fn an_old_backup_or_another_ca_that_is_put_in_place_is_what_all_replicas_sign_with() {
    let server = server().await;
    let (one, following) = replica(&server).await;
    let old = server.object(SECRET).unwrap()["data"].clone();
    one.rotate(Why::Asked).await.unwrap();
    let mut seen = None;
    let lost = one.authority().bundle().sequence();
    tamper(&server, |data| *data = old);
    following.look(&one, &mut seen).await.unwrap();
    assert_eq!(one.authority().issuer_epoch(), 1);
    assert!(one.authority().bundle().sequence() < lost);

    let elsewhere = self::server().await;
    let other = found(&shared(&elsewhere)).await;
    let theirs = elsewhere.object(SECRET).unwrap()["data"].clone();
    tamper(&server, |data| *data = theirs);
    following.look(&one, &mut seen).await.unwrap();
    assert!(one.authority().is(&other));
}

#[tokio::test]
async fn c_06_of_a_secret_that_is_put_back_while_replicas_run_or_before_one_starts_the_bundle_is_numbered_past_what_was_lost()
 {
    let server = server().await;
    let (one, first) = replica(&server).await;
    let (two, second) = replica(&server).await;
    let old = server.object(SECRET).unwrap()["data"].clone();
    // In one second, so that the numbers are ahead of the clock.
    for _ in 0..9 {
        one.rotate(Why::Asked).await.unwrap();
    }
    let lost = one.authority().bundle().sequence();
    let (mut seen, mut seen_by_two) = (None, None);
    second.look(&two, &mut seen_by_two).await.unwrap();
    tamper(&server, |data| *data = old.clone());
    first.look(&one, &mut seen).await.unwrap();
    second.look(&two, &mut seen_by_two).await.unwrap();
    // Whoever is the leader, or thinks so: once.
    let before = writes(&server);
    tokio::join!(one.keep_numbers_growing(), two.keep_numbers_growing());
    first.look(&one, &mut seen).await.unwrap();
    second.look(&two, &mut seen_by_two).await.unwrap();
    assert!(one.authority().is(&two.authority()));
    let number = one.authority().bundle().sequence();
    assert!(number > lost, "{number} is not past {lost}");
    one.keep_numbers_growing().await;
    two.keep_numbers_growing().await;
    assert!(
        (before + 1..=before + 2).contains(&writes(&server)),
        "one was written, and one may have been refused"
    );
    assert_eq!(one.authority().bundle().sequence(), number);

    // By a process that has not seen what was lost.
    tamper(&server, |data| *data = old);
    let (three, _) = replica(&server).await;
    let began = three.now().as_secs();
    assert!(three.authority().bundle().sequence() < began);
    three.keep_numbers_growing().await;
    assert!(three.authority().bundle().sequence() >= began);
    let stored = found(&shared(&server)).await;
    assert!(stored.is(&three.authority()));
}

#[tokio::test]
async fn a_write_without_a_precondition_is_not_made() {
    let server = server().await;
    server.react(|call| match call.method.as_str() {
        "GET" => Reaction::Answer(200, json!({"metadata": {"name": "s", "namespace": "x"}})),
        _ => Reaction::Pass,
    });
    let shared = shared(&server);
    let read = shared.store.read().await.unwrap();
    assert!(shared.store.write(read, Vec::new()).await.is_err());
    assert_eq!(writes(&server), 0);
}
