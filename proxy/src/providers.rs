//! Whom CUSTOM policies ask: loaded once per change for all workers, and asked by each worker in its own way.
//!
//! Rego is compiled once and evaluated on the worker, within its limit. A server is asked over a channel of the worker's
//! own, which is opened when it is first needed: in clear beside the proxy, and else over the mesh's own mutual TLS, through
//! this proxy's outbound side. Whatever goes wrong denies.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use postern_authorizer::{AuthorizationClient, Check, Failure, Verdict, client};
#[cfg(feature = "rego")]
use postern_authorizer::{Evaluator, RegoError, RegoPolicy, rego::Source};
use postern_policy::authorizer::{Address, Asks, Authorizer, Server};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};

use crate::limits::IN_PROCESS_BUFFER;
use crate::outbound;
use crate::snapshot::Target;
use crate::worker::Worker;

/// By the name that policies say.
pub type Providers = HashMap<Box<str>, Arc<Provider>>;

/// One of them, as all workers see it.
#[derive(Debug)]
pub struct Provider {
    authorizer: Authorizer,
    #[cfg(feature = "rego")]
    rego: Option<Result<RegoPolicy, RegoError>>,
}

/// Loads them; those that are as they were before are the same objects, so that workers keep their channels.
#[must_use]
pub fn load(authorizers: Vec<Authorizer>, before: &Providers) -> Providers {
    let provider = |authorizer: Authorizer| {
        let key = authorizer.key();
        let same = before.get(key.as_str()).filter(|known| known.authorizer == authorizer);
        let provider = match same {
            Some(same) => Arc::clone(same),
            None => Arc::new(Provider::load(authorizer)),
        };
        (key.into(), provider)
    };
    authorizers.into_iter().map(provider).collect()
}

impl Provider {
    fn load(authorizer: Authorizer) -> Self {
        #[cfg(feature = "rego")]
        let rego = match &authorizer.asks {
            Asks::Rego(rego) => {
                let loaded = RegoPolicy::load(&Source::of(rego));
                if let Err(error) = &loaded {
                    // Control has looked at it as well: it is of another version.
                    tracing::error!(reason = "rego", "authorizer {} denies: {error}", authorizer.key());
                }
                Some(loaded)
            }
            Asks::Server(_) => None,
        };
        Self {
            authorizer,
            #[cfg(feature = "rego")]
            rego,
        }
    }
}

/// How one worker asks.
#[derive(Debug)]
enum Asker {
    Server(AuthorizationClient),
    #[cfg(feature = "rego")]
    Rego(Box<RefCell<Evaluator>>),
    Nobody,
}

/// Those that one worker has asked.
#[derive(Debug, Default)]
pub struct Askers(RefCell<Vec<(Arc<Provider>, Rc<Asker>)>>);

impl Askers {
    fn of(&self, worker: &Rc<Worker>, provider: &Arc<Provider>) -> Rc<Asker> {
        let mut known = self.0.borrow_mut();
        if let Some((_, asker)) = known.iter().find(|(known, _)| Arc::ptr_eq(known, provider)) {
            return Rc::clone(asker);
        }
        // What no policy names any more is ours alone.
        known.retain(|(known, _)| Arc::strong_count(known) > 1);
        let asker = Rc::new(provider.asker(worker));
        known.push((Arc::clone(provider), Rc::clone(&asker)));
        asker
    }
}

impl Provider {
    fn asker(&self, worker: &Rc<Worker>) -> Asker {
        match &self.authorizer.asks {
            Asks::Server(server) => Asker::Server(match &server.address {
                Address::Unix(path) => AuthorizationClient::plain(client::Address::Unix(path.into()), server.timeout),
                Address::Loopback(address) => {
                    AuthorizationClient::plain(client::Address::Tcp(address.to_string()), server.timeout)
                }
                Address::Mesh { host, port } => over_mesh(worker, server, Target::Name(host.as_str().into(), *port)),
            }),
            #[cfg(feature = "rego")]
            Asks::Rego(_) => match &self.rego {
                Some(Ok(rego)) => Asker::Rego(Box::new(RefCell::new(rego.evaluator()))),
                Some(Err(_)) | None => Asker::Nobody,
            },
            #[cfg(not(feature = "rego"))]
            Asks::Rego(_) => Asker::Nobody,
        }
    }

    /// What it says of a request.
    pub(crate) async fn ask(self: &Arc<Self>, worker: &Rc<Worker>, check: &Check) -> Result<Verdict, Failure> {
        let asker = worker.askers.of(worker, self);
        match (&*asker, &self.authorizer.asks) {
            (Asker::Server(client), Asks::Server(server)) => client.decide(&told(check, server)).await,
            #[cfg(feature = "rego")]
            (Asker::Rego(evaluator), _) => evaluator.borrow_mut().decide(check),
            (Asker::Server(_) | Asker::Nobody, _) => {
                Err(Failure::Evaluation("this proxy cannot evaluate its Rego".to_owned()))
            }
        }
    }
}

/// With what its document adds, and without what it leaves out.
fn told<'c>(check: &'c Check, server: &Server) -> Cow<'c, Check> {
    if server.context.is_empty() && server.include_headers.is_none() {
        return Cow::Borrowed(check);
    }
    let mut check = check.clone();
    check.context = server.context.clone();
    if let (Some(http), Some(included)) = (&mut check.http, &server.include_headers) {
        http.headers
            .retain(|name, _| name.starts_with(':') || included.contains(name));
    }
    Cow::Owned(check)
}

/// Connections that wait to be opened: a channel opens one at a time.
const DIALS: usize = 4;

/// gRPC's transport may move between threads, our outbound side may not: a task of the worker stands between them. It ends
/// with the channel.
fn over_mesh(worker: &Rc<Worker>, server: &Server, target: Target) -> AuthorizationClient {
    let (dial, mut dials) = mpsc::channel::<oneshot::Sender<DuplexStream>>(DIALS);
    let worker = Rc::downgrade(worker);
    tokio::task::spawn_local(async move {
        while let Some(answer) = dials.recv().await {
            let Some(worker) = worker.upgrade() else { return };
            let (ours, theirs) = tokio::io::duplex(IN_PROCESS_BUFFER);
            // It ends with either side of the pipe.
            tokio::task::spawn_local(outbound::serve_own(worker, theirs, target.clone()));
            let _ = answer.send(ours);
        }
    });
    AuthorizationClient::over(server.timeout, move || {
        let dial = dial.clone();
        async move {
            let (answer, answered) = oneshot::channel();
            let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
            dial.send(answer).await.map_err(|_| gone(()))?;
            answered.await.map_err(|_| gone(()))
        }
    })
}
