//! Calls as any program makes them: through an HTTP proxy (absolute-form requests, CONNECT for everything else), or by name.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

/// A call that takes longer has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// An answer to CONNECT is short.
const MAX_HEAD: usize = 4_096;

/// How the others are reached.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    /// Through the HTTP proxy at this address: the demo's sidecar.
    Proxy(SocketAddr),
    /// By their own names, which whatever is beneath resolves and carries: a cluster.
    Names,
}

/// A stream to `host:port`; the error of a tunnel that is refused is `PermissionDenied` for 403.
pub(crate) async fn connect(way: Way, authority: &str) -> io::Result<TcpStream> {
    let Way::Proxy(proxy) = way else {
        let socket = TcpStream::connect(authority).await?;
        socket.set_nodelay(true)?;
        return Ok(socket);
    };
    let mut socket = TcpStream::connect(proxy).await?;
    socket.set_nodelay(true)?;
    socket
        .write_all(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes())
        .await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > MAX_HEAD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the proxy's answer is too long",
            ));
        }
        // Byte by byte: what follows the head belongs to the tunnel.
        head.push(socket.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    match head.split(' ').nth(1) {
        Some("200") => Ok(socket),
        Some("403") => Err(io::ErrorKind::PermissionDenied.into()),
        _ => Err(io::Error::other(format!(
            "the proxy answered {}",
            head.lines().next().unwrap_or_default()
        ))),
    }
}

/// A gRPC channel to `host:port`; it dials again by itself when the connection ends.
pub(crate) fn channel(way: Way, authority: &str) -> Result<Channel, tonic::transport::Error> {
    let authority = authority.to_owned();
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))?.timeout(DEADLINE);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let authority = authority.clone();
        async move {
            tokio::time::timeout(DEADLINE, connect(way, &authority))
                .await?
                .map(TokioIo::new)
        }
    })))
}
