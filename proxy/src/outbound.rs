//! From our app to a peer.

pub mod pool;

use std::net::SocketAddr;
use std::rc::Rc;

use crate::stream::Stream;
use crate::worker::Worker;

/// Serves one captured connection of our app to its end.
pub async fn serve_captured(worker: Rc<Worker>, stream: Stream, original: SocketAddr) {
    let _ = (worker, stream, original);
    todo!()
}

/// Serves one connection to the explicit port (HTTP proxy and CONNECT) to its end.
pub async fn serve_explicit(worker: Rc<Worker>, stream: Stream) {
    let _ = (worker, stream);
    todo!()
}
