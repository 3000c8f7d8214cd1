//! Where connections come in: accepts, finds out what each is for, hands it to the least loaded worker.
//!
//! ```text
//! explicit   one listener per workload port (opened and closed as control says), and one for our app
//! redirect   inbound and outbound, IPv4 and IPv6; original_dst says where each was meant to go
//! ```

mod sockets;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::task::{AbortHandle, JoinSet};

pub(crate) use self::sockets::Listener;
use crate::metrics::{Direction, Metrics};
use crate::original_dst::{OwnAddresses, original_dst};
use crate::outcome::Failure;
use crate::snapshot::{Port, Protocol, Shared};
use crate::worker::{self, Accepted, Ended};

/// Hands sockets to workers.
#[derive(Debug)]
pub(crate) struct Acceptor {
    workers: Vec<worker::Handle>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    /// Ports that we listen on: never a destination.
    own_ports: HashSet<u16>,
    own_addresses: Mutex<OwnAddresses>,
}

impl Acceptor {
    pub(crate) fn new(
        workers: Vec<worker::Handle>,
        shared: Arc<Shared>,
        metrics: Arc<Metrics>,
        own_ports: HashSet<u16>,
    ) -> Self {
        Self {
            workers,
            shared,
            metrics,
            own_ports,
            own_addresses: Mutex::default(),
        }
    }

    /// Waits for the workers' ends; blocks. Nothing is handed over any more.
    pub(crate) fn join(self) -> Ended {
        let ended = self.workers.into_iter().map(worker::Handle::join);
        Ended {
            cut: ended.map(|ended| ended.cut).sum(),
        }
    }

    /// Connections open now.
    pub(crate) fn open(&self) -> usize {
        self.workers.iter().map(worker::Handle::open).sum()
    }

    /// Of these, peers' to our app.
    pub(crate) fn open_inbound(&self) -> usize {
        self.workers.iter().map(worker::Handle::open_inbound).sum()
    }

    fn hand_over(&self, accepted: Accepted) {
        if self.shared.is_cut_off() {
            return self.turn_away(accepted);
        }
        let Some(worker) = self.workers.iter().min_by_key(|worker| worker.open()) else {
            return;
        };
        if let Err(refused) = worker.hand_over(accepted) {
            let direction = match refused {
                Accepted::Inbound { .. } => Direction::Inbound,
                Accepted::Outbound { .. } | Accepted::Explicit { .. } => Direction::Outbound,
            };
            self.refuse(direction, Failure::Overloaded);
        }
    }

    /// Whoever it is from: this workload is cut off.
    fn turn_away(&self, accepted: Accepted) {
        let (socket, direction) = match accepted {
            Accepted::Inbound { socket, .. } => (socket, Direction::Inbound),
            Accepted::Outbound { socket, .. } | Accepted::Explicit { socket } => (socket, Direction::Outbound),
        };
        self.refuse(direction, Failure::SelfQuarantined);
        sockets::reset(socket);
    }

    fn refuse(&self, direction: Direction, failure: Failure) {
        self.metrics.refused_connection(direction, failure);
    }

    /// A connection to our app's end of explicit capture.
    fn explicit(&self, socket: TcpStream) {
        self.hand_over(Accepted::Explicit { socket });
    }

    /// A connection from somewhere to this workload.
    fn captured_inbound(&self, socket: TcpStream) {
        match original_dst(&socket) {
            Ok(original) if self.is_ours(&socket, original) && !self.own_ports.contains(&original.port()) => {
                let port = self.port_of(original);
                self.hand_over(Accepted::Inbound { socket, port });
            }
            // Dialled directly, not captured; or meant for somebody else, whom we would be a relay to.
            Ok(original) => {
                // Counted; a line for each would let a peer fill the log.
                tracing::debug!(%original, "refused an inbound connection that is not for this workload");
                self.refuse(Direction::Inbound, Failure::UnknownDestination);
                sockets::reset(socket);
            }
            Err(error) => {
                tracing::debug!(%error, "refused an inbound connection that was not captured");
                self.refuse(Direction::Inbound, Failure::UnknownDestination);
                sockets::reset(socket);
            }
        }
    }

    /// A connection from our app to somewhere.
    fn captured_outbound(&self, socket: TcpStream) {
        match original_dst(&socket) {
            Ok(original) if self.own_ports.contains(&original.port()) && self.is_ours(&socket, original) => {
                // Counted; a line for each would let an app fill the log.
                tracing::debug!(%original, "refused an outbound connection to the proxy itself");
                self.refuse(Direction::Outbound, Failure::UnknownDestination);
                sockets::reset(socket);
            }
            Ok(original) => self.hand_over(Accepted::Outbound { socket, original }),
            Err(error) => {
                tracing::debug!(%error, "refused an outbound connection that was not captured");
                self.refuse(Direction::Outbound, Failure::UnknownDestination);
                sockets::reset(socket);
            }
        }
    }

    fn is_ours(&self, socket: &TcpStream, original: SocketAddr) -> bool {
        // The address that the kernel redirected to is most often the one that was dialled.
        if socket
            .local_addr()
            .is_ok_and(|local| local.ip().to_canonical() == original.ip())
        {
            return true;
        }
        self.own_addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(original.ip(), Instant::now())
    }

