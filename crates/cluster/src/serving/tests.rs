#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;

use super::contents::Contents;
use super::rotation::{Done, Found, Now, Replica, Step};
use super::{Keeper, Keeping, ROTATE, Round, ServingCertificate, Target, Timing};

mod played;
mod simulation;

use played::Played;

const NAME: &str = "postern-injector.postern-system.svc";
const START: u64 = 1_800_000_000;
const HOUR: u64 = 3600;

fn hourly() -> Timing {
    Timing::of(Duration::from_secs(HOUR))
}

fn replica() -> Replica {
    Replica::new(vec![NAME.to_owned()], hourly())
}

fn at(seconds: u64) -> Now {
    Now {
        wall: START + seconds,
        steady: Duration::from_secs(seconds),
    }
}

/// One step where every target has the bundle that belongs to `contents`.
fn published(replica: &mut Replica, contents: &Contents, rotate: Option<&str>, seconds: u64) -> Step {
    let found = Found {
        contents: Some(contents.clone()),
        rotate: rotate.map(str::to_owned),
        bundles: vec![Some(contents.bundle()), Some(contents.bundle())],
    };
    replica.step(found, at(seconds)).unwrap()
}

fn founded(replica: &mut Replica) -> Contents {
    let nothing = Found {
        contents: None,
        rotate: None,
        bundles: vec![None, None],
    };
    let step = replica.step(nothing, at(0)).unwrap();
    assert_eq!(step.done, Some(Done::Founded));
    replica.adopt(step.contents.clone());
    step.contents
}

#[test]
fn what_is_written_is_read_again() {
    let mut replica = replica();
    let first = founded(&mut replica);
    let prepared = published(&mut replica, &first, Some("now"), 1);
    assert_eq!(prepared.done, Some(Done::Prepared));
    let read = Contents::read(&prepared.contents.data()).unwrap().unwrap();
    assert_eq!(read.data(), prepared.contents.data());
    assert_eq!(read.bundle(), prepared.contents.bundle());
    assert_eq!(read.rotated.as_deref(), Some("now"));
    assert!(Contents::read(&BTreeMap::new()).unwrap().is_none());
    assert!(!format!("{read:?}").contains("PRIVATE"), "a key in debugging output");
}

#[test]
fn a_secret_that_cannot_be_served_is_damaged() {
    let mut one = replica();
    let (first, other) = (founded(&mut one), founded(&mut replica()));
    let with = |key: &str, value: &[u8]| {
        let mut data = first.data();
        data.insert(key.to_owned(), ByteString(value.to_vec()));
        Contents::read(&data).unwrap_err()
    };
    assert!(with("ca.crt", other.current.authority.pem.as_bytes()).contains("not signed by the CA"));
    assert!(with("tls.key", other.current.key_pem.as_bytes()).contains("do not belong together"));
    assert!(with("tls.crt", b"x").contains("cannot be read"));
    assert!(with("next-ca.crt", b"x").contains("come together"));
    assert!(with("tls.crt", &vec![b'x'; 17 * 1024]).contains("too long"));
}

#[test]
fn a_certificate_is_replaced_at_two_thirds_and_served_once_its_ca_has_settled() {
    let mut replica = replica();
    let first = founded(&mut replica);
    assert_eq!(published(&mut replica, &first, None, 2399).done, None);
    let prepared = published(&mut replica, &first, None, 2400);
    assert_eq!(prepared.done, Some(Done::Prepared));
    // Still the first one is served.
    assert_eq!(prepared.contents.current.authority, first.current.authority);
    let next = prepared.contents;
    assert_eq!(published(&mut replica, &next, None, 2405).done, None);
    assert_eq!(published(&mut replica, &next, None, 2434).done, None);
    let promoted = published(&mut replica, &next, None, 2435);
    assert_eq!(promoted.done, Some(Done::Promoted));
    let now = promoted.contents;
    assert_eq!(now.bundle(), next.bundle(), "serving the next one changes no bundle");
    assert_eq!(now.old, std::slice::from_ref(&first.current.authority));
    assert_eq!(published(&mut replica, &now, None, 2440).done, None);
    assert_eq!(published(&mut replica, &now, None, 3039).done, None);
    let withdrawn = published(&mut replica, &now, None, 3040);
    assert_eq!(withdrawn.done, Some(Done::Withdrawn));
    assert_eq!(withdrawn.contents.bundle(), now.current.authority.pem.as_bytes());
}

