//! The root's replacement: its stages, and who can walk on at each.
#![allow(clippy::unwrap_used)]

use postern_identity::bundle;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const LONG_AGO: UnixTime = UnixTime::since_unix_epoch(Duration::ZERO);
const PACE: RootPace = RootPace {
    acknowledge: Duration::from_secs(600),
    retire: Duration::from_secs(48 * 3600),
    settle: Duration::from_secs(30),
};

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn now() -> UnixTime {
    UnixTime::now()
}

struct Stages {
    old: Root,
    founded: Authority,
    prepared: Authority,
    published: Authority,
    activated: Authority,
    retired: Authority,
}

impl Stages {
    fn in_order(&self) -> [&Authority; 5] {
        [
            &self.founded,
            &self.prepared,
            &self.published,
            &self.activated,
            &self.retired,
        ]
    }
}

fn stages() -> Stages {
    let old = Root::create(&domain(), 24 * 365 * HOUR, now()).unwrap();
    let founded = Authority::found(&domain(), &old, 720 * HOUR, now()).unwrap();
    let prepared = founded.rotating(Rotation::prepare(&founded, false, now()).unwrap());
    let published = prepared.publishing_next_root(now()).unwrap();
    let activated = published.under_next_root(Some(&old), now()).unwrap();
    let retired = activated.with_root_stored().without_old_root(now()).unwrap();
    Stages {
        old,
        founded,
        prepared,
        published,
        activated,
        retired,
    }
}

fn stage(authority: &Authority) -> Option<Stage> {
    authority.root_stage().map(|(_, stage)| stage)
}

fn pinned(root: &CertificateDer<'static>) -> TrustBundle {
    TrustBundle::new(domain(), 0, vec![root.clone()], now())
}

fn believes(bundle: &TrustBundle, chain: &[CertificateDer<'_>]) -> bool {
    let trust = Trust {
        bundles: BundleSet::default().with(bundle.clone()),
        ..Trust::default()
    };
    verify::verify_peer(chain, Role::Client, &trust, now()).is_ok()
}

fn leaf_of(authority: &Authority) -> Vec<CertificateDer<'static>> {
    let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap();
    authority
        .sign(&id, None, Holder::Proxy, &new_key().unwrap(), HOUR, now())
        .unwrap()
        .chain
}

#[test]
fn each_stage_is_told_from_what_signs_and_what_the_bundle_has() {
    let all = stages();
    assert_eq!(stage(&all.founded), None);
    let found: Vec<_> = [&all.prepared, &all.published, &all.activated, &all.retired]
        .map(stage)
        .to_vec();
    assert_eq!(
        found,
        [Stage::Prepared, Stage::Published, Stage::Activated, Stage::Retired].map(Some)
    );
    let new = all.retired.root().clone();
    assert_ne!(new, *all.old.cert());
    assert_eq!(all.prepared.bundle().roots(), [all.old.cert().clone()]);
    assert_eq!(all.published.bundle().roots(), [all.old.cert().clone(), new.clone()]);
    assert_eq!(all.activated.bundle().roots(), all.published.bundle().roots());
    assert_eq!(all.retired.bundle().roots(), [new]);
    assert_eq!((all.published.issuer_epoch(), all.activated.issuer_epoch()), (1, 2));
}

#[test]
fn leaves_of_either_root_hold_while_both_are_published() {
    let all = stages();
    let (before, after) = (leaf_of(&all.published), leaf_of(&all.activated));
    for authority in [&all.published, &all.activated] {
        assert!(believes(authority.bundle(), &before) && believes(authority.bundle(), &after));
    }
    assert!(
        !believes(all.founded.bundle(), &after),
        "who has missed the publication knows nobody under it"
    );
    assert!(believes(all.retired.bundle(), &after) && !believes(all.retired.bundle(), &before));
}

#[test]
fn whoever_holds_any_bundle_or_either_root_walks_on_to_the_newest() {
    let all = stages();
    let authorities = all.in_order();
    for (n, authority) in authorities.iter().enumerate() {
        let newest = authority.bundle().sequence();
        for earlier in authorities.iter().take(n + 1) {
            let held = earlier.bundle();
            for links in [authority.links_after(held.sequence()), authority.links_after(0)] {
                let walked = bundle::advance(held, &links, now()).unwrap();
                assert_eq!(walked.sequence(), newest, "from {} to {newest}", held.sequence());
            }
        }
        for root in authority.bundle().roots() {
            let signs = authority.root() == root || stage(authority) == Some(Stage::Activated);
            if signs {
                let links = authority.links_from_root(&sha256(root));
                assert_eq!(
                    bundle::advance(&pinned(root), &links, now()).unwrap().sequence(),
                    newest
                );
            }
        }
    }
    // A pod that was pinned to the old root, and a caller that does not say what it has pinned.
    let links = all.retired.links_from_root(&sha256(all.old.cert()));
    let walked = bundle::advance(&pinned(all.old.cert()), &links, now()).unwrap();
    assert_eq!(walked.roots(), [all.retired.root().clone()]);
    assert_eq!(all.activated.likely_pin(), sha256(all.old.cert()));
    assert_eq!(all.retired.likely_pin(), all.retired.root_sha256());
}

