//! Each answer of [`decide`], on a connection that nobody looks at meanwhile.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;

use postern_identity::quarantine::{Serial, Subject};
use postern_identity::{BundleSet, QuarantineSet, Role, Trust, TrustBundle, verify};
use postern_policy::document;
use postern_policy::peer_authentication::PortModes;
use postern_policy::{AuthorizationPolicy, Compiled, Mode};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::task::LocalSet;

use super::*;
use crate::authority::{Authority, in_seconds};
use crate::drain::Phase;
use crate::exchange::Exchange;
use crate::inbound::{Connection, authorize};
use crate::limits::SUPERVISE_TICK;
use crate::outcome::Failure;
use crate::snapshot::{PolicyState, Port, Protocol, Shared, Workload};
use crate::supervise::{Speaks, Supervisor};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const ALLOWED: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec: {action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}
";

struct World {
    authority: Authority,
    connection: Connection,
    control: Rc<Control>,
    held: VerifiedPeer,
    _phase: watch::Sender<Phase>,
}

impl World {
    /// A connection of the web, whose certificate ends in `life` seconds.
    fn new(life: i64) -> Self {
        let authority = Authority::new("cluster.local");
        let shared = Arc::new(Shared::new(mpsc::channel(1).0));
        shared.trust.store(Arc::new(authority.trust()));
        let own = authority.svid("spiffe://cluster.local/ns/shop/sa/cart", Some("cart-1"));
        shared.publish_identity(own).unwrap();
        let (worker, phase) = Worker::standalone(shared);
        let held = web(&authority, "web-1", life);
        let caller = Caller::verified(held.clone(), held.id(), [0; 32]).on(Some(name()));
        let address = "127.0.0.1:80".parse().unwrap();
        let connection = Connection {
            worker,
            port: Port {
                name: "http".into(),
                number: 80,
                protocol: Protocol::Tcp,
                listen: address,
                app: address,
            },
            caller: Rc::new(caller),
        };
        let control = Supervisor::watch(&connection.worker, Speaks::Opaque, Some(&connection.caller));
        let world = Self {
            authority,
            connection,
            control,
            held,
            _phase: phase,
        };
        world.policy(ALLOWED);
        world
    }

    fn shared(&self) -> &Shared {
        &self.connection.worker.shared
    }

    fn policy(&self, yaml: &str) {
        let objects = document::parse("policy.yaml", yaml).unwrap();
        let policies = objects
            .iter()
            .map(|object| AuthorizationPolicy::from_object(object).unwrap());
        let before = self.shared().policy.load().as_ref().map_or(0, |state| state.generation);
        self.shared().policy.store(Some(Arc::new(PolicyState {
            generation: before + 1,
            rules: before + 1,
            workload: Workload {
                namespace: "shop".to_owned(),
                name: "cart-1".to_owned(),
                mode: Mode::Protect,
                ports: vec![self.connection.port.clone()],
                mtls: PortModes::usual(Mode::Protect),
            },
            compiled: Arc::new(Compiled::new(policies.collect())),
            peers: Arc::default(),
            providers: Arc::default(),
            authenticator: Arc::default(),
            answered: Arc::default(),
        })));
    }

    /// In force, and nobody is told.
    fn trust(&self, change: impl FnOnce(&Trust) -> Trust) {
        let next = change(&self.shared().trust.load());
        self.shared().trust.store(Arc::new(next));
    }

    fn quarantine(&self, peer: &VerifiedPeer) {
        let serial = Subject::Serial(Serial::of(peer.serial()));
        let set = QuarantineSet::new(1, BTreeSet::from([serial]));
        self.trust(|trust| trust.with_quarantine(&set).unwrap());
    }

    /// It believes these, and nobody is told.
    fn believe(&self, roots: &[&Authority]) {
        let ders = roots.iter().map(|root| CertificateDer::from(root.root())).collect();
        let bundle = TrustBundle::new(self.authority.domain().clone(), 2, ders, UnixTime::now());
        self.trust(|trust| Trust {
            revision: trust.revision + 1,
            bundles: BundleSet::default().with(bundle),
            ..Trust::default()
        });
    }

    /// What policy let in.
    fn carries(&self) -> Rc<Exchange> {
        let exchange = Exchange::begin(self.connection.way(Protocol::Tcp), None);
        match authorize::stream(&self.connection, &exchange).unwrap() {
            authorize::Admission::Permitted(permit) => exchange.admit(permit),
            authorize::Admission::Asks(_) => panic!("there is nobody to ask"),
        }
        self.control.carries(&exchange);
        exchange
    }

    /// The same, and it has gone on for long.
    async fn carries_long(&self) -> Rc<Exchange> {
        let exchange = self.carries();
        tokio::time::advance(LONG_LIVED).await;
        exchange
    }

    fn decided(&self, peer: VerifiedPeer) -> Result<(), Refusal> {
        decide(&self.connection.worker, &self.control, peer)
    }
}

fn name() -> Name {
    Name::from_bytes(&Zeroizing::new([7; NAME_BYTES]))
}