#[test]
fn nothing_is_served_whose_ca_one_target_lacks_or_lacked_a_while_ago() {
    let mut replica = replica();
    let first = founded(&mut replica);
    let next = published(&mut replica, &first, Some("x"), 10).contents;
    let step = |replica: &mut Replica, other: Option<Vec<u8>>, seconds| {
        let found = Found {
            contents: Some(next.clone()),
            rotate: None,
            bundles: vec![Some(next.bundle()), other],
        };
        replica.step(found, at(seconds)).unwrap().done
    };
    for (seconds, other) in [(20, None), (100, Some(first.bundle())), (200, Some(next.bundle()))] {
        assert_eq!(step(&mut replica, other, seconds), None);
    }
    // Somebody takes it away: the wait begins anew.
    assert_eq!(step(&mut replica, Some(Vec::new()), 229), None);
    assert_eq!(step(&mut replica, Some(next.bundle()), 231), None);
    assert_eq!(step(&mut replica, Some(next.bundle()), 260), None);
    assert_eq!(step(&mut replica, Some(next.bundle()), 261), Some(Done::Promoted));
}

#[test]
fn an_operator_asks_for_one_rotation_with_each_new_value() {
    let mut replica = replica();
    let first = founded(&mut replica);
    let next = published(&mut replica, &first, Some("a"), 1).contents;
    published(&mut replica, &next, Some("a"), 2);
    let second = published(&mut replica, &next, Some("a"), 40).contents;
    assert_eq!(published(&mut replica, &second, Some("a"), 41).done, None);
    assert_eq!(
        published(&mut replica, &second, Some("b"), 42).done,
        Some(Done::Prepared)
    );
}

#[test]
fn other_names_are_reason_enough() {
    let first = founded(&mut replica());
    let mut renamed = Replica::new(vec![NAME.to_owned(), format!("{NAME}.cluster.local")], hourly());
    let step = published(&mut renamed, &first, None, 5);
    assert_eq!(step.done, Some(Done::Prepared));
    assert!(step.contents.next.unwrap().names.len() == 2);
}

#[test]
fn an_expired_one_is_replaced_at_once_and_an_emptied_secret_gets_back_what_is_served() {
    let mut replica = replica();
    let first = founded(&mut replica);
    assert_eq!(published(&mut replica, &first, None, HOUR).done, Some(Done::Expired));
    let empty = || Found {
        contents: None,
        rotate: None,
        bundles: vec![],
    };
    let restored = replica.step(empty(), at(60)).unwrap();
    assert_eq!(restored.done, Some(Done::Restored));
    assert_eq!(restored.contents.data(), first.data());
    assert_eq!(replica.step(empty(), at(HOUR)).unwrap().done, Some(Done::Founded));
}

#[test]
fn who_founds_anew_keeps_what_bundles_believe_until_it_is_withdrawn() {
    let former = founded(&mut replica());
    let mut new = replica();
    let emptied = Found {
        contents: None,
        rotate: None,
        bundles: vec![
            Some(former.bundle()),
            Some(b"damaged".to_vec()),
            None,
            Some(former.bundle()),
        ],
    };
    let step = new.step(emptied, at(0)).unwrap();
    assert_eq!(step.done, Some(Done::Founded));
    assert_eq!(step.contents.old, std::slice::from_ref(&former.current.authority));
    let bundle = String::from_utf8(step.contents.bundle()).unwrap();
    assert!(bundle.contains(&former.current.authority.pem));
    let contents = step.contents;
    assert_eq!(published(&mut new, &contents, None, 1).done, None);
    assert_eq!(published(&mut new, &contents, None, 1000).done, Some(Done::Withdrawn));
}

#[test]
fn the_default_timing_gives_api_servers_longer_than_replicas_need_to_look() {
    for life in [1, 30, 60, 600, 3600, 30 * 24 * 3600] {
        let timing = Timing::of(Duration::from_secs(life));
        assert!(
            timing.poll < timing.settle && timing.settle < timing.withdraw,
            "{timing:?}"
        );
        assert!(timing.settle + timing.withdraw < timing.life / 3, "{timing:?}");
    }
    assert_eq!(Timing::default().poll, Duration::from_secs(5));
    assert_eq!(Timing::default().settle, Duration::from_secs(30));
    assert_eq!(Timing::default().withdraw, Duration::from_secs(3600));
}

fn keeper(played: &Played) -> Keeper {
    let keeping = Keeping {
        namespace: "postern-system".to_owned(),
        secret: "postern-injector-tls".to_owned(),
        dns_names: vec![NAME.to_owned()],
        targets: vec![
            Target::MutatingWebhook("postern-injector".to_owned()),
            Target::ValidatingWebhook("postern-injector".to_owned()),
            Target::ApiService("v1alpha1.view.postern.dev".to_owned()),
        ],
        timing: Timing {
            settle: Duration::ZERO,
            ..hourly()
        },
    };
    Keeper::new(played.client(), keeping, ServingCertificate::default())
}