#[test]
fn a_bundles_number_is_no_lower_than_the_time_and_grows_whatever_the_clock_says() {
    let all = stages();
    let then = now();
    let next = all.founded.with_new_issuer(&all.old, then).unwrap();
    assert_eq!(next.bundle().sequence(), then.as_secs());
    let at_once = next.with_new_issuer(&all.old, then).unwrap();
    assert_eq!(at_once.bundle().sequence(), then.as_secs() + 1);
    let behind = earlier(then, BACKDATE / 2);
    let moved_back = at_once.with_new_issuer(&all.old, behind).unwrap();
    assert_eq!(moved_back.bundle().sequence(), then.as_secs() + 2);
    let published = all.prepared.publishing_next_root(then).unwrap();
    assert_eq!(published.bundle().sequence(), then.as_secs());
    assert_eq!(
        moved_back.renumbered(0, behind).unwrap().bundle().sequence(),
        then.as_secs() + 3
    );
    let past = then.as_secs() + 1_000;
    assert_eq!(moved_back.renumbered(past, then).unwrap().bundle().sequence(), past + 1);
}

#[test]
fn an_authority_that_was_put_back_publishes_past_what_was_lost_and_what_was_lost_does_not_come_back() {
    let all = stages();
    let lost = (0..3).fold(all.founded.clone(), |authority, _| {
        authority.with_new_issuer(&all.old, now()).unwrap()
    });
    let held = bundle::advance(&pinned(all.old.cert()), &lost.links_after(0), now()).unwrap();
    let passed_over = bundle::advance(&held, &all.founded.links_after(0), now()).unwrap();
    assert_eq!(passed_over.sequence(), held.sequence(), "it is older");
    let soon = later(now(), Duration::from_secs(10));
    let put_back = all.founded.renumbered(0, soon).unwrap();
    let walked = bundle::advance(&held, &put_back.links_after(held.sequence()), now()).unwrap();
    assert_eq!(walked.sequence(), put_back.bundle().sequence());
    assert_eq!(walked.jwt_keys(), all.founded.bundle().jwt_keys());
    let replayed = bundle::advance(&walked, &lost.links_after(0), now()).unwrap();
    assert_eq!(replayed.sequence(), walked.sequence());
}

#[test]
fn who_holds_only_the_root_that_followed_takes_nothing_of_a_state_from_before_that_was_put_back() {
    let all = stages();
    let held = all.retired.bundle();
    let soon = later(now(), Duration::from_secs(10));
    let put_back = all.founded.renumbered(held.sequence(), soon).unwrap();
    let links = put_back.links_after(held.sequence());
    assert!(!links.is_empty() && bundle::advance(held, &links, now()).is_err());
    assert!(!believes(held, &leaf_of(&put_back)));
}

#[test]
fn a_bundle_that_is_numbered_anew_says_the_same_at_every_stage_and_everybody_walks_on_to_it() {
    let all = stages();
    let authorities = all.in_order();
    for (n, authority) in authorities.iter().enumerate() {
        let soon = later(now(), Duration::from_secs(10));
        let again = authority.renumbered(0, soon).unwrap();
        let same = |of: &Authority| (of.bundle().roots().to_vec(), of.bundle().jwt_keys().to_vec(), stage(of));
        assert!(same(&again) == same(authority));
        for earlier in authorities.iter().take(n + 1) {
            let held = earlier.bundle();
            let walked = bundle::advance(held, &again.links_after(held.sequence()), now()).unwrap();
            assert_eq!(walked.sequence(), again.bundle().sequence());
        }
        let pin = again.likely_pin();
        let root = [all.old.cert(), all.retired.root()].map(|root| (sha256(root) == pin).then_some(root));
        let walked = bundle::advance(
            &pinned(root.into_iter().flatten().next().unwrap()),
            &again.links_from_root(&pin),
            now(),
        );
        assert_eq!(walked.unwrap().sequence(), again.bundle().sequence());
    }
}

#[test]
fn the_new_issuer_is_believed_by_either_root_as_the_ca_shows_it_and_as_nobody_else_does() {
    let all = stages();
    let mut shown = leaf_of(&all.activated);
    let alone = shown.clone();
    shown.extend(all.activated.shown_roots());
    for root in [all.old.cert(), all.activated.root()] {
        assert!(believes(&pinned(root), &shown));
    }
    assert!(!believes(&pinned(all.old.cert()), &alone));
    // Not longer than the issuer that it vouches for.
    let later = all.retired.with_new_issuer(&all.retired_root(), now()).unwrap();
    assert_eq!(later.shown_roots(), [all.retired.root().clone()]);
}

impl Stages {
    fn retired_root(&self) -> Root {
        self.activated.pending_root_of_own().unwrap().unwrap()
    }
}

