#![allow(clippy::unwrap_used)]
use std::time::Duration;

use postern_identity::quarantine::{self, Serial};
use postern_identity::{Instance, SpiffeId, Trust, TrustDomain};

use super::*;
use crate::authority::Root;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000 + seconds))
}

fn authority() -> Authority {
    let domain = TrustDomain::parse("cluster.local").unwrap();
    let root = Root::create(&domain, Duration::from_secs(1_000_000), at(0)).unwrap();
    Authority::found(&domain, &root, Duration::from_secs(100_000), at(0)).unwrap()
}

fn id(text: &str) -> Subject {
    Subject::Id(SpiffeId::parse(text).unwrap())
}

fn add(subject: Subject) -> Change {
    let entry = Entry {
        reason: "CVE-2026-1".to_owned(),
        by: "ada".to_owned(),
        since_unix: at(0).as_secs(),
    };
    Change::Add(subject, entry)
}

#[test]
fn what_is_stored_reads_back_whole_and_verifies_under_the_bundle() {
    let authority = authority();
    let mut held = Held::default();
    for subject in [
        id(WEB),
        Subject::Instance(Instance::parse("web-1").unwrap(), None),
        Subject::Instance(Instance::parse("web-1").unwrap(), Some(SpiffeId::parse(WEB).unwrap())),
        Subject::Serial(Serial::parse("00:0a:ff").unwrap()),
    ] {
        held = held.changed(&add(subject), &authority, at(1)).unwrap().unwrap();
    }
    let json = serde_json::to_vec(&held.record()).unwrap();
    let read = Held::load(serde_json::from_slice(&json).unwrap(), &authority).unwrap();
    assert_eq!((read.version, &read.entries), (held.version, &held.entries));
    let set = quarantine::open(authority.bundle(), read.signed.as_ref().unwrap(), at(2)).unwrap();
    assert_eq!(set, held.set());
    let trust = Trust::default().with_quarantine(&set).unwrap();
    let other = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap();
    assert!(
        trust
            .check_quarantine(&SpiffeId::parse(WEB).unwrap(), None, &[1])
            .is_err()
    );
    assert!(trust.check_quarantine(&other, None, &[0, 10, 255]).is_err());
    assert!(trust.check_quarantine(&other, None, &[1]).is_ok());
}

#[test]
fn versions_grow_with_each_change_and_past_what_was_made_before_a_backup_was_put_back() {
    let authority = authority();
    let backup = Held::default()
        .changed(&add(id(WEB)), &authority, at(1))
        .unwrap()
        .unwrap();
    let cart = id("spiffe://cluster.local/ns/shop/sa/cart");
    let lost = backup.changed(&add(cart), &authority, at(2)).unwrap().unwrap();
    assert!(lost.version > backup.version);
    // Twice in one instant, and with a clock that was set back.
    let lifted = backup
        .changed(&Change::Lift(id(WEB)), &authority, at(1))
        .unwrap()
        .unwrap();
    assert!(lifted.version > backup.version);
    let back = lost
        .changed(&Change::Lift(id(WEB)), &authority, at(0))
        .unwrap()
        .unwrap();
    assert!(back.version > lost.version);
    // After the backup was put back.
    let after = backup
        .changed(&Change::Lift(id(WEB)), &authority, at(3))
        .unwrap()
        .unwrap();
    assert!(after.version > lost.version);
}

