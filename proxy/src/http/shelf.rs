//! Connections to one upstream (our app, or one endpoint): those at rest wait here for the next request.
//!
//! HTTP/1.1: a connection is taken off, and comes back when its answer is whole. HTTP/2: it stays here, and requests
//! share it up to [`MAX_STREAMS`].

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::body::Body;
use super::client::{SendError, Sender};
use crate::limits::{MAX_IDLE_PER_KEY, MAX_STREAMS, POOL_IDLE};
use crate::outcome::Failure;

/// Connections to one upstream. `T` is what each was admitted on.
#[derive(Debug)]
pub struct Shelf<T> {
    resting: RefCell<Vec<Resting<T>>>,
    /// Connections that are leased or at rest.
    open: Rc<Cell<usize>>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self {
            resting: RefCell::default(),
            open: Rc::default(),
        }
    }
}

#[derive(Debug)]
struct Resting<T> {
    connection: Connection<T>,
    since: Instant,
}

/// One connection; clones of an HTTP/2 one share it.
#[derive(Debug)]
struct Connection<T> {
    sender: Sender,
    /// Requests that ride on it now (HTTP/2).
    streams: Rc<Cell<u32>>,
    admitted: Rc<T>,
    _open: Rc<Open>,
}

/// Counts a connection until it is gone.
#[derive(Debug)]
pub(crate) struct Open(Rc<Cell<usize>>);

impl Open {
    pub(super) fn count(open: &Rc<Cell<usize>>) -> Self {
        open.set(open.get() + 1);
        Self(Rc::clone(open))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A connection in use; dropped, it goes back to its shelf if it can serve again.
#[derive(Debug)]
pub struct Lease<T> {
    connection: Option<Connection<T>>,
    shelf: Rc<Shelf<T>>,
    rested: Option<Duration>,
}

impl<T> Shelf<T> {
    /// How many connections there are, at rest or in use.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.get()
    }

    /// The most recently used connection that can take a request now and that is still `good`.
    #[must_use]
    pub fn take(self: &Rc<Self>, good: impl Fn(&T) -> bool) -> Option<Lease<T>> {
        let mut resting = self.resting.borrow_mut();
        let mut at = resting.len();
        while at > 0 {
            at -= 1;
            let known = resting.get(at)?;
            if known.connection.sender.is_closed() || !good(&known.connection.admitted) {
                resting.swap_remove(at);
                continue;
            }
            if !known.connection.sender.is_ready() {
                continue;
            }
            let rested = Some(known.since.elapsed());
            let connection = match known.connection.share() {
                Some(_) if known.connection.streams.get() >= MAX_STREAMS => continue,
                Some(shared) => shared,
                None => resting.swap_remove(at).connection,
            };
            return Some(self.lease(connection, rested));
        }
        None
    }

    /// Takes a new connection in, and leases it.
    #[must_use]
    pub fn admit(self: &Rc<Self>, sender: Sender, admitted: T) -> Lease<T> {
        let connection = Connection {
            sender,
            streams: Rc::default(),
            admitted: Rc::new(admitted),
            _open: Rc::new(Open::count(&self.open)),
        };
        if let Some(shared) = connection.share() {
            self.put(shared);
        }
        self.lease(connection, None)
    }

    fn lease(self: &Rc<Self>, connection: Connection<T>, rested: Option<Duration>) -> Lease<T> {
        connection.streams.set(connection.streams.get() + 1);
        Lease {
            connection: Some(connection),
            shelf: Rc::clone(self),
            rested,
        }
    }

    fn put(&self, connection: Connection<T>) {
        let mut resting = self.resting.borrow_mut();
        if resting.len() < MAX_IDLE_PER_KEY {
            resting.push(Resting {
                connection,
                since: Instant::now(),
            });
        }
    }

    /// Closes what has rested too long or is not `good` any more; true if anything is left.
    pub fn sweep(&self, good: impl Fn(&T) -> bool) -> bool {
        let mut resting = self.resting.borrow_mut();
        resting.retain(|known| {
            let in_use = known.connection.share().is_some() && known.connection.streams.get() > 0;
            let fresh = in_use || known.since.elapsed() <= POOL_IDLE;
            fresh && !known.connection.sender.is_closed() && good(&known.connection.admitted)
        });
        if resting.is_empty() {
            resting.shrink_to_fit();
        }
        !resting.is_empty()
    }
}

impl<T> Connection<T> {
    /// Another handle, if it takes several requests.
    fn share(&self) -> Option<Self> {
        Some(Self {
            sender: self.sender.share()?,
            streams: Rc::clone(&self.streams),
            admitted: Rc::clone(&self.admitted),
            _open: Rc::clone(&self._open),
        })
    }
}

impl<T> Lease<T> {
    /// What the connection was admitted on.
    #[must_use]
    pub fn admitted(&self) -> Option<&Rc<T>> {
        self.connection.as_ref().map(|connection| &connection.admitted)
    }

    /// How long it rested before this lease; `None` if it is new.
    #[must_use]
    pub fn rested(&self) -> Option<Duration> {
        self.rested
    }

    /// Sends a request. After an error the connection serves no more.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        let Some(connection) = &mut self.connection else {
            return Err(SendError {
                failure: Failure::UpstreamGone,
                unsent: Some(Box::new(request)),
            });
        };
        let sent = connection.sender.send(request).await;
        if sent.is_err() && matches!(connection.sender, Sender::H1(_)) {
            self.retire();
        }
        sent
    }

    fn retire(&mut self) -> Option<Connection<T>> {
        let connection = self.connection.take()?;
        connection.streams.set(connection.streams.get().saturating_sub(1));
        Some(connection)
    }
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        if let Some(connection) = self.retire()
            && matches!(connection.sender, Sender::H1(_))
            && !connection.sender.is_closed()
        {
            self.shelf.put(connection);
        }
    }
}
