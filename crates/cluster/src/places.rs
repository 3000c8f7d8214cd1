//! A bound on the open connections of each address, so that nobody takes everybody's.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Open connections of each address.
#[derive(Debug)]
pub struct Places {
    of_address: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One of them; given back when dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    /// At most so many of each address.
    #[must_use]
    pub fn of_each(of_address: usize) -> Arc<Self> {
        Arc::new(Self {
            of_address,
            open: Mutex::default(),
        })
    }

    /// One for a connection from `address`; `None`: it has all that it may have. An IPv4 address is the same one in IPv6.
    #[must_use]
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let own = open.entry(address).or_default();
        if *own >= self.of_address {
            return None;
        }
        *own += 1;
        let places = Arc::clone(self);
        Some(Place { places, address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.places.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = open.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_address_has_so_many_places_and_takes_nobody_elses() {
        let places = Places::of_each(3);
        let [one, mapped, other] = ["127.0.0.1", "::ffff:127.0.0.1", "127.0.0.2"].map(|ip| ip.parse().unwrap());
        let mut held: Vec<Place> = (0..3).map(|_| places.take(one).unwrap()).collect();
        assert!(places.take(one).is_none() && places.take(mapped).is_none());
        assert!(places.take(other).is_some());
        drop(held.pop());
        held.push(places.take(mapped).unwrap());
        drop(held);
        assert!(
            places.open.lock().unwrap().is_empty(),
            "nothing is kept of who has gone"
        );
    }
}