fn step(authority: &Authority, acknowledged: u64, after: Duration) -> Option<Step> {
    let rotation = authority.rotation()?;
    let quiet = |sequence| (acknowledged >= sequence).then_some(HOUR);
    rotation.step(authority, &PACE, LONG_AGO, quiet, later(now(), after))
}

#[test]
fn the_new_root_signs_when_the_bundle_is_acknowledged_or_the_time_is_over() {
    let all = stages();
    assert_eq!(step(&all.founded, 0, Duration::ZERO), None);
    assert_eq!(step(&all.prepared, 0, Duration::ZERO), Some(Step::Publish));
    let sequence = all.published.bundle().sequence();
    assert!(matches!(
        step(&all.published, sequence - 1, Duration::ZERO),
        Some(Step::Wait(_))
    ));
    assert!(matches!(
        step(&all.published, sequence - 1, PACE.acknowledge / 2),
        Some(Step::Wait(_))
    ));
    assert_eq!(step(&all.published, sequence, Duration::ZERO), Some(Step::Activate));
    assert_eq!(step(&all.published, 0, PACE.acknowledge), Some(Step::Activate));
}

#[test]
fn of_a_stage_that_was_put_back_only_the_bundle_that_is_numbered_anew_is_acknowledged() {
    let all = stages();
    let lost = all.retired.bundle().sequence() + 9;
    let again = all.published.renumbered(lost, now()).unwrap();
    assert!(matches!(step(&again, lost, Duration::ZERO), Some(Step::Wait(_))));
    let sequence = again.bundle().sequence();
    assert_eq!(step(&again, sequence, Duration::ZERO), Some(Step::Activate));
}

#[test]
fn the_old_root_leaves_after_the_longest_leaf_whoever_has_acknowledged() {
    let all = stages();
    assert_eq!(step(&all.activated, 0, Duration::ZERO), Some(Step::StoreRoot));
    let stored = all.activated.with_root_stored();
    assert!(matches!(
        step(&stored, u64::MAX, PACE.retire - HOUR),
        Some(Step::Wait(_))
    ));
    assert_eq!(step(&stored, 0, PACE.retire), Some(Step::Retire));
    assert_eq!(step(&all.retired, u64::MAX, PACE.retire), None);
}

#[test]
fn a_tainted_root_vouches_for_nothing_and_leaves_as_soon_as_all_have_renewed_or_the_time_is_over() {
    let all = stages();
    let tainted = all
        .founded
        .rotating(Rotation::prepare(&all.founded, true, now()).unwrap());
    let published = tainted.publishing_next_root(now()).unwrap();
    // Nobody who has not heard is cut off by a CA that is killed now.
    assert!(believes(all.founded.bundle(), &leaf_of(&published)));
    assert!(matches!(step(&published, 0, Duration::ZERO), Some(Step::Wait(_))));
    assert_eq!(step(&published, 0, Duration::from_secs(10)), Some(Step::Activate));
    let sequence = published.bundle().sequence();
    assert_eq!(step(&published, sequence, Duration::ZERO), Some(Step::Activate));
    let activated = published
        .under_next_root(Some(&all.old), now())
        .unwrap()
        .with_root_stored();
    assert_eq!(activated.shown_roots(), [activated.root().clone()]);
    // Nor does any key of tokens that lay beside it.
    let known = all.founded.bundle().jwt_keys();
    assert!(activated.bundle().jwt_keys().iter().all(|key| !known.contains(key)));
    // Who is connected walks on all the same.
    let walked = bundle::advance(all.founded.bundle(), &activated.links_after(1), now()).unwrap();
    assert_eq!(walked.sequence(), activated.bundle().sequence());
    let (all_have, minute) = (activated.bundle().sequence(), Duration::from_secs(61));
    assert!(matches!(
        step(&activated, all_have, Duration::ZERO),
        Some(Step::Wait(_))
    ));
    assert_eq!(step(&activated, all_have, minute), Some(Step::Retire));
    assert!(matches!(step(&activated, all_have - 1, minute), Some(Step::Wait(_))));
    assert_eq!(step(&activated, 0, PACE.acknowledge), Some(Step::Retire));
}

/// As the store gives them back.
fn reloaded(authority: &Authority, rotation: Option<&Rotation>) -> Authority {
    reloaded_at(authority, rotation, now())
}

fn reloaded_at(authority: &Authority, rotation: Option<&Rotation>, now: UnixTime) -> Authority {
    let kept = serde_json::to_vec(&AuthorityRecord::of(authority)).unwrap();
    let record: AuthorityRecord = serde_json::from_slice(&kept).unwrap();
    let rotation = rotation.map(|rotation| serde_json::from_slice(&serde_json::to_vec(rotation).unwrap()).unwrap());
    record.load(now).unwrap().with_rotation(rotation, now).unwrap()
}

