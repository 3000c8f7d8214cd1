//! Replicas whose steps interleave, die, start and are late, and an API server that hears of a bundle late: whatever a
//! replica serves is believed.

use std::time::Duration;

use proptest::prelude::*;

use super::super::contents::Contents;
use super::super::rotation::{Done, Found, Now, Replica};
use super::{NAME, START, hourly};

/// How late an API server may hear of a bundle: less than it is left to settle.
const LAG: u64 = 20;
/// A round takes at most this long, or fails.
const SLOWEST: u64 = 10;
const REPLICAS: usize = 3;

/// What the API server keeps, with resource versions.
#[derive(Default)]
struct World {
    secret: Option<Contents>,
    secret_version: u64,
    bundle: Vec<u8>,
    bundle_version: u64,
    /// From when on each bundle was the newest one.
    history: Vec<(u64, Vec<u8>)>,
    rotate: Option<String>,
}

struct One {
    replica: Replica,
    born: u64,
    /// How far its wall clock is off.
    skew: i64,
    serves: Option<Contents>,
    /// Seen so far in this round, since when, and when it goes on.
    seen: Seen,
    begun: u64,
    next: u64,
}

enum Seen {
    Nothing,
    Target {
        bundle: Vec<u8>,
        version: u64,
    },
    Both {
        target_version: u64,
        bundle: Vec<u8>,
        contents: Option<Contents>,
        version: u64,
        rotate: Option<String>,
    },
    Written {
        target_version: u64,
        contents: Contents,
    },
}

impl One {
    fn new(born: u64, skew: i64) -> Self {
        Self {
            replica: Replica::new(vec![NAME.to_owned()], hourly()),
            born,
            skew,
            serves: None,
            seen: Seen::Nothing,
            begun: born,
            next: born,
        }
    }

    /// The next request of its round, and `delay` until the one after that.
    fn go_on(&mut self, world: &mut World, now: u64, delay: u64, done: &mut Vec<Done>) {
        if self.begun + SLOWEST < now {
            self.seen = Seen::Nothing;
        }
        self.next = now + delay;
        self.seen = match std::mem::replace(&mut self.seen, Seen::Nothing) {
            Seen::Nothing => {
                self.begun = now;
                Seen::Target {
                    bundle: world.bundle.clone(),
                    version: world.bundle_version,
                }
            }
            Seen::Target { bundle, version } => Seen::Both {
                target_version: version,
                bundle,
                contents: world.secret.clone(),
                version: world.secret_version,
                rotate: world.rotate.clone(),
            },
            Seen::Both {
                target_version,
                bundle,
                contents,
                version,
                rotate,
            } => {
                let found = Found {
                    contents,
                    rotate,
                    bundles: vec![Some(bundle)],
                };
                let clock = Now {
                    wall: (START + now).saturating_add_signed(self.skew),
                    steady: Duration::from_secs(now - self.born),
                };
                let step = self.replica.step(found, clock).unwrap();
                if let Some(what) = step.done {
                    if version != world.secret_version {
                        return;
                    }
                    world.secret = Some(step.contents.clone());
                    world.secret_version += 1;
                    done.push(what);
                }
                self.replica.adopt(step.contents.clone());
                self.serves = Some(step.contents.clone());
                Seen::Written {
                    target_version,
                    contents: step.contents,
                }
            }
            Seen::Written {
                target_version,
                contents,
            } => {
                let bundle = contents.bundle();
                if target_version == world.bundle_version && bundle != world.bundle {
                    world.bundle.clone_from(&bundle);
                    world.bundle_version += 1;
                    world.history.push((now, bundle));
                }
                self.next = now + hourly().poll.as_secs();
                Seen::Nothing
            }
        };
    }
}

impl World {
    /// Is this CA in every bundle that an API server may go by at `now`?
    fn believes(&self, contents: &Contents, now: u64) -> bool {
        let ends = self.history.iter().skip(1).map(|(from, _)| *from).chain([u64::MAX]);
        let recent = self
            .history
            .iter()
            .zip(ends)
            .filter(|(_, end)| end.saturating_add(LAG) > now);
        let pem = contents.current.authority.pem.as_bytes();
        let mut recent = recent.map(|((_, bundle), _)| bundle);
        recent.all(|bundle| bundle.windows(pem.len()).any(|window| window == pem))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn whatever_a_replica_serves_is_believed(
        seed in any::<u64>(),
        skews in prop::array::uniform3(-300_i64..300),
        asked in prop::collection::vec(100_u64..7000, 0..4),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::default();
        let mut replicas: Vec<One> = skews.iter().map(|skew| One::new(0, *skew)).collect();
        let mut done = Vec::new();
        for now in 0..7200 {
            if asked.contains(&now) {
                world.rotate = Some(now.to_string());
            }
            // Now and then one dies, and another begins.
            if now > 60 && random.u32(..400) == 0 {
                let dead = random.usize(..REPLICAS);
                replicas[dead] = One::new(now, skews[dead]);
            }
            for one in &mut replicas {
                if one.next <= now {
                    let delay = random.u64(..4);
                    one.go_on(&mut world, now, delay, &mut done);
                }
                // From nothing it takes a moment.
                if let Some(serves) = one.serves.as_ref().filter(|_| now > 60) {
                    prop_assert!(world.believes(serves, now), "at {now}: {done:?}");
                }
            }
        }
        let count = |what| done.iter().filter(|done| **done == what).count();
        prop_assert_eq!(count(Done::Founded), 1);
        prop_assert!(count(Done::Promoted) >= 1 && count(Done::Withdrawn) >= 1, "{:?}", done);
        prop_assert_eq!(count(Done::Expired) + count(Done::Restored), 0, "{:?}", done);
    }
}
