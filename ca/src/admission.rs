//! How much work is let in at once: in all, and from one caller. What is over is refused at once, not queued.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use postern_api::refusal::RefusalReason;

use crate::refusal::Refusal;

/// An issue takes under a millisecond and one sync of a small file: this many is half a second of work at worst.
pub(crate) const MAX_IN_FLIGHT: usize = 256;
/// One address (an IPv6 /64) may hold an eighth of it, so that one caller cannot shut the others out.
pub(crate) const MAX_IN_FLIGHT_PER_CALLER: usize = 32;

/// Counts requests in flight.
#[derive(Debug, Clone, Default)]
pub(crate) struct Admission {
    in_flight: Arc<Mutex<InFlight>>,
}

#[derive(Debug, Default)]
struct InFlight {
    total: usize,
    by_caller: HashMap<IpAddr, usize>,
}

/// A place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    admission: Admission,
    caller: IpAddr,
}

impl Admission {
    pub(crate) fn admit(&self, caller: IpAddr) -> Result<Admitted, Refusal> {
        let caller = neighbourhood(caller);
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if in_flight.total >= MAX_IN_FLIGHT {
            return Err(Refusal::new(
                RefusalReason::Busy,
                "too many requests at once; try again shortly",
            ));
        }
        let own = in_flight.by_caller.entry(caller).or_default();
        if *own >= MAX_IN_FLIGHT_PER_CALLER {
            let message = "too many requests at once from this address; try again shortly";
            return Err(Refusal::new(RefusalReason::BusyCaller, message));
        }
        *own += 1;
        in_flight.total += 1;
        drop(in_flight);
        Ok(Admitted {
            admission: self.clone(),
            caller,
        })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut in_flight = self.admission.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        in_flight.total = in_flight.total.saturating_sub(1);
        if let Some(own) = in_flight.by_caller.get_mut(&self.caller) {
            *own -= 1;
            if *own == 0 {
                in_flight.by_caller.remove(&self.caller);
            }
        }
    }
}

/// Whoever has an IPv6 address usually has its whole /64.
fn neighbourhood(address: IpAddr) -> IpAddr {
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
        let admission = Admission::default();
        let greedy: IpAddr = "2001:db8::1".parse().unwrap();
        let sibling: IpAddr = "2001:db8::2".parse().unwrap();
        let held: Vec<_> = (0..MAX_IN_FLIGHT_PER_CALLER)
            .map(|_| admission.admit(greedy).unwrap())
            .collect();
        assert_eq!(
            admission.admit(sibling).unwrap_err().reason(),
            RefusalReason::BusyCaller
        );
        admission.admit("192.0.2.1".parse().unwrap()).unwrap();
        drop(held);
        admission.admit(greedy).unwrap();
        assert!(admission.in_flight.lock().unwrap().by_caller.is_empty());
    }

    #[test]
    fn c_05_all_callers_together_are_bounded() {
        let admission = Admission::default();
        let held: Vec<_> = (0..MAX_IN_FLIGHT)
            .map(|n| {
                admission
                    .admit(IpAddr::from([10, 0, (n / 8) as u8, (n % 8) as u8]))
                    .unwrap()
            })
            .collect();
        let next = IpAddr::from([192, 0, 2, 1]);
        assert_eq!(admission.admit(next).unwrap_err().reason(), RefusalReason::Busy);
        drop(held);
        admission.admit(next).unwrap();
    }
}