#[test]
fn every_stage_is_read_back_and_a_version_that_knows_no_stages_reads_what_signs() {
    let all = stages();
    for authority in all.in_order() {
        let again = reloaded(authority, authority.rotation());
        assert_eq!(
            (stage(&again), again.rotation()),
            (stage(authority), authority.rotation())
        );
        assert_eq!(again.links_after(0), authority.links_after(0));
        assert_eq!(again.shown_roots(), authority.shown_roots());
        let older = reloaded(authority, None);
        assert_eq!(older.root(), authority.root());
        assert!(believes(older.bundle(), &leaf_of(&older)));
    }
}

#[test]
fn c_06_of_a_kill_between_record_and_authority_the_stage_before_is_left_and_done_again() {
    let all = stages();
    for (before, after) in [
        (&all.prepared, &all.published),
        (&all.published, &all.activated),
        (&all.activated, &all.retired),
    ] {
        let killed = reloaded(before, after.rotation());
        assert_eq!(stage(&killed), stage(before));
        let due = killed
            .rotation()
            .unwrap()
            .step(&killed, &PACE, LONG_AGO, |_| Some(HOUR), later(now(), PACE.retire))
            .unwrap();
        let again = match due {
            Step::Publish => killed.publishing_next_root(now()),
            Step::Activate => killed.under_next_root(Some(&all.old), now()),
            Step::StoreRoot | Step::Retire => killed.without_old_root(now()),
            Step::Wait(_) => panic!("nothing is due"),
        };
        assert_eq!(stage(&again.unwrap()), stage(after));
    }
}

#[test]
fn a_record_about_another_root_counts_for_nothing_and_a_replacement_can_begin_anew() {
    let (all, elsewhere) = (stages(), stages());
    let foreign = reloaded(&elsewhere.founded, all.activated.rotation());
    assert_eq!(stage(&foreign), None);
    assert_eq!(foreign.links_after(0), elsewhere.founded.links_after(0));
    // An old backup beside the record of what came after it: its key is gone.
    let put_back = reloaded(&all.founded, all.retired.rotation());
    assert_eq!(stage(&put_back), None);
    let again = put_back.rotating(Rotation::prepare(&put_back, false, now()).unwrap());
    assert_eq!(stage(&again), Some(Stage::Prepared));
}

