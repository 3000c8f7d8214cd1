//! HTTP/1.1 and HTTP/2: one place for their limits, bodies, field hygiene and upgrades; both directions use it.

pub mod answer;
pub mod body;
pub mod client;
pub mod h1;
pub mod headers;
pub mod server;
pub mod shelf;
pub mod target;
pub mod upgrade;

use std::future::Future;

/// Which HTTP a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.1 (and a 1.0 client).
    H1,
    /// HTTP/2 with prior knowledge, or by ALPN.
    H2,
}

/// Runs hyper's tasks on the worker's own thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct OnThisThread;

impl<F: Future + 'static> hyper::rt::Executor<F> for OnThisThread {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}
