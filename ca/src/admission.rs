//! How much is let in: at once, in all and from one address, before anybody is known; and of each identity that was
//! attested, within a while. What is over is refused at once, not queued.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use postern_api::refusal::RefusalReason;
use postern_identity::{Instance, SpiffeId};

use crate::refusal::Refusal;

/// Requests: an issue takes under a millisecond and one sync of a small file, so this many are half a second of work at
/// worst; and one address (an IPv6 /64) holds an eighth of it, so that one caller cannot shut the others out.
pub(crate) const REQUESTS: Limits = Limits {
    total: 256,
    per_caller: 32,
};
/// Connections: some tens of KiB each. One address may be a whole machine of processes.
pub(crate) const CONNECTIONS: Limits = Limits {
    total: 2_048,
    per_caller: 512,
};

/// Most that are let in at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) total: usize,
    pub(crate) per_caller: usize,
}

/// Counts what is in.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    limits: Limits,
    inside: Arc<Mutex<Inside>>,
}

#[derive(Debug, Default)]
struct Inside {
    total: usize,
    by_caller: HashMap<IpAddr, usize>,
}

/// A place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    inside: Arc<Mutex<Inside>>,
    caller: IpAddr,
}

/// There is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// For anybody.
    All,
    /// For this caller.
    Caller,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            inside: Arc::default(),
        }
    }

    pub(crate) fn admit(&self, caller: IpAddr) -> Result<Admitted, Full> {
        let caller = neighbourhood(caller);
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if inside.total >= self.limits.total {
            return Err(Full::All);
        }
        let own = inside.by_caller.entry(caller).or_default();
        if *own >= self.limits.per_caller {
            return Err(Full::Caller);
        }
        *own += 1;
        inside.total += 1;
        drop(inside);
        Ok(Admitted {
            inside: Arc::clone(&self.inside),
            caller,
        })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.total = inside.total.saturating_sub(1);
        if let Some(own) = inside.by_caller.get_mut(&self.caller) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                inside.by_caller.remove(&self.caller);
            }
        }
    }
}

impl From<Full> for Refusal {
    fn from(full: Full) -> Self {
        match full {
            Full::All => Self::new(RefusalReason::Busy, "too many requests at once; try again shortly"),
            Full::Caller => Self::new(
                RefusalReason::BusyCaller,
                "too many requests at once from this address; try again shortly",
            ),
        }
    }
}

/// Certificates that one identity (and instance) gets at once: far more than a process that restarts in a loop asks for.
const BURST: u32 = 256;
/// After those, one in each of these. So one pod of an identity alone fills the ledger in no less than its
/// whole retention, and that of JWT-SVIDs in ten days; several pods do it sooner.
const PER: Duration = Duration::from_secs(1);
/// Identities that are remembered, for as long as they are short of their burst; some 200 bytes each. Should more ask within a
/// minute, the ones that come on top are not counted: the limits before attestation hold for them.
const MAX_IDENTITIES: usize = 16_384;

/// What each identity has left.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    /// When its burst will be whole again.
    whole_at: Mutex<HashMap<String, Instant>>,
}

impl Identities {
    /// One certificate for this identity.
    pub(crate) fn admit(&self, id: &SpiffeId, instance: Option<&Instance>, now: Instant) -> Result<(), Refusal> {
        let caller = format!("{id} {}", instance.map_or("", Instance::as_str));
        let mut whole_at = self.whole_at.lock().unwrap_or_else(PoisonError::into_inner);
        if whole_at.len() >= MAX_IDENTITIES && !whole_at.contains_key(&caller) {
            whole_at.retain(|_, at| *at > now);
            if whole_at.len() >= MAX_IDENTITIES {
                return Ok(());
            }
        }
        let at = whole_at.entry(caller).or_insert(now);
        let next = (*at).max(now) + PER;
        if next > now + PER * BURST {
            return Err(Refusal::new(
                RefusalReason::BusyIdentity,
                format!("this identity has been given {BURST} certificates within a short time; it gets one a second"),
            ));
        }
        *at = next;
        Ok(())
    }
}

/// Whoever has an IPv6 address usually has its whole /64.
pub(crate) fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn c_05_one_caller_cannot_take_the_places_of_others() {
        let admission = Admission::new(REQUESTS);
        let greedy: IpAddr = "2001:db8::1".parse().unwrap();
        let sibling: IpAddr = "2001:db8::2".parse().unwrap();
        let held: Vec<_> = (0..REQUESTS.per_caller)
            .map(|_| admission.admit(greedy).unwrap())
            .collect();
        assert_eq!(admission.admit(sibling).unwrap_err(), Full::Caller);
        admission.admit("192.0.2.1".parse().unwrap()).unwrap();
        drop(held);
        admission.admit(greedy).unwrap();
        assert!(admission.inside.lock().unwrap().by_caller.is_empty());
    }

    #[test]
    fn c_05_one_identity_cannot_have_certificates_without_end_and_others_do_not_notice() {
        let identities = Identities::default();
        let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap();
        let (one, other) = (Instance::parse("web-1").unwrap(), Instance::parse("web-2").unwrap());
        let began = Instant::now();
        for _ in 0..BURST {
            identities.admit(&id, Some(&one), began).unwrap();
        }
        let refusal = identities.admit(&id, Some(&one), began).unwrap_err();
        assert_eq!(refusal.reason(), RefusalReason::BusyIdentity);
        assert!(refusal.reason().retry_after().is_some());
        identities.admit(&id, Some(&other), began).unwrap();
        identities.admit(&id, Some(&one), began + PER).unwrap();
        identities.admit(&id, Some(&one), began + PER).unwrap_err();
        let later = began + PER + PER * BURST;
        for _ in 0..BURST {
            identities.admit(&id, Some(&one), later).unwrap();
        }
    }

    #[test]
    fn c_05_the_memory_of_identities_is_bounded_and_whoever_comes_on_top_is_served() {
        let identities = Identities::default();
        let now = Instant::now();
        let ask = |n: usize, now| {
            let id = SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/web-{n}")).unwrap();
            identities.admit(&id, None, now)
        };
        for n in 0..2 * MAX_IDENTITIES {
            ask(n, now).unwrap();
        }
        assert_eq!(identities.whole_at.lock().unwrap().len(), MAX_IDENTITIES);
        ask(2 * MAX_IDENTITIES, now + 2 * PER).unwrap();
        assert_eq!(identities.whole_at.lock().unwrap().len(), 1);
    }

    #[test]
    fn c_05_all_callers_together_are_bounded() {
        let admission = Admission::new(REQUESTS);
        let caller = |n: usize| IpAddr::from([10, 0, u8::try_from(n / 8).unwrap(), 0]);
        let held: Vec<_> = (0..REQUESTS.total)
            .map(|n| admission.admit(caller(n)).unwrap())
            .collect();
        let next = IpAddr::from([192, 0, 2, 1]);
        assert_eq!(admission.admit(next).unwrap_err(), Full::All);
        drop(held);
        admission.admit(next).unwrap();
    }
}