#[test]
fn the_ledger_keeps_the_name_of_the_root_that_the_ca_was_founded_with() {
    let all = stages();
    assert_eq!(all.retired.founding_root_sha256(), sha256(all.old.cert()));
    let again = all
        .retired
        .rotating(Rotation::prepare(&all.retired, false, now()).unwrap());
    assert_eq!(again.founding_root_sha256(), sha256(all.old.cert()));
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn tainted_at(founded: &Authority, now: UnixTime) -> Authority {
    let tainted = founded.rotating(Rotation::prepare(founded, true, now).unwrap());
    let published = tainted.publishing_next_root(now).unwrap();
    published.under_next_root(None, now).unwrap()
}

/// Its issuer is replaced again and again, and it is read back in between.
fn goes_on(mut authority: Authority, days: impl Iterator<Item = u32>) {
    let root = authority.pending_root_of_own().unwrap().unwrap();
    authority = authority.with_root_stored();
    for day in days {
        let at = later(now(), DAY * day);
        let next = authority.with_new_issuer(&root, at);
        authority = next.unwrap_or_else(|error| panic!("day {day}: {error}"));
        authority = reloaded_at(&authority, authority.rotation(), at);
        assert!(authority.ready(at).is_ok());
    }
}

#[test]
fn the_issuer_is_replaced_for_ever_after_whatever_led_from_the_old_root_has_ended() {
    let all = stages();
    goes_on(all.activated.clone(), (20..=100).step_by(20));
    goes_on(all.activated.clone(), [40, 60].into_iter());
    goes_on(tainted_at(&all.founded, later(now(), DAY * 20)), (40..=100).step_by(20));
    // And it is retired then.
    let later_on = later(now(), DAY * 31);
    let root = all.retired_root();
    let second = all
        .activated
        .with_root_stored()
        .with_new_issuer(&root, later(now(), DAY * 20));
    let retired = second.unwrap().without_old_root(later_on).unwrap();
    assert_eq!(stage(&retired), Some(Stage::Retired));
}

#[test]
fn a_ca_that_was_down_until_its_issuer_under_the_new_root_had_ended_starts_and_goes_on() {
    let all = stages();
    let at = later(now(), DAY * 31);
    for authority in [all.activated.with_root_stored(), all.retired.clone()] {
        let woken = reloaded_at(&authority, authority.rotation(), at);
        let next = woken.with_new_issuer(&all.retired_root(), at).unwrap();
        assert!(next.ready(at).is_ok());
        // Another root can follow.
        let again = next.rotating(Rotation::prepare(&next, false, at).unwrap());
        again.publishing_next_root(at).unwrap();
    }
}

#[test]
fn a_root_that_is_replaced_in_its_last_hour_leads_on_for_that_hour_and_hinders_nobody_after() {
    let year = 365 * DAY;
    let old = Root::create(&domain(), year, earlier(now(), year - HOUR)).unwrap();
    let founded = Authority::found(&domain(), &old, 720 * HOUR, now()).unwrap();
    let prepared = founded.rotating(Rotation::prepare(&founded, false, now()).unwrap());
    let published = prepared.publishing_next_root(now()).unwrap();
    let life = Authority {
        issuer_life: 720 * HOUR,
        ..published
    };
    let activated = life.under_next_root(Some(&old), now()).unwrap();
    assert_eq!(activated.shown_roots().len(), 3);
    let root = activated.pending_root_of_own().unwrap().unwrap();
    let after = later(now(), HOUR * 2);
    let activated = activated.with_root_stored();
    let woken = reloaded_at(&activated, activated.rotation(), after);
    assert_eq!(woken.shown_roots().len(), 1);
    let retired = woken.without_old_root(after).unwrap();
    activated.without_old_root(after).unwrap();
    retired.with_new_issuer(&root, after).unwrap();
}

/// Whoever has the whole store in the middle of a replacement has nothing after it.
#[test]
fn a_taint_in_the_middle_of_a_replacement_leaves_no_key_that_lay_in_the_store_before_it() {
    let all = stages();
    for compromised in [&all.prepared, &all.published, &all.activated.with_root_stored()] {
        let pending = compromised.rotation().unwrap().new_root();
        let tainted = compromised.rotating(Rotation::prepare(compromised, true, now()).unwrap());
        let published = tainted.publishing_next_root(now()).unwrap();
        // Everybody who is connected is still believed, and walks on.
        assert!(believes(published.bundle(), &leaf_of(compromised)));
        assert!(believes(compromised.bundle(), &leaf_of(&published)));
        let activated = published.under_next_root(None, now()).unwrap();
        for held in [compromised.bundle(), published.bundle()] {
            let walked = bundle::advance(held, &activated.links_after(held.sequence()), now()).unwrap();
            assert_eq!(walked.sequence(), activated.bundle().sequence());
        }
        if compromised.root() != &pending {
            assert!(!published.bundle().roots().contains(&pending), "it never signs");
        }
        let known = compromised.bundle().jwt_keys();
        assert!(activated.bundle().jwt_keys().iter().all(|key| !known.contains(key)));
        assert!(![all.old.cert(), &pending].contains(&activated.root()));
        assert_eq!(activated.founding_root_sha256(), sha256(all.old.cert()));
        let stored = activated.with_root_stored();
        assert_eq!(reloaded(&stored, stored.rotation()).rotation(), stored.rotation());
        let retired = stored.without_old_root(now()).unwrap();
        assert_eq!(retired.bundle().roots(), [activated.root().clone()]);
    }
}

#[test]
fn a_ca_that_was_down_gives_everybody_the_time_to_hear_and_to_renew_before_it_goes_on() {
    let all = stages();
    let (down, minute) = (later(now(), PACE.retire * 2), Duration::from_secs(61));
    let tainted = all
        .founded
        .rotating(Rotation::prepare(&all.founded, true, now()).unwrap());
    let published = tainted.publishing_next_root(now()).unwrap();
    let activated = published.under_next_root(None, now()).unwrap().with_root_stored();
    let at = |authority: &Authority, reached: Option<Duration>, then| {
        let rotation = authority.rotation().unwrap();
        rotation.step(authority, &PACE, down, |_| reached, then).unwrap()
    };
    for authority in [&published, &all.published, &activated] {
        assert!(
            matches!(at(authority, None, down), Step::Wait(_)),
            "{:?}",
            stage(authority)
        );
    }
    assert!(
        matches!(at(&activated, Some(HOUR), down), Step::Wait(_)),
        "nobody has renewed"
    );
    assert_eq!(at(&activated, Some(HOUR), later(down, minute)), Step::Retire);
    assert!(matches!(at(&activated, None, later(down, minute)), Step::Wait(_)));
    assert_eq!(at(&activated, None, later(down, PACE.acknowledge)), Step::Retire);
    assert_eq!(at(&all.published, None, later(down, PACE.acknowledge)), Step::Activate);
}

#[test]
fn a_report_counts_once_nobody_has_come_or_gone_for_a_while() {
    let all = stages();
    let at = |quiet| {
        let rotation = all.published.rotation().unwrap();
        rotation
            .step(&all.published, &PACE, LONG_AGO, |_| Some(quiet), now())
            .unwrap()
    };
    assert!(matches!(at(Duration::from_secs(29)), Step::Wait(_)));
    assert_eq!(at(Duration::from_secs(30)), Step::Activate);
}

#[test]
fn an_older_record_beside_a_newer_authority_goes_on_to_the_end() {
    let all = stages();
    for authority in [&all.published, &all.activated] {
        let restored = reloaded(authority, all.prepared.rotation());
        assert_eq!(stage(&restored), stage(authority));
        // Each reading says the same: a replica would wait anew with each.
        assert_eq!(
            reloaded(authority, all.prepared.rotation()).rotation(),
            restored.rotation()
        );
        let restored = if stage(authority) == Some(Stage::Activated) {
            restored.with_root_stored()
        } else {
            restored
        };
        let due = step(&restored, 0, PACE.retire + HOUR);
        assert!(matches!(due, Some(Step::Activate | Step::Retire)), "{due:?}");
        assert!(restored.rotation().unwrap().awaited(Stage::Published).is_some());
    }
}

/// A root whose key is elsewhere.
struct Elsewhere {
    cert: CertificateDer<'static>,
    key: KeyPair,
}

impl Elsewhere {
    fn new(name: &str) -> Self {
        let (key, validity) = (new_key().unwrap(), lasting(1000));
        let cert = profile::root(&domain(), name, &key, validity).unwrap();
        Self { cert, key }
    }

    fn issuer(&self, hours: u32) -> Brought {
        let key = new_key().unwrap();
        let der = self.certified(&key, lasting(hours));
        self.brought(&[&der], key)
    }

    /// So many minutes after an hour ago.
    fn made(&self, minutes: u32) -> Brought {
        let key = new_key().unwrap();
        let validity = Validity {
            not_before: earlier(now(), HOUR - Duration::from_secs(60) * minutes),
            not_after: later(now(), 10 * HOUR),
        };
        self.brought(&[&self.certified(&key, validity)], key)
    }

    fn certified(&self, key: &KeyPair, validity: Validity) -> CertificateDer<'static> {
        let above = rcgen::Issuer::from_ca_cert_der(&self.cert, &self.key).unwrap();
        profile::issuer(&domain(), 1, key, validity, &above).unwrap()
    }

    /// The issuer and what is above it.
    fn brought(&self, chain: &[&CertificateDer<'static>], key: KeyPair) -> Brought {
        let found = |der: &CertificateDer<'static>| Found {
            place: "issuer".to_owned(),
            der: der.clone(),
        };
        let parts = Parts {
            chain: chain.iter().map(|der| found(der)).collect(),
            key,
            key_place: "key".to_owned(),
            roots: vec![found(&self.cert)],
            roots_place: "root".to_owned(),
        };
        Brought::check(&domain(), &parts, None, now()).unwrap()
    }
}