    /// The workload's port by its number; one that is not declared is detected and judged under its own number. The app is
    /// dialled where the peer meant to reach it: our own UID is not captured again.
    fn port_of(&self, original: SocketAddr) -> Port {
        let policy = self.shared.policy.load();
        let declared = policy
            .as_ref()
            .and_then(|policy| policy.workload.ports.iter().find(|port| port.number == original.port()));
        Port {
            name: declared.map_or_else(|| "".into(), |port| Arc::clone(&port.name)),
            number: original.port(),
            protocol: declared.map_or(Protocol::Detect, |port| port.protocol),
            listen: original,
            app: original,
        }
    }
}

/// The listeners of a process; dropped, they close.
#[derive(Debug)]
pub(crate) struct Listeners {
    acceptor: Arc<Acceptor>,
    tasks: JoinSet<()>,
    by_port: HashMap<SocketAddr, Open>,
    captured_inbound: Vec<AbortHandle>,
}

/// One workload port's listener.
#[derive(Debug)]
struct Open {
    /// Read at each accept: a change of protocol needs no new listener.
    port: Arc<ArcSwap<Port>>,
    task: AbortHandle,
}

impl Listeners {
    pub(crate) fn new(acceptor: Arc<Acceptor>) -> Self {
        Self {
            acceptor,
            tasks: JoinSet::new(),
            by_port: HashMap::new(),
            captured_inbound: Vec::new(),
        }
    }

    /// Explicit capture: our app's end.
    pub(crate) fn explicit(&mut self, listener: Listener) {
        self.listen(listener, Acceptor::explicit);
    }
    /// Redirect capture: from peers.
    pub(crate) fn inbound(&mut self, listener: Listener) {
        let task = self.listen(listener, Acceptor::captured_inbound);
        self.captured_inbound.push(task);
    }
    /// Redirect capture: from our app.
    pub(crate) fn outbound(&mut self, listener: Listener) {
        self.listen(listener, Acceptor::captured_outbound);
    }

    fn listen(&mut self, listener: Listener, serve: fn(&Acceptor, TcpStream)) -> AbortHandle {
        let acceptor = Arc::clone(&self.acceptor);
        self.tasks
            .spawn(listener.accept(move |socket| serve(&acceptor, socket)))
    }

    /// Explicit capture: opens and closes listeners until they are what the workload's ports say. What cannot be opened
    /// is told; the rest stands, and another call tries again.
    pub(crate) fn follow(&mut self, ports: &[Port]) -> Result<(), String> {
        let wanted: HashSet<SocketAddr> = ports.iter().map(|port| port.listen).collect();
        for (address, open) in self.by_port.extract_if(|address, _| !wanted.contains(address)) {
            // Connections that it accepted go on.
            open.task.abort();
            tracing::info!(%address, "no longer listening: the workload's ports have changed");
        }
        let mut failures = Vec::new();
        for port in ports {
            match self.by_port.get(&port.listen) {
                Some(open) => {
                    if **open.port.load() != *port {
                        open.port.store(Arc::new(port.clone()));
                    }
                }
                None => match Listener::bind(port.listen) {
                    Ok(listener) => self.open(listener, port.clone()),
                    Err(error) => failures.push(format!("{} for port {}: {error}", port.listen, port.number)),
                },
            }
        }
        // Tasks of closed listeners.
        while self.tasks.try_join_next().is_some() {}
        if failures.is_empty() {
            Ok(())
        } else {
            Err(format!("cannot listen on {}", failures.join("; ")))
        }
    }

    fn open(&mut self, listener: Listener, port: Port) {
        let address = port.listen;
        let port = Arc::new(ArcSwap::from_pointee(port));
        let (acceptor, current) = (Arc::clone(&self.acceptor), Arc::clone(&port));
        let task = self.tasks.spawn(listener.accept(move |socket| {
            let port = Port::clone(&current.load());
            acceptor.hand_over(Accepted::Inbound { socket, port });
        }));
        self.by_port.insert(address, Open { port, task });
    }

    /// Where workload ports are listened on now.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<SocketAddr> = self.by_port.keys().copied().collect();
        addresses.sort();
        addresses
    }

    /// No more connections of peers; our app goes on.
    pub(crate) fn close_inbound(&mut self) {
        let explicit = self.by_port.drain().map(|(_, open)| open.task);
        let captured = self.captured_inbound.drain(..);
        explicit.chain(captured).for_each(|task| task.abort());
    }

    /// Closes every listener.
    pub(crate) async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Binds all of `addresses`. An IPv6 address where the kernel has no IPv6 is left out, if another address remains.
pub(crate) fn bind_all(addresses: &[SocketAddr]) -> Result<Vec<Listener>, String> {
    let mut listeners = Vec::new();
    let mut left_out = None;
    for address in addresses {
        match Listener::bind(*address) {
            Ok(listener) => listeners.push(listener),
            Err(error) if address.is_ipv6() && no_ipv6(&error) => {
                tracing::info!(%address, "not listening: this host has no IPv6");
                left_out = Some(error);
            }
            Err(error) => return Err(format!("cannot listen on {address}: {error}")),
        }
    }
    match left_out {
        Some(error) if listeners.is_empty() => Err(format!("cannot listen on {addresses:?}: {error}")),
        _ => Ok(listeners),
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    matches!(
        errno,
        Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL)
    )
}
