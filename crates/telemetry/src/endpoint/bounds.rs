//! How many connections the endpoint has at once, and the socket that they come in by.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

/// Scrapers and kubelets are few; each connection may cost a dial to the app as well, and a proxy keeps 256 descriptors
/// for all this.
pub(super) const MAX_CONNECTIONS: usize = 96;
/// Of these, one address: a stranger leaves room for the kubelet, whose address it does not have.
pub(super) const MAX_PER_ADDRESS: usize = 32;
/// Connections that wait for an accept.
const BACKLOG: i32 = 128;

/// Counts what is open.
#[derive(Debug, Clone, Default)]
pub(super) struct Bounds(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One connection's place; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    bounds: Bounds,
    address: IpAddr,
}

impl Bounds {
    /// A place for a connection from `address`, if there is one.
    pub(super) fn admit(&self, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = open.by_address.get(&address).copied().unwrap_or_default();
        if open.all >= MAX_CONNECTIONS || own >= MAX_PER_ADDRESS {
            return None;
        }
        open.all += 1;
        open.by_address.insert(address, own + 1);
        Some(Place {
            bounds: self.clone(),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.bounds.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        if let Entry::Occupied(mut own) = open.by_address.entry(self.address) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

/// Binds `address`; `[::]` takes IPv4 as well, whatever `net.ipv6.bindv6only` says, and means `0.0.0.0` where there is no
/// IPv6.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let everywhere = address.is_ipv6() && address.ip().is_unspecified();
    match bind_as(address, everywhere) {
        Err(error) if everywhere && is_lack_of_ipv6(&error) => {
            bind_as((Ipv4Addr::UNSPECIFIED, address.port()).into(), false)
        }
        done => done,
    }
}

fn bind_as(address: SocketAddr, both: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    // A restart must not wait for connections of the process before.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!both)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Does the kernel, or this network namespace, have no IPv6?
fn is_lack_of_ipv6(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    matches!(
        errno,
        Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL)
    )
}
