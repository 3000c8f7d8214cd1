//! Room for request bodies, which nobody can take from everybody: callers show no name until they are answered.
//!
//! ```text
//! bytes as they come -> the connection's free ones -> past these: the address's turn -> the room of all
//! the whole body     -> judging: what is read of it takes more than its text, and nobody else is waited for
//! ```
//!
//! A length that is announced takes room of nobody but its own address. So an API server's review, which is small, is
//! read on its connection's own bytes even while strangers hold all other room.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// A review holds an object twice at an update, and an API server takes objects of 3 MiB.
pub(super) const MAX_BODY: usize = 8 * 1024 * 1024;
/// Each connection's own, for all its requests at once: a few dozen reviews of ordinary pods. All 256 connections have
/// 16 MiB of it.
pub(super) const FREE: usize = 64 * 1024;
/// Of one address, past what is free: one body of the greatest length. Others of that address wait for their turn.
const OF_ADDRESS: usize = MAX_BODY;
/// Of all addresses, past what is free: of the two greatest bodies, so that one address leaves room for another.
const OF_ALL: usize = 2 * OF_ADDRESS;
/// Whole bodies that are read and judged at once: what is read of them takes up to ten times as much.
const JUDGED: usize = MAX_BODY;

/// The room of all.
#[derive(Debug)]
pub(super) struct Room {
    all: Arc<Semaphore>,
    judged: Arc<Semaphore>,
    addresses: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
}

/// One connection's part in it; clones are its requests.
#[derive(Debug, Clone)]
pub(super) struct Share {
    room: Arc<Room>,
    free: Arc<Semaphore>,
    address: Arc<Semaphore>,
}

/// What one body holds; given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    share: Share,
    /// What its address may have to wait for, if it does not fit into what is free.
    most: usize,
    taken: Vec<OwnedSemaphorePermit>,
    turn: Option<OwnedSemaphorePermit>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(OF_ALL)),
            judged: Arc::new(Semaphore::new(JUDGED)),
            addresses: Mutex::default(),
        }
    }
}

impl Room {
    /// A connection from this address.
    pub(super) fn share(self: &Arc<Self>, address: IpAddr) -> Share {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        // As many as there are connections, at most.
        addresses.retain(|_, of_address| of_address.strong_count() > 0);
        let known = addresses.get(&address).and_then(Weak::upgrade);
        let of_address = known.unwrap_or_else(|| {
            let new = Arc::new(Semaphore::new(OF_ADDRESS));
            addresses.insert(address, Arc::downgrade(&new));
            new
        });
        Share {
            room: Arc::clone(self),
            free: Arc::new(Semaphore::new(FREE)),
            address: of_address,
        }
    }
}

impl Share {
    /// For a body of at most so many bytes: nothing yet.
    pub(super) fn body(&self, most: usize) -> Held {
        Held {
            share: self.clone(),
            most: most.min(OF_ADDRESS),
            taken: Vec::new(),
            turn: None,
        }
    }
}

impl Held {
    /// Room for these bytes, which have come. Waits for it; `Err`: it goes down.
    pub(super) async fn take(&mut self, bytes: usize) -> Result<(), AcquireError> {
        let share = &self.share;
        let wanted = permits(bytes);
        if self.turn.is_none() {
            if let Ok(free) = Arc::clone(&share.free).try_acquire_many_owned(wanted) {
                keep(&mut self.taken, free);
                return Ok(());
            }
            // All of it at once: two bodies of one address do not wait for each other with half of it each.
            let most = permits(self.most);
            self.turn = Some(Arc::clone(&share.address).acquire_many_owned(most).await?);
        }
        let taken = Arc::clone(&share.room.all).acquire_many_owned(wanted).await?;
        keep(&mut self.taken, taken);
        Ok(())
    }

    /// The whole body is there: room for what is read of it.
    pub(super) async fn judged(&self, bytes: usize) -> Result<OwnedSemaphorePermit, AcquireError> {
        let wanted = permits(bytes.min(JUDGED));
        Arc::clone(&self.share.room.judged).acquire_many_owned(wanted).await
    }
}