#[tokio::test]
async fn a_first_replica_fills_the_secret_and_every_bundle_and_a_second_one_serves_the_same() {
    let played = Played::with_targets();
    let (mut one, mut two) = (keeper(&played), keeper(&played));
    assert_eq!(one.certificate.status().not_after, None);
    assert_eq!(one.round().await.unwrap(), Round::Again);
    assert_eq!(one.round().await.unwrap(), Round::Settled);
    assert!(one.certificate.status().published);
    assert_eq!(two.round().await.unwrap(), Round::Settled);
    assert_eq!(one.certificate.status(), two.certificate.status());
    let secret = played.secret();
    assert_eq!(secret["metadata"]["labels"]["kept"], "yes", "the chart's labels stay");
    let bundles = played.bundles();
    assert_eq!(bundles.len(), 4);
    assert!(
        bundles.iter().all(|bundle| *bundle == secret["data"]["ca.crt"]),
        "{bundles:?}"
    );
    assert_eq!(played.webhook_path(), "/inject", "nothing else of a webhook changes");
}

#[tokio::test]
async fn the_loser_of_a_race_takes_what_the_winner_wrote() {
    let played = Played::with_targets();
    let (mut one, mut two) = (keeper(&played), keeper(&played));
    // Between the reading and the writing of one, two is faster.
    let winner = played.interrupt_before("PUT", async move {
        two.round().await.unwrap();
        two
    });
    assert_eq!(one.round().await.unwrap(), Round::Again);
    let two = winner.await.unwrap();
    assert_eq!(one.round().await.unwrap(), Round::Settled);
    assert_eq!(one.certificate.status(), two.certificate.status());
    assert!(
        played
            .bundles()
            .iter()
            .all(|bundle| *bundle == played.secret()["data"]["ca.crt"])
    );
}

#[tokio::test]
async fn a_late_replica_takes_no_newer_bundle_back() {
    let played = Played::with_targets();
    let (mut one, mut two) = (keeper(&played), keeper(&played));
    one.round().await.unwrap();
    one.round().await.unwrap();
    played.spoil_bundles();
    // One would repair what it has seen; meanwhile two begins a rotation.
    played.annotate(ROTATE, "1");
    let winner = played.interrupt_before("PATCH", async move {
        while !two.certificate.status().rotating {
            two.round().await.unwrap();
        }
    });
    let _ = one.round().await.unwrap();
    winner.await.unwrap();
    one.round().await.unwrap();
    let secret = played.secret();
    for bundle in played.bundles() {
        let pem = String::from_utf8(base64(&bundle)).unwrap();
        for key in ["ca.crt", "next-ca.crt"] {
            let wanted = String::from_utf8(base64(&secret["data"][key])).unwrap();
            assert!(pem.contains(wanted.trim()), "{key}");
        }
    }
}

fn base64(value: &serde_json::Value) -> Vec<u8> {
    serde_json::from_value::<ByteString>(value.clone()).unwrap().0
}

#[tokio::test]
async fn a_spoilt_bundle_is_repaired_and_a_rotation_goes_through() {
    let played = Played::with_targets();
    let mut one = keeper(&played);
    one.round().await.unwrap();
    one.round().await.unwrap();
    played.spoil_bundles();
    one.round().await.unwrap();
    let first = played.secret()["data"]["ca.crt"].clone();
    assert!(played.bundles().iter().all(|bundle| *bundle == first));
    played.annotate(ROTATE, "1");
    for _ in 0..6 {
        one.round().await.unwrap();
    }
    let secret = played.secret();
    assert_ne!(secret["data"]["ca.crt"], first);
    assert_eq!(secret["data"]["old-ca.crt"], first);
    assert!(!one.certificate.status().rotating);
}

#[tokio::test]
async fn what_the_chart_should_have_made_is_named_when_it_is_missing() {
    let played = Played::default();
    let error = keeper(&played).round().await.unwrap_err();
    assert!(
        postern_telemetry::error_chain(&error).contains("MutatingWebhook(\"postern-injector\")"),
        "{error}"
    );
    let played = Played::with_targets();
    played.remove_secret();
    let error = keeper(&played).round().await.unwrap_err();
    assert!(
        error.to_string().contains("there is no Secret postern-injector-tls"),
        "{error}"
    );
}
