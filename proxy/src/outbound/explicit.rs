//! The explicit port: an HTTP proxy (absolute-form requests) and CONNECT, as `HTTP_PROXY` and `ALL_PROXY` make programs
//! speak. Needs no privileges; names resolve through control.

use std::rc::Rc;

use bytes::Bytes;

use super::http::{self, Aim, Tunnel};
use super::{relay, serve_fixed};
use crate::http::Version;
use crate::stream::{Rewound, Stream};
use crate::worker::Worker;

/// Serves one client to its end.
pub(super) async fn serve(worker: &Rc<Worker>, stream: Stream) {
    let (address, ours) = (stream.peer_addr(), stream.local_addr());
    let client = Rewound::new(Bytes::new(), stream);
    let served = http::serve(worker, client, Version::H1, Aim::Named(ours), address).await;
    let Some((client, tunnel)) = served else { return };
    // What the client sent right behind its CONNECT comes first.
    let client = Rewound::new(client.first, client.io);
    match tunnel {
        Tunnel::Opened(route, opened, exchange) => relay(worker, client, &route, &exchange, Some(opened)).await,
        Tunnel::Inner(target) => serve_fixed(worker, client, target, address).await,
    }
}