#[test]
fn what_control_still_holds_is_taken_back_if_it_is_newer_and_never_if_it_is_older() {
    let authority = authority();
    let backup = Held::default()
        .changed(&add(id(WEB)), &authority, at(1))
        .unwrap()
        .unwrap();
    let cart = id("spiffe://cluster.local/ns/shop/sa/cart");
    let lost = backup.changed(&add(cart.clone()), &authority, at(2)).unwrap().unwrap();
    let taken = backup
        .changed(&Change::Relearn(lost.set()), &authority, at(9))
        .unwrap()
        .unwrap();
    assert_eq!(taken.set(), lost.set());
    assert_eq!(taken.entries[&id(WEB)].by, "ada", "what is known of an entry stays");
    let lifted = lost.changed(&Change::Lift(cart), &authority, at(3)).unwrap().unwrap();
    assert!(
        lifted
            .changed(&Change::Relearn(lost.set()), &authority, at(9))
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_change_after_a_backup_was_put_back_lifts_nobody_whom_it_did_not_know() {
    let authority = authority();
    let first = Held::default()
        .changed(&add(id(WEB)), &authority, at(1))
        .unwrap()
        .unwrap();
    let (cart, db) = (
        id("spiffe://cluster.local/ns/shop/sa/cart"),
        id("spiffe://cluster.local/ns/shop/sa/db"),
    );
    let lost = first.changed(&add(cart.clone()), &authority, at(2)).unwrap().unwrap();
    // The backup, and a change by somebody who did not look.
    let json = serde_json::to_vec(&first.record()).unwrap();
    let backup = Held::load(serde_json::from_slice(&json).unwrap(), &authority).unwrap();
    let forked = backup.changed(&add(db.clone()), &authority, at(3)).unwrap().unwrap();
    assert!(forked.version > lost.version);
    let whole = forked
        .changed(&Change::Relearn(lost.set()), &authority, at(4))
        .unwrap()
        .unwrap();
    assert!(whole.version > forked.version);
    for subject in [&id(WEB), &cart, &db] {
        assert!(whole.entries.contains_key(subject), "{subject}");
    }
    // Once is enough; and what is lifted then stays lifted, whatever an older control holds.
    let lifted = whole.changed(&Change::Lift(cart), &authority, at(5)).unwrap().unwrap();
    for old in [&first, &lost, &forked, &whole] {
        let again = lifted.changed(&Change::Relearn(old.set()), &authority, at(6)).unwrap();
        assert!(again.is_none(), "{}", old.version);
    }
}

#[test]
fn a_backup_of_before_the_first_quarantine_lifts_nobody_either() {
    let authority = authority();
    let backup = Held::default();
    let lost = backup.changed(&add(id(WEB)), &authority, at(1)).unwrap().unwrap();
    let cart = id("spiffe://cluster.local/ns/shop/sa/cart");
    let forked = backup.changed(&add(cart.clone()), &authority, at(2)).unwrap().unwrap();
    let whole = forked
        .changed(&Change::Relearn(lost.set()), &authority, at(3))
        .unwrap()
        .unwrap();
    assert!(whole.entries.contains_key(&id(WEB)) && whole.entries.contains_key(&cart));
}

#[test]
fn reasons_fill_a_record_no_further_than_a_secret_takes() {
    let authority = authority();
    let mut held = Held::default();
    let full = loop {
        let n = held.entries.len();
        let long = Entry {
            reason: "\u{1F512}".repeat(MAX_TEXT),
            by: "\u{1F512}".repeat(MAX_TEXT),
            since_unix: at(0).as_secs(),
        };
        let subject = id(&format!("spiffe://cluster.local/ns/shop/sa/{n}"));
        match held.changed(&Change::Add(subject, long), &authority, at(1)) {
            Ok(next) => held = next.unwrap(),
            Err(error) => break error,
        }
    };
    assert!(matches!(full, ChangeError::Full(n) if n == held.entries.len()));
    assert!(serde_json::to_vec(&held.record()).unwrap().len() <= MAX_RECORD);
    assert!(
        held.set().to_document().len() < MAX_SIGNED,
        "it is the record that is full"
    );
}

#[test]
fn so_many_versions_are_remembered() {
    let authority = authority();
    let mut held = Held::default();
    for _ in 0..MAX_PASSED + 5 {
        held = held.changed(&add(id(WEB)), &authority, at(1)).unwrap().unwrap();
        held = held
            .changed(&Change::Lift(id(WEB)), &authority, at(1))
            .unwrap()
            .unwrap();
    }
    assert_eq!(held.passed.len(), MAX_PASSED);
    assert!(held.knows(held.version) && held.knows(held.version - 1) && held.knows(1));
    assert!(!held.knows(held.version + 1));
}

#[test]
fn nobody_is_cut_off_twice_and_nobody_lifted_who_is_not_there() {
    let authority = authority();
    let held = Held::default()
        .changed(&add(id(WEB)), &authority, at(1))
        .unwrap()
        .unwrap();
    assert!(held.changed(&add(id(WEB)), &authority, at(2)).unwrap().is_none());
    let nobody = Change::Lift(id("spiffe://cluster.local/ns/shop/sa/cart"));
    assert!(matches!(
        held.changed(&nobody, &authority, at(2)),
        Err(ChangeError::NotThere(_))
    ));
}

#[test]
fn a_set_that_no_proxy_would_read_is_not_made() {
    let authority = authority();
    let long = "a".repeat(1900);
    let mut held = Held::default();
    let full = loop {
        let subject = id(&format!("spiffe://cluster.local/{long}/{}", held.entries.len()));
        match held.changed(&add(subject), &authority, at(1)) {
            Ok(next) => held = next.unwrap(),
            Err(error) => break error,
        }
    };
    assert!(matches!(full, ChangeError::Full(n) if n == held.entries.len()));
    assert!(held.set().to_document().len() <= MAX_SIGNED);
    quarantine::open(authority.bundle(), held.signed.as_ref().unwrap(), at(2)).unwrap();
}