/// Permits of one origin as one.
fn keep(taken: &mut Vec<OwnedSemaphorePermit>, more: OwnedSemaphorePermit) {
    match taken
        .iter_mut()
        .find(|one| Arc::ptr_eq(one.semaphore(), more.semaphore()))
    {
        Some(one) => one.merge(more),
        None => taken.push(more),
    }
}

/// No bound here is past `u32`.
fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::FutureExt as _;

    use super::*;

    const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));
    const API_SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Is there room now, without waiting?
    fn at_once(held: &mut Held, bytes: usize) -> bool {
        held.take(bytes).now_or_never().is_some_and(|taken| taken.is_ok())
    }

    #[test]
    fn a_connection_has_its_free_bytes_and_the_next_one_is_of_its_address() {
        let room = Arc::new(Room::default());
        let share = room.share(STRANGER);
        let mut body = share.body(FREE + 1);
        assert!(at_once(&mut body, FREE));
        assert_eq!(room.all.available_permits(), OF_ALL, "free is free");
        assert!(at_once(&mut body, 1));
        assert_eq!(room.all.available_permits(), OF_ALL - 1);
        assert_eq!(share.address.available_permits(), OF_ADDRESS - FREE - 1);
        drop(body);
        assert_eq!(room.all.available_permits(), OF_ALL);
        assert_eq!(
            (share.free.available_permits(), share.address.available_permits()),
            (FREE, OF_ADDRESS)
        );
    }

    #[test]
    fn an_announced_length_takes_nothing_until_bytes_come_and_then_of_its_own_address() {
        let room = Arc::new(Room::default());
        let share = room.share(STRANGER);
        let mut announced = share.body(MAX_BODY);
        assert_eq!(share.address.available_permits(), OF_ADDRESS);
        assert!(at_once(&mut announced, FREE) && at_once(&mut announced, 1));
        assert_eq!(share.address.available_permits(), 0);
        assert_eq!(room.all.available_permits(), OF_ALL - 1);
        // Another connection of it: what is free, and no more.
        let mut second = room.share(STRANGER).body(MAX_BODY);
        assert!(at_once(&mut second, FREE) && !at_once(&mut second, 1));
    }

    #[test]
    fn whatever_one_address_holds_another_has_room_for_the_greatest_body() {
        let room = Arc::new(Room::default());
        let connections: Vec<Share> = (0..64).map(|_| room.share(STRANGER)).collect();
        let mut held: Vec<Held> = connections.iter().map(|share| share.body(MAX_BODY)).collect();
        for body in &mut held {
            at_once(body, FREE);
        }
        while at_once(&mut held[0], 1024 * 1024) && room.all.available_permits() > OF_ALL - OF_ADDRESS {}
        assert_eq!(room.all.available_permits(), OF_ALL - OF_ADDRESS);
        assert!(!at_once(&mut held[1], 1));
        let mut honest = room.share(API_SERVER).body(MAX_BODY);
        assert!(at_once(&mut honest, FREE) && at_once(&mut honest, MAX_BODY - FREE));
    }

    #[test]
    fn where_strangers_hold_all_room_ordinary_reviews_are_read_still() {
        let room = Arc::new(Room::default());
        let addresses = (2..=4).map(|last| IpAddr::from([127, 0, 0, last]));
        let mut held: Vec<Held> = addresses.map(|address| room.share(address).body(MAX_BODY)).collect();
        for body in &mut held {
            at_once(body, FREE);
            at_once(body, OF_ADDRESS);
        }
        assert_eq!(room.all.available_permits(), 0);
        let api_server = room.share(API_SERVER);
        let mut honest: Vec<Held> = (0..8).map(|_| api_server.body(8 * 1024)).collect();
        for body in &mut honest {
            assert!(at_once(body, 8 * 1024));
        }
        assert!(
            held[0].judged(MAX_BODY).now_or_never().is_some(),
            "nobody's bytes take of it"
        );
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let room = Arc::new(Room::default());
        drop(room.share(STRANGER));
        let _kept = room.share(API_SERVER);
        assert_eq!(room.addresses.lock().unwrap().len(), 1);
    }
}
