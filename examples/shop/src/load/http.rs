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
use crate::through::Way;

/// How a server is reached.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    /// As cart, through the mesh.
    Cart(Way),
    /// Straight to the app.
    Direct(SocketAddr),
}

/// The authority of cart.
const CART: &str = "cart.shop";

pub(crate) type Connection = SendRequest<Empty<Bytes>>;

pub(super) fn repeat(load: &Load, kind: &'static str, rate: u32, to: Target, path: &'static str, expect_denied: bool) {
    let kept: Arc<Mutex<Option<Connection>>> = Arc::default();
    every(load, kind, rate, expect_denied, move || {
        let kept = Arc::clone(&kept);
        async move {
            let mut kept = kept.lock().await;
            match call_cart(&mut kept, to, path).await {
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

async fn call_cart(kept: &mut Option<Connection>, to: Target, path: &str) -> Result<u16, CallError> {
    match to {
        Target::Cart(Way::Proxy(proxy)) => {
            let target = format!("http://{CART}{path}");
            call(kept, &proxy.to_string(), CART, &target).await
        }
        Target::Cart(Way::Names) => call(kept, "cart.shop:80", CART, path).await,
        Target::Direct(address) => call(kept, &address.to_string(), CART, path).await,
    }
}

pub(crate) type CallError = Box<dyn std::error::Error + Send + Sync>;

/// GET of `target` on the connection that is kept, or on a new one to `address`; the answer's status.
pub(crate) async fn call(
    kept: &mut Option<Connection>,
    address: &str,
    host: &str,
    target: &str,
) -> Result<u16, CallError> {
    // A connection that the other side has closed in good order is replaced, as every HTTP client does.
    let mut connection = match kept.take() {
        Some(mut connection) => match connection.ready().await {
            Ok(()) => connection,
            Err(_) => open(address).await?,
        },
        None => open(address).await?,
    };
    let request = Request::get(target).header("host", host).body(Empty::new())?;
    let response = connection.send_request(request).await?;
    let status = response.status().as_u16();
    response.into_body().collect().await?;
    *kept = Some(connection);
    Ok(status)
}

async fn open(address: &str) -> Result<Connection, CallError> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    Ok(sender)
}
