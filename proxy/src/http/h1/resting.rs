//! Connections to one HTTP/1 upstream that rest between requests. While one rests it holds no buffer.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use crate::http::shelf::Open;
use crate::limits::{MAX_IDLE_PER_KEY, POOL_IDLE};
use crate::outcome::Failure;
use crate::stream::Transport;

/// Connections to one upstream. `T` is what each was admitted on.
#[derive(Debug)]
pub struct Resting<T> {
    connections: RefCell<Vec<Connection<T>>>,
    /// At rest or in use.
    open: Rc<Cell<usize>>,
}

impl<T> Default for Resting<T> {
    fn default() -> Self {
        Self {
            connections: RefCell::default(),
            open: Rc::default(),
        }
    }
}

#[derive(Debug)]
struct Connection<T> {
    io: Transport,
    admitted: Rc<T>,
    since: Instant,
    open: Open,
}

/// A connection in use. Dropped it is closed; [`Lease::give_back`] lets it rest.
#[derive(Debug)]
pub struct Lease<T> {
    io: Transport,
    admitted: Rc<T>,
    rested: Option<Duration>,
    resting: Rc<Resting<T>>,
    open: Open,
}

impl<T> Resting<T> {
    /// How many there are, at rest or in use.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.get()
    }

    /// The most recently used that is alive and still `good`.
    #[must_use]
    pub fn take(self: &Rc<Self>, good: impl Fn(&T) -> bool) -> Option<Lease<T>> {
        loop {
            let mut connection = self.connections.borrow_mut().pop()?;
            if good(&connection.admitted) && is_quiet(&mut connection.io) {
                return Some(Lease {
                    io: connection.io,
                    admitted: connection.admitted,
                    rested: Some(connection.since.elapsed()),
                    resting: Rc::clone(self),
                    open: connection.open,
                });
            }
        }
    }

    /// Counts a connection that is being made.
    #[must_use]
    pub(crate) fn making(&self) -> Open {
        Open::count(&self.open)
    }

    /// Takes a new connection in, and leases it.
    #[must_use]
    pub(crate) fn admit(self: &Rc<Self>, open: Open, io: Transport, admitted: T) -> Lease<T> {
        Lease {
            io,
            admitted: Rc::new(admitted),
            rested: None,
            resting: Rc::clone(self),
            open,
        }
    }

    /// Closes what has rested too long, has been closed, or is not `good` any more.
    pub fn sweep(&self, good: impl Fn(&T) -> bool) {
        let mut connections = self.connections.borrow_mut();
        connections.retain_mut(|connection| {
            connection.since.elapsed() <= POOL_IDLE && good(&connection.admitted) && is_quiet(&mut connection.io)
        });
        if connections.is_empty() {
            connections.shrink_to_fit();
        }
    }
}

/// Neither closed nor with bytes that nobody asked for. Costs no system call unless something has happened.
fn is_quiet(io: &mut Transport) -> bool {
    let mut byte = [0; 1];
    let mut buf = ReadBuf::new(&mut byte);
    let mut nobody = Context::from_waker(Waker::noop());
    matches!(Pin::new(io).poll_read(&mut nobody, &mut buf), Poll::Pending)
}

impl<T> Lease<T> {
    /// The stream.
    pub fn io(&mut self) -> &mut Transport {
        &mut self.io
    }

    /// What it was admitted on.
    #[must_use]
    pub fn admitted(&self) -> &Rc<T> {
        &self.admitted
    }

    /// How long it rested; `None` if it is new.
    #[must_use]
    pub fn rested(&self) -> Option<Duration> {
        self.rested
    }
}

/// What an upstream connection is to a relay.
pub trait Upstream {
    /// The stream.
    fn io(&mut self) -> &mut Transport;
    /// How long it rested; `None` if it is new.
    fn rested(&self) -> Option<Duration>;
    /// An answer's head has come.
    fn answered(&self);
    /// It broke off before, or its client did.
    fn failed(&self, failure: Failure);
    /// The exchange is whole: it can serve another.
    fn give_back(self);
}

impl<T> Lease<T> {
    /// Lets it rest for the next request.
    pub fn give_back(self) {
        let mut connections = self.resting.connections.borrow_mut();
        if connections.len() < MAX_IDLE_PER_KEY {
            connections.push(Connection {
                io: self.io,
                admitted: self.admitted,
                since: Instant::now(),
                open: self.open,
            });
        }
    }
}
