//! HTTP/1.1 calls on a kept-alive connection.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::{End, Load, every};

/// How cart is reached.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// Through the mesh.
    Proxy(SocketAddr),
    /// Straight to the app.
    Direct(SocketAddr),
}

type Connection = SendRequest<Empty<Bytes>>;

pub(super) fn repeat(load: &Load, kind: &'static str, rate: u32, way: Way, path: &'static str, expect_denied: bool) {
    let kept: Arc<Mutex<Option<Connection>>> = Arc::default();
    every(load, kind, rate, expect_denied, move || {
        let kept = Arc::clone(&kept);
        async move {
            let mut kept = kept.lock().await;
            match call(&mut kept, way, path).await {
                Ok(200) => End::Allowed,
                Ok(403) => End::Denied,
                Ok(status) => End::Failed(format!("status {status}")),
                Err(error) => {
                    *kept = None;
                    End::Failed(error.to_string())
                }
            }
        }
    });
}

async fn call(
    kept: &mut Option<Connection>,
    way: Way,
    path: &str,
) -> Result<u16, Box<dyn std::error::Error + Send + Sync>> {
    let (address, target) = match way {
        Way::Proxy(address) => (address, format!("http://cart.shop{path}")),
        Way::Direct(address) => (address, path.to_owned()),
    };
    // A connection that the other side has closed in good order is replaced, as every HTTP client does.
    let mut connection = match kept.take() {
        Some(mut connection) => match connection.ready().await {
            Ok(()) => connection,
            Err(_) => open(address).await?,
        },
        None => open(address).await?,
    };
    let request = Request::get(target).header("host", "cart.shop").body(Empty::new())?;
    let response = connection.send_request(request).await?;
    let status = response.status().as_u16();
    response.into_body().collect().await?;
    *kept = Some(connection);
    Ok(status)
}

async fn open(address: SocketAddr) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    Ok(sender)
}
