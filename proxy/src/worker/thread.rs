//! A worker's thread: takes accepted sockets, runs each as a task of its own, ends when told.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};

use super::{Accepted, Worker};
use crate::access_log::AccessLog;
use crate::drain::{Drain, Phase};
use crate::metrics::{self, Metrics};
use crate::snapshot::Shared;
use crate::stream::Stream;
use crate::{inbound, outbound};

/// TLS handshakes with post-quantum keys are the deepest call chains; they need under 200 KiB.
const STACK: usize = 1024 * 1024;
/// Sockets handed over and not yet picked up; a worker that is this far behind is overloaded.
const HAND_OVER: usize = 1_024;

/// Names outside of the mesh are looked up by blocking calls; more of them wait their turn.
const LOOKUP_THREADS: usize = 4;

/// The acceptor's end of a worker.
#[derive(Debug)]
pub struct Handle {
    sockets: mpsc::Sender<(Accepted, Open)>,
    open: Arc<Counts>,
    most: usize,
    thread: JoinHandle<Ended>,
}

/// Connections open now.
#[derive(Debug, Default)]
struct Counts {
    all: AtomicUsize,
    inbound: AtomicUsize,
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ended {
    /// Connections that were cut at the deadline.
    pub cut: usize,
}

/// Starts a worker's thread, for at most `most` connections.
pub fn start(
    id: usize,
    shared: Arc<Shared>,
    access_log: AccessLog,
    metrics: Arc<Metrics>,
    drain: Drain,
    most: usize,
) -> io::Result<Handle> {
    let (sockets, handed_over) = mpsc::channel(HAND_OVER);
    let open = Arc::new(Counts::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(LOOKUP_THREADS)
        .build()?;
    let thread = std::thread::Builder::new()
        .name(format!("worker-{id}"))
        .stack_size(STACK)
        .spawn(move || {
            metrics::count_as_worker(id);
            let worker = Worker::new(id, shared, access_log, metrics, drain);
            let ended = LocalSet::new().block_on(&runtime, serve(worker, handed_over));
            // A name lookup may hang in a blocking thread; it must not hold up the exit.
            runtime.shutdown_background();
            ended
        })?;
    Ok(Handle {
        sockets,
        open,
        most,
        thread,
    })
}

impl Handle {
    /// Connections that it serves now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.all.load(Ordering::Relaxed)
    }

    /// Of these, how many are peers' to our app.
    #[must_use]
    pub fn open_inbound(&self) -> usize {
        self.open.inbound.load(Ordering::Relaxed)
    }

    /// Hands a socket over; it is closed at once where the worker is at its bound or ending.
    pub fn hand_over(&self, accepted: Accepted) -> Result<(), Accepted> {
        if self.open() >= self.most {
            return Err(accepted);
        }
        let open = Open::count(&self.open, &accepted);
        self.sockets
            .try_send((accepted, open))
            .map_err(|refused| refused.into_inner().0)
    }

    /// Waits for its end (after the drain signal); blocks.
    #[must_use]
    pub fn join(self) -> Ended {
        drop(self.sockets);
        // The thread contains panics of connections; one of its own is a fault that has already been printed.
        self.thread.join().unwrap_or_default()
    }
}

/// Counts a connection as open until dropped, whether it ends, panics, is cut or was never picked up.
#[derive(Debug)]
struct Open {
    counts: Arc<Counts>,
    inbound: bool,
}

impl Open {
    fn count(counts: &Arc<Counts>, accepted: &Accepted) -> Self {
        let inbound = matches!(accepted, Accepted::Inbound { .. });
        counts.all.fetch_add(1, Ordering::Relaxed);
        counts.inbound.fetch_add(usize::from(inbound), Ordering::Relaxed);
        Self {
            counts: Arc::clone(counts),
            inbound,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.counts.all.fetch_sub(1, Ordering::Relaxed);
        self.counts
            .inbound
            .fetch_sub(usize::from(self.inbound), Ordering::Relaxed);
    }
}

async fn serve(worker: Rc<Worker>, mut handed_over: mpsc::Receiver<(Accepted, Open)>) -> Ended {
    let mut connections = JoinSet::new();
    let mut drain = worker.drain.clone();
    loop {
        // Every branch is cancel-safe: nothing is taken before a branch is chosen.
        tokio::select! {
            biased;
            () = drain.reached(Phase::Cut) => break,
            Some(ended) = connections.join_next() => note(&worker, ended),
            accepted = handed_over.recv() => match accepted {
                Some((accepted, open)) => {
                    let worker = Rc::clone(&worker);
                    connections.spawn_local(async move {
                        let _open = open;
                        dispatch(worker, accepted).await;
                    });
                }
                // Listeners are gone: only what is in flight is left.
                None => break,
            },
        }
    }
    loop {
        tokio::select! {
            biased;
            ended = connections.join_next() => match ended {
                Some(ended) => note(&worker, ended),
                None => break,
            },
            () = drain.reached(Phase::Cut) => break,
        }
    }
    let cut = connections.len();
    connections.shutdown().await;
    Ended { cut }
}

fn note(worker: &Worker, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        worker.metrics.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(worker = worker.id, "a connection task panicked; the others go on");
    }
}

async fn dispatch(worker: Rc<Worker>, accepted: Accepted) {
    let stream = |socket| TcpStream::from_std(socket).map(Stream::Tcp);
    let registered = match accepted {
        Accepted::Inbound { socket, port } => match stream(socket) {
            Ok(stream) => return inbound::serve(worker, stream, port).await,
            Err(error) => error,
        },
        Accepted::Outbound { socket, original } => match stream(socket) {
            Ok(stream) => return outbound::serve_captured(worker, stream, original).await,
            Err(error) => error,
        },
        Accepted::Explicit { socket } => match stream(socket) {
            Ok(stream) => return outbound::serve_explicit(worker, stream).await,
            Err(error) => error,
        },
    };
    tracing::warn!(reason = "register", error = %registered, "a socket could not be served");
}
