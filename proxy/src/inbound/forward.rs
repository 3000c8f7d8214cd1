//! To the app, with a [`Permit`].

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use hashbrown::HashMap;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::TcpStream;

use super::Connection;
use super::authorize::Permit;
use crate::exchange::Exchange;
use crate::http::Version;
use crate::http::body::Body;
use crate::http::client::{self, Sender};
use crate::limits::{CONNECT_DEADLINE, MAX_IDLE_PER_KEY, POOL_IDLE};
use crate::outcome::Failure;

/// Idle connections to our app, per worker.
#[derive(Debug, Default)]
pub struct AppPool {
    idle: Rc<RefCell<HashMap<(SocketAddr, Version), Vec<Idle>>>>,
}

#[derive(Debug)]
struct Idle {
    sender: Sender,
    since: Instant,
}

/// A connection in use; dropped, it goes back to its pool if it can serve again.
#[derive(Debug)]
pub struct Lease {
    sender: Option<Sender>,
    key: (SocketAddr, Version),
    idle: Rc<RefCell<HashMap<(SocketAddr, Version), Vec<Idle>>>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(sender) = self.sender.take() else {
            return;
        };
        if sender.is_closed() || matches!(sender, Sender::H2(_)) {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let stack = idle.entry(self.key).or_default();
        if stack.len() < MAX_IDLE_PER_KEY {
            stack.push(Idle {
                sender,
                since: Instant::now(),
            });
        }
    }
}

impl AppPool {
    /// The most recently used connection that can take a request now.
    fn take(&self, key: (SocketAddr, Version)) -> Option<Lease> {
        let mut idle = self.idle.borrow_mut();
        let stack = idle.get_mut(&key)?;
        if key.1 == Version::H2 {
            stack.retain(|known| !known.sender.is_closed());
            let sender = stack.iter().find(|known| known.sender.is_ready())?.sender.share()?;
            return Some(self.lease(sender, key));
        }
        if stack.first().is_some_and(|oldest| oldest.since.elapsed() > POOL_IDLE) {
            stack.retain(|known| known.since.elapsed() <= POOL_IDLE && !known.sender.is_closed());
        }
        while let Some(at) = stack
            .iter()
            .rposition(|known| known.sender.is_ready() || known.sender.is_closed())
        {
            let known = stack.swap_remove(at);
            if !known.sender.is_closed() {
                return Some(self.lease(known.sender, key));
            }
        }
        None
    }

    async fn dial(&self, key: (SocketAddr, Version)) -> Result<Lease, Failure> {
        let tcp = connect(key.0).await?;
        let sender = client::open(tcp, key.1).await?;
        if let Some(shared) = sender.share() {
            let mut idle = self.idle.borrow_mut();
            let stack = idle.entry(key).or_default();
            if stack.len() < MAX_IDLE_PER_KEY {
                stack.push(Idle {
                    sender: shared,
                    since: Instant::now(),
                });
            }
        }
        Ok(self.lease(sender, key))
    }

    fn lease(&self, sender: Sender, key: (SocketAddr, Version)) -> Lease {
        Lease {
            sender: Some(sender),
            key,
            idle: Rc::clone(&self.idle),
        }
    }
}

async fn connect(app: SocketAddr) -> Result<TcpStream, Failure> {
    let connected = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(app)).await;
    let tcp = connected
        .map_err(|_| Failure::ConnectTimeout)?
        .map_err(|_| Failure::ConnectFailed)?;
    // An answer's last small segment must not wait for an acknowledgement.
    let _ = tcp.set_nodelay(true);
    Ok(tcp)
}

/// Sends an admitted request to the app. A request that an idle connection did not take (the app closed it) goes over
/// a fresh one: not a byte of it had been written.
pub async fn request(
    connection: &Connection,
    permit: Permit,
    mut request: Request<Body>,
    version: Version,
    exchange: &Rc<Exchange>,
) -> Result<(Response<Incoming>, Lease), Failure> {
    exchange.admit(permit);
    let pool = &connection.worker.apps;
    let key = (connection.port.app, version);
    while let Some(mut lease) = pool.take(key) {
        match send(&mut lease, request).await {
            Ok(response) => return Ok((response, lease)),
            Err((_, Some(unsent))) => request = unsent,
            Err((failure, None)) => return Err(failure),
        }
    }
    let mut lease = pool.dial(key).await?;
    match send(&mut lease, request).await {
        Ok(response) => Ok((response, lease)),
        Err((failure, _)) => Err(failure),
    }
}

async fn send(
    lease: &mut Lease,
    request: Request<Body>,
) -> Result<Response<Incoming>, (Failure, Option<Request<Body>>)> {
    let Some(sender) = &mut lease.sender else {
        return Err((Failure::UpstreamGone, Some(request)));
    };
    let sent = sender.send(request).await;
    sent.map_err(|error| {
        // It will not serve again: do not pool it.
        lease.sender = None;
        (error.failure, error.unsent.map(|unsent| *unsent))
    })
}

/// Opens the app's side of an admitted stream.
pub async fn open_stream(
    connection: &Connection,
    permit: Permit,
    exchange: &Rc<Exchange>,
) -> Result<TcpStream, Failure> {
    exchange.admit(permit);
    connect(connection.port.app).await
}