fn lasting(hours: u32) -> Validity {
    Validity {
        not_before: earlier(now(), BACKDATE),
        not_after: later(now(), hours * HOUR),
    }
}

fn next(taken: Taken) -> Authority {
    match taken {
        Taken::Next(next) => *next,
        Taken::Already | Taken::Later(_) | Taken::Replaced | Taken::Older => panic!("nothing follows"),
    }
}

#[test]
fn an_issuer_that_ended_before_it_signed_makes_way_for_one_under_any_root() {
    let [first, second, third] = ["first", "second", "third"].map(Elsewhere::new);
    let founded = Authority::found_by(&domain(), &first.issuer(100), HOUR, now()).unwrap();
    let short = second.issuer(1);
    let prepared = next(founded.bringing(&short, now()).unwrap());
    let published = prepared.publishing_next_root(now()).unwrap();
    assert_eq!(published.bundle().roots(), [first.cert.clone(), second.cert.clone()]);
    let other = third.issuer(100);
    let waits = |at| matches!(published.bringing(&other, at).unwrap(), Taken::Later(Stage::Published));
    assert!(waits(now()) && waits(later(now(), HOUR / 2)));
    let then = later(now(), 2 * HOUR);
    assert!(published.under_next_root(None, then).is_err());
    let prepared = next(published.bringing(&other, then).unwrap());
    assert_eq!(stage(&prepared), Some(Stage::Prepared));
    let published = prepared.publishing_next_root(then).unwrap();
    assert_eq!(published.bundle().roots(), [first.cert, third.cert.clone()]);
    let activated = published.under_next_root(None, then).unwrap();
    assert_eq!(*activated.root(), third.cert);
}

#[test]
fn sixteen_issuers_that_were_replaced_do_not_come_back_and_the_one_before_those_is_forgotten() {
    let root = Elsewhere::new("root");
    let issuers: Vec<Brought> = (0..18).map(|_| root.issuer(100)).collect();
    let mut authority = Authority::found_by(&domain(), &issuers[0], HOUR, now()).unwrap();
    for issuer in &issuers[1..] {
        authority = next(authority.bringing(issuer, now()).unwrap());
    }
    // As it is read back.
    let authority = AuthorityRecord::of(&authority).load(now()).unwrap();
    let replaced = |n: usize| matches!(authority.bringing(&issuers[n], now()).unwrap(), Taken::Replaced);
    assert!((1..17).all(replaced));
    assert!(matches!(
        authority.bringing(&issuers[17], now()).unwrap(),
        Taken::Already
    ));
    assert!(!replaced(0));
}

