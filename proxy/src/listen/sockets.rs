//! Listening sockets, and what is done with each accepted one before anybody reads it.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::time::sleep;

/// Connections that wait for an accept; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;
/// Out of descriptors or memory: the backlog waits, we do not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound socket, not accepting yet.
#[derive(Debug)]
pub(crate) struct Listener(TcpListener);

impl Listener {
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
        // A restart must not wait for connections of the process before.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self(socket.into()))
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Accepts for ever. Sockets leave this thread's reactor at once (two system calls, small beside a handshake): a
    /// worker's takes them.
    pub(crate) async fn accept(self, mut serve: impl FnMut(TcpStream)) {
        let listener = match tokio::net::TcpListener::from_std(self.0) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "a listener could not be registered");
                return;
            }
        };
        loop {
            match listener.accept().await {
                Ok((socket, _)) => match socket.into_std().and_then(prepare) {
                    Ok(socket) => serve(socket),
                    Err(error) => tracing::debug!(%error, "an accepted connection was gone at once"),
                },
                Err(error) if is_the_connections_own(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept; waiting {ACCEPT_PAUSE:?}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

fn prepare(socket: TcpStream) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// accept(2): errors already pending on the new connection are passed on, and are of no concern to the listener.
fn is_the_connections_own(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// Ends a connection with RST: a refusal that must not look like an answer.
pub(super) fn reset(socket: TcpStream) {
    // Failing leaves an ordinary close.
    let _ = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}
