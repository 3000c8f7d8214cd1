//! Calls through an HTTP proxy, as any program makes them: absolute-form requests, and CONNECT for everything else.

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

/// A tunnel to `host:port`; the error of a refused one is `PermissionDenied` for 403.
pub(crate) async fn connect(proxy: SocketAddr, authority: &str) -> io::Result<TcpStream> {
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

/// A gRPC channel through a tunnel; it dials again by itself when the connection ends.
pub(crate) fn channel(proxy: SocketAddr, authority: &'static str) -> Channel {
    Endpoint::from_static("http://payments.shop:50051")
        .timeout(DEADLINE)
        .connect_with_connector_lazy(tower::service_fn(move |_: Uri| async move {
            tokio::time::timeout(DEADLINE, connect(proxy, authority))
                .await?
                .map(TokioIo::new)
        }))
}