#[test]
fn an_issuer_that_is_read_back_ends_with_its_root_and_one_that_was_never_valid_with_it_is_refused() {
    let root = Elsewhere::new("root");
    let brought = root.issuer(2000);
    let end = lasting(1000).not_after;
    let founded = Authority::found_by(&domain(), &brought, HOUR, now()).unwrap();
    let read = AuthorityRecord::of(&founded).load(now()).unwrap();
    for at in [brought.ends(), founded.issuer_not_after(), read.issuer_not_after()] {
        assert!(at <= end && later(at, HOUR) > end, "{at:?}");
    }
    let long_ago = Validity {
        not_before: earlier(now(), 3 * HOUR),
        not_after: earlier(now(), 2 * HOUR),
    };
    assert!(brought.record.clone().load(long_ago).is_err());
}

#[test]
fn a_next_root_that_is_let_go_leaves_the_bundle_and_the_founding_root_stays_known_even_after_a_kill_between_the_records()
 {
    let [first, second, third] = ["first", "second", "third"].map(Elsewhere::new);
    let (one, two) = (first.issuer(100), second.issuer(100));
    let founded = Authority::found_by(&domain(), &one, HOUR, now()).unwrap();
    let moved = next(founded.bringing(&two, now()).unwrap())
        .publishing_next_root(now())
        .unwrap();
    let moved = moved.under_next_root(None, now()).unwrap().with_root_stored();
    let moved = moved.without_old_root(now()).unwrap();
    let published = next(moved.bringing(&third.issuer(1), now()).unwrap())
        .publishing_next_root(now())
        .unwrap();
    let back = next(published.bringing(&two, now()).unwrap());
    assert_eq!(
        (stage(&back), back.bundle().roots()),
        (None, std::slice::from_ref(&second.cert))
    );
    assert!(matches!(back.bringing(&two, now()).unwrap(), Taken::Already));
    assert_eq!(back.founding_root_sha256(), sha256(&first.cert));
    // Killed when only the replacement's record was written.
    let halfway = reloaded(&published, back.rotation());
    assert_eq!((stage(&halfway), halfway.bundle().roots().len()), (None, 2));
    let mended = next(halfway.bringing(&two, now()).unwrap());
    assert_eq!(mended.bundle().roots(), std::slice::from_ref(&second.cert));
    assert!(matches!(mended.bringing(&two, now()).unwrap(), Taken::Already));
    // The one that waited was spent: another under the root that signs lets it go, too.
    let then = later(now(), 2 * HOUR);
    let after = next(published.bringing(&second.issuer(100), then).unwrap());
    assert_eq!(
        (stage(&after), after.bundle().roots()),
        (None, std::slice::from_ref(&second.cert))
    );
    assert_eq!(after.founding_root_sha256(), sha256(&first.cert));
}

#[test]
fn an_issuer_that_ends_while_the_root_before_it_is_published_is_followed_under_any_root() {
    let [first, second, third] = ["first", "second", "third"].map(Elsewhere::new);
    let founded = Authority::found_by(&domain(), &first.issuer(100), HOUR, now()).unwrap();
    let moved = next(founded.bringing(&second.issuer(2), now()).unwrap())
        .publishing_next_root(now())
        .unwrap();
    let moved = moved.under_next_root(None, now()).unwrap().with_root_stored();
    assert_eq!(stage(&moved), Some(Stage::Activated));
    let other = third.issuer(100);
    assert!(matches!(
        moved.bringing(&other, now()).unwrap(),
        Taken::Later(Stage::Activated)
    ));
    let then = later(now(), 3 * HOUR);
    let follows = next(moved.bringing(&other, then).unwrap());
    let due = follows
        .rotation()
        .unwrap()
        .step(&follows, &PACE, LONG_AGO, |_| None, then);
    assert_eq!(due, Some(Step::Activate));
    let activated = follows.under_next_root(None, then).unwrap();
    assert_eq!(*activated.root(), third.cert);
    // What the first one signed may live longer.
    assert_eq!(activated.bundle().roots(), [first.cert, second.cert, third.cert]);
}

#[test]
fn a_late_mount_does_not_take_back_a_replacement_that_is_hurried_and_another_issuer_does_one_that_is_not() {
    let [first, second] = ["first", "second"].map(Elsewhere::new);
    let one = first.issuer(100);
    let founded = Authority::found_by(&domain(), &one, HOUR, now()).unwrap();
    let published = next(founded.bringing(&second.issuer(1), now()).unwrap())
        .publishing_next_root(now())
        .unwrap();
    let hurried = published.hurried(now()).unwrap();
    for late in [&one, &first.issuer(100)] {
        assert!(matches!(
            hurried.bringing(late, now()).unwrap(),
            Taken::Later(Stage::Published)
        ));
    }
    let back = next(published.bringing(&first.issuer(100), now()).unwrap());
    assert_eq!((stage(&back), back.bundle().roots()), (None, &[first.cert.clone()][..]));
    // One that ended before it signed is none to hurry.
    let then = later(now(), 2 * HOUR);
    assert!(published.brings_next_root(now()) && !published.brings_next_root(then));
    assert!(published.hurried(then).is_none());
    assert_eq!(
        next(hurried.bringing(&one, then).unwrap()).bundle().roots(),
        [first.cert]
    );
}