/// As a handshake of the time when it was good would have it.
fn web(authority: &Authority, instance: &str, life: i64) -> VerifiedPeer {
    let svid = authority.svid_for(WEB, Some(instance), life);
    let then = UnixTime::since_unix_epoch(Duration::from_secs(
        in_seconds(life.min(0) - 1).unix_timestamp().unsigned_abs(),
    ));
    verify::verify_peer(svid.chain(), Role::Client, &authority.trust(), then).unwrap()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn the_same_workload_with_a_newer_svid_is_readmitted_and_no_other_or_older_one() {
    run(async {
        let world = World::new(600);
        let _stream = world.carries_long().await;
        let other = web(&world.authority, "web-2", 900);
        assert_eq!(world.decided(other), Err(Refusal::WrongPeer));
        let older = web(&world.authority, "web-1", 500);
        assert_eq!(world.decided(older), Err(Refusal::Older));
        let newer = web(&world.authority, "web-1", 900);
        assert_eq!(world.decided(newer.clone()), Ok(()));
        assert_eq!(world.control.peer(), Some(newer));
    });
}

#[test]
fn whose_old_certificate_is_cut_off_is_refused_also_before_anybody_has_looked() {
    run(async {
        let world = World::new(600);
        let _stream = world.carries_long().await;
        let newer = web(&world.authority, "web-1", 900);
        world.quarantine(&world.held);
        assert_eq!(world.decided(newer), Err(Refusal::Ending));
        assert_eq!(world.control.peer(), Some(world.held.clone()));
    });
}

#[test]
fn whose_old_root_has_left_is_refused_also_before_anybody_has_looked() {
    run(async {
        let world = World::new(600);
        let _stream = world.carries_long().await;
        let new = Authority::new("cluster.local");
        let newer = web(&new, "web-1", 900);
        world.believe(&[&new]);
        assert_eq!(world.decided(newer.clone()), Err(Refusal::Ending));
        world.believe(&[&world.authority, &new]);
        assert_eq!(world.decided(newer), Ok(()));
    });
}

#[test]
fn a_connection_that_is_over_or_being_cut_is_refused() {
    run(async {
        let world = World::new(-5);
        let _stream = world.carries();
        let newer = web(&world.authority, "web-1", 900);
        assert_eq!(world.decided(newer), Err(Refusal::Ending));

        let world = World::new(600);
        let _stream = world.carries_long().await;
        let newer = web(&world.authority, "web-1", 900);
        world.shared().cut_off.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(world.decided(newer.clone()), Err(Refusal::Ending), "we are cut off");
        world
            .shared()
            .cut_off
            .store(false, std::sync::atomic::Ordering::Relaxed);
        world.control.close(Failure::PeerWithdrawn);
        assert_eq!(world.decided(newer), Err(Refusal::Ending), "it is lost");
    });
}

#[test]
fn whoever_is_not_believed_any_more_is_refused() {
    run(async {
        let world = World::new(600);
        let _stream = world.carries_long().await;
        let newer = web(&world.authority, "web-1", 900);
        world.quarantine(&newer);
        assert_eq!(world.decided(newer), Err(Refusal::NotBelieved));
    });
}

#[test]
fn a_connection_without_anything_in_flight_that_policy_let_in_is_idle() {
    run(async {
        let world = World::new(600);
        let newer = web(&world.authority, "web-1", 900);
        assert_eq!(world.decided(newer.clone()), Err(Refusal::Idle));
        let undecided = Exchange::begin(world.connection.way(Protocol::Tcp), None);
        world.control.carries(&undecided);
        tokio::time::advance(LONG_LIVED).await;
        assert_eq!(world.decided(newer), Err(Refusal::Idle));
        assert_eq!(world.control.peer(), Some(world.held.clone()));
    });
}

#[test]
fn of_which_policy_allows_nothing_now_is_denied_and_ends() {
    run(async {
        let world = World::new(600);
        let stream = world.carries_long().await;
        let newer = web(&world.authority, "web-1", 900);
        world.policy("");
        assert_eq!(world.decided(newer), Err(Refusal::Denied));
        assert!(stream.cut().is_some());
        assert_eq!(world.control.peer(), Some(world.held.clone()));
    });
}

#[test]
fn what_has_gone_on_for_less_than_a_second_is_decided_on_and_is_no_reason_to_go_on() {
    run(async {
        let world = World::new(600);
        let newer = web(&world.authority, "web-1", 900);
        let _stream = world.carries();
        let short = LONG_LIVED - Duration::from_millis(1);
        tokio::time::advance(short).await;
        assert_eq!(world.decided(newer.clone()), Err(Refusal::Idle));
        assert!(!world.control.is_readmitted());
        tokio::time::advance(LONG_LIVED - short).await;
        assert_eq!(world.decided(newer), Ok(()));
        assert!(world.control.is_readmitted());

        let world = World::new(600);
        let newer = web(&world.authority, "web-1", 900);
        let short = world.carries();
        world.policy("");
        assert_eq!(world.decided(newer), Err(Refusal::Idle));
        assert!(short.cut().is_some());
    });
}

#[test]
fn a_connection_has_a_name_from_the_second_on_that_something_goes_on_for_until_that_is_over() {
    run(async {
        let world = World::new(600);
        // So that it need not wait for half of its time.
        world.believe(&[&world.authority, &Authority::new("cluster.local")]);
        let is_known = || world.shared().readmissions.find(&name()).is_some();
        let stream = world.carries();
        tokio::time::sleep(LONG_LIVED - SUPERVISE_TICK).await;
        assert!(!is_known());
        tokio::time::sleep(SUPERVISE_TICK * 3).await;
        assert!(is_known());
        drop(stream);
        tokio::time::sleep(SUPERVISE_TICK * 2).await;
        assert!(!is_known(), "the connection is still there, and at rest");
        let _other = world.carries();
        tokio::time::sleep(LONG_LIVED + SUPERVISE_TICK * 2).await;
        assert!(is_known());
    });
}

#[test]
fn half_of_its_time_goes_by_before_a_connection_has_a_name() {
    run(async {
        // The supervisor sees the system's clock, which nobody moves here.
        let world = World::new(600);
        let _stream = world.carries();
        tokio::time::sleep(LONG_LIVED * 5).await;
        assert!(world.shared().readmissions.find(&name()).is_none());
    });
}
