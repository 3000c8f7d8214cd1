//! WebSocket and other upgrades: a tunnel only after the upstream's 101 (CVE-2026-2833).

use std::rc::Rc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::server::Upgraded;
use crate::exchange::Exchange;
use crate::opaque;
use crate::outcome::Failure;
use crate::stream::Rewound;

/// The upstream's side of an upgrade that it agreed to, until the client's side is free.
#[derive(Debug)]
pub struct Pending {
    /// Resolves once the upstream's connection is free.
    pub upstream: OnUpgrade,
    /// What it is recorded as.
    pub exchange: Rc<Exchange>,
}

/// Runs the tunnel to its end.
pub async fn tunnel<IO>(client: Upgraded<IO>, pending: Pending) -> Result<(), Failure>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(upstream) = pending.upstream.await else {
        pending.exchange.fail(Failure::UpstreamGone);
        return Err(Failure::UpstreamGone);
    };
    let client = Rewound::new(client.first, client.io);
    opaque::relay(client, TokioIo::new(upstream), &pending.exchange).await
}