#[test]
fn the_time_of_a_root_that_was_published_for_an_issuer_that_ended_counts_anew_for_the_next() {
    let [first, second] = ["first", "second"].map(Elsewhere::new);
    let founded = Authority::found_by(&domain(), &first.issuer(100), HOUR, now()).unwrap();
    let published = next(founded.bringing(&second.issuer(1), now()).unwrap())
        .publishing_next_root(now())
        .unwrap();
    let then = later(now(), 2 * HOUR);
    let again = next(published.bringing(&second.issuer(100), then).unwrap());
    let due = |authority: &Authority, at| {
        let rotation = authority.rotation().unwrap();
        rotation.step(authority, &PACE, LONG_AGO, |_| None, at)
    };
    assert_eq!(due(&again, then), Some(Step::Publish));
    let again = again.publishing_next_root(then).unwrap();
    assert_eq!(again.bundle().roots(), [first.cert, second.cert]);
    assert!(matches!(due(&again, then), Some(Step::Wait(_))));
    assert_eq!(due(&again, later(then, PACE.acknowledge)), Some(Step::Activate));
}

#[test]
fn the_same_issuer_under_a_renewed_intermediate_goes_on_and_comes_back() {
    let mut root = Elsewhere::new("root");
    // Ours have room for an issuer alone.
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "roomy root");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::minutes(1);
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::hours(1000);
    root.cert = params.self_signed(&root.key).unwrap().der().clone();
    let (between, key) = (new_key().unwrap(), new_key().unwrap());
    let above = rcgen::Issuer::from_ca_cert_der(&root.cert, &root.key).unwrap();
    let [first, renewed] = [90, 100].map(|hours| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "between");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(1));
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params.use_authority_key_identifier_extension = true;
        params.not_before = time::OffsetDateTime::now_utc() - time::Duration::minutes(1);
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::hours(hours);
        params.signed_by(&between, &above).unwrap().der().clone()
    });
    let between = rcgen::Issuer::from_ca_cert_der(&first, &between).unwrap();
    let cert = profile::issuer(&domain(), 1, &key, lasting(80), &between).unwrap();
    let under = |above: &CertificateDer<'static>| {
        root.brought(&[&cert, above], KeyPair::try_from(key.serialized_der()).unwrap())
    };
    let mut authority = Authority::found_by(&domain(), &under(&first), HOUR, now()).unwrap();
    for above in [&renewed, &first, &renewed] {
        authority = next(authority.bringing(&under(above), now()).unwrap());
    }
    // Another follows: now it is one of those.
    let after = next(authority.bringing(&root.issuer(100), now()).unwrap());
    assert!(matches!(
        after.bringing(&under(&first), now()).unwrap(),
        Taken::Replaced
    ));
}

#[test]
fn an_issuer_that_was_made_before_the_one_that_signs_is_refused_also_if_it_never_signed_and_harms_no_later_one() {
    let root = Elsewhere::new("root");
    let [before, first, never, second] = [1, 2, 3, 4].map(|minutes| root.made(minutes));
    let founded = Authority::found_by(&domain(), &first, HOUR, now()).unwrap();
    assert!(matches!(founded.bringing(&before, now()).unwrap(), Taken::Older));
    let authority = next(founded.bringing(&second, now()).unwrap());
    assert!(matches!(authority.bringing(&never, now()).unwrap(), Taken::Older));
    assert!(matches!(authority.bringing(&first, now()).unwrap(), Taken::Replaced));
    assert!(matches!(authority.bringing(&second, now()).unwrap(), Taken::Already));
    // Once it has ended, whatever is left is taken.
    let then = later(now(), HOUR * 2);
    let short = root.issuer(1);
    let ended = next(authority.bringing(&short, now()).unwrap());
    assert!(matches!(ended.bringing(&never, now()).unwrap(), Taken::Older));
    assert_eq!(next(ended.bringing(&never, then).unwrap()).issuer_epoch(), 4);
}

#[test]
fn an_issuer_that_was_made_before_the_one_that_waits_does_not_take_its_place() {
    let [first, second] = ["first", "second"].map(Elsewhere::new);
    let founded = Authority::found_by(&domain(), &first.issuer(100), HOUR, now()).unwrap();
    let [before, waits, after] = [1, 2, 3].map(|minutes| second.made(minutes));
    let prepared = next(founded.bringing(&waits, now()).unwrap());
    for authority in [&prepared, &prepared.publishing_next_root(now()).unwrap()] {
        assert!(matches!(authority.bringing(&before, now()).unwrap(), Taken::Older));
        assert!(matches!(authority.bringing(&waits, now()).unwrap(), Taken::Already));
        let again = next(authority.bringing(&after, now()).unwrap());
        assert_eq!(again.rotation().unwrap().pending_issuer_cert(), Some(after.cert()));
    }
    // One that ended before it signed holds nobody back.
    let then = later(now(), 11 * HOUR);
    let late = second.issuer(100);
    assert!(matches!(prepared.bringing(&late, then).unwrap(), Taken::Next(_)));
}
