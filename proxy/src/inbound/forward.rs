//! To the app, with a [`Permit`].

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hashbrown::HashMap;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::TcpStream;

use super::Connection;
use super::authorize::Permit;
use crate::exchange::Exchange;
use crate::http::Version;
use crate::http::body::Body;
use crate::http::client;
use crate::http::h1::resting::{self, Resting, Upstream};
use crate::http::shelf::{self, Shelf};
use crate::limits::{CONNECT_DEADLINE, MAX_APP_CONNECTIONS};
use crate::outcome::Failure;
use crate::stream::{Rewound, Stream, Transport};

/// A connection to our app; it is admitted on nothing that could expire.
pub type Lease = shelf::Lease<()>;

/// Where the app listens, and what is spoken there.
type Key = (SocketAddr, Version);

/// Connections to our app, per worker.
#[derive(Debug, Default)]
pub struct AppPool {
    shelves: RefCell<HashMap<Key, Rc<Shelf<()>>>>,
    /// Of the HTTP/1 relay.
    relayed: RefCell<HashMap<SocketAddr, Rc<Resting<()>>>>,
}

impl AppPool {
    fn shelf(&self, key: Key) -> Rc<Shelf<()>> {
        Rc::clone(self.shelves.borrow_mut().entry(key).or_default())
    }

    /// Closes what has rested too long; true if anything is left.
    pub(crate) fn sweep(&self) -> bool {
        let mut shelves = self.shelves.borrow_mut();
        shelves.retain(|_, shelf| shelf.sweep(|()| true) || Rc::strong_count(shelf) > 1 || shelf.open() > 0);
        let mut relayed = self.relayed.borrow_mut();
        relayed.retain(|_, resting| {
            resting.sweep(|()| true);
            Rc::strong_count(resting) > 1 || resting.open() > 0
        });
        shelves.values().any(|shelf| shelf.open() > 0) || relayed.values().any(|resting| resting.open() > 0)
    }

    fn resting(&self, app: SocketAddr) -> Rc<Resting<()>> {
        Rc::clone(self.relayed.borrow_mut().entry(app).or_default())
    }
}

/// A permit that was consumed for one relayed request.
#[derive(Debug)]
pub(super) struct Admitted(());

/// Lets a request through to the relay: consumes its permit, which the exchange keeps.
pub(super) fn admit(permit: Permit, exchange: &Exchange) -> Admitted {
    exchange.admit(permit);
    Admitted(())
}

/// The relay's connection to our app.
#[derive(Debug)]
pub(crate) struct AppLease(resting::Lease<()>);

impl Upstream for AppLease {
    fn io(&mut self) -> &mut Transport {
        self.0.io()
    }
    fn rested(&self) -> Option<Duration> {
        self.0.rested()
    }
    fn answered(&self) {}
    fn failed(&self, _: Failure) {}
    fn give_back(self) {
        self.0.give_back();
    }
}

/// The app's side of a relayed request.
pub(super) async fn relay(connection: &Connection, _: &Admitted, fresh: bool) -> Result<AppLease, Failure> {
    let resting = connection.worker.apps.resting(connection.port.app);
    if !fresh && let Some(lease) = resting.take(|()| true) {
        return Ok(AppLease(lease));
    }
    check_bound(resting.open())?;
    let open = resting.making();
    let tcp = connect(connection.port.app).await?;
    let io = Transport::Plain(Rewound::new(bytes::Bytes::new(), Stream::Tcp(tcp)));
    Ok(AppLease(resting.admit(open, io, ())))
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
    let app = connection.port.app;
    let shelf = connection.worker.apps.shelf((app, version));
    while let Some(mut lease) = shelf.take(|()| true) {
        match lease.send(request).await {
            Ok(response) => return Ok((response, lease)),
            Err(error) => match error.unsent {
                Some(unsent) => request = *unsent,
                None => return Err(error.failure),
            },
        }
    }
    check_bound(shelf.open())?;
    let sender = client::open(connect(app).await?, version).await?;
    let mut lease = shelf.admit(sender, ());
    match lease.send(request).await {
        Ok(response) => Ok((response, lease)),
        Err(error) => Err(error.failure),
    }
}

fn check_bound(open: usize) -> Result<(), Failure> {
    if open < MAX_APP_CONNECTIONS {
        Ok(())
    } else {
        Err(Failure::Overloaded)
    }
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
