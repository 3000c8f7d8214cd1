//! One stream with control, over mTLS under our current SVID.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use postern_api::ca_client::{ALPN, control_id};
use postern_api::control::v1 as wire;
use postern_api::transport::{self, DialError};
use postern_identity::tls::client_config;
use postern_identity::{Expected, TrustDomain};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use wire::proxy_message::Message;

use super::convert;
use crate::snapshot::{Identity, Shared, Target};

/// Messages to control that wait for the network; past it control is stuck and the stream is made anew.
const OUTGOING: usize = 8 * 1024;
/// All policies of one workload in one message (10,000 rules are under 2 MiB).
const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// Control answers a new stream at once.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);

/// An open stream.
#[derive(Debug)]
pub(super) struct Session {
    /// The generation of our SVID that it was opened with.
    pub(super) generation: u64,
    /// When it was opened.
    pub(super) since: Instant,
    pub(super) incoming: Streaming<wire::ControlMessage>,
    outgoing: Option<mpsc::Sender<wire::ProxyMessage>>,
    targets: HashMap<u64, Target>,
    last_id: u64,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("cannot reach control")]
    Dial(#[from] DialError),
    #[error("cannot speak with control: {0}")]
    Local(String),
    #[error("control took longer than {OPEN_DEADLINE:?} to answer")]
    TooSlow,
    #[error("control refuses the stream: {}", .0.message())]
    Refused(Status),
}

/// What it takes to open one.
#[derive(Debug, Clone)]
pub(super) struct Opener {
    pub(super) address: String,
    pub(super) trust_domain: TrustDomain,
    pub(super) shared: Arc<Shared>,
}

impl Opener {
    pub(super) async fn open(self, identity: Arc<Identity>, hello: wire::Hello) -> Result<Session, OpenError> {
        let local = |error: &dyn std::fmt::Display| OpenError::Local(error.to_string());
        let trust = &self.shared.trust;
        let config = client_config(Some(&identity.svid), Arc::clone(trust), ALPN).map_err(|e| local(&e))?;
        let expected = Expected {
            ids: vec![control_id(&self.trust_domain).map_err(|e| local(&e))?],
            instance: None,
        };
        let channel = transport::connect(&self.address, config, trust, &expected).await?;
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        let mut client = wire::control_client::ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let first = wire::ProxyMessage {
            message: Some(Message::Hello(hello)),
        };
        outgoing.try_send(first).map_err(|e| local(&e))?;
        let incoming = timeout(OPEN_DEADLINE, client.connect(ReceiverStream::new(messages)))
            .await
            .map_err(|_| OpenError::TooSlow)?
            .map_err(OpenError::Refused)?
            .into_inner();
        Ok(Session {
            generation: identity.generation,
            since: Instant::now(),
            incoming,
            outgoing: Some(outgoing),
            targets: HashMap::new(),
            last_id: 0,
        })
    }
}

impl Session {
    /// Queues a message; false if the stream is stuck or gone.
    pub(super) fn send(&self, message: Message) -> bool {
        let message = wire::ProxyMessage { message: Some(message) };
        self.outgoing
            .as_ref()
            .is_some_and(|outgoing| outgoing.try_send(message).is_ok())
    }

    /// Asks for a destination; updates follow.
    pub(super) fn resolve(&mut self, target: &Target) -> bool {
        self.last_id += 1;
        self.targets.insert(self.last_id, target.clone());
        self.send(Message::Resolve(convert::resolve(self.last_id, target)))
    }

    /// What a destination's id stands for; `None` after its release.
    pub(super) fn target(&self, id: u64) -> Option<&Target> {
        self.targets.get(&id)
    }

    /// No more updates for `target`.
    pub(super) fn release(&mut self, target: &Target) -> bool {
        let ids = self.targets.extract_if(|_, held| held == target);
        let ids: Vec<u64> = ids.map(|(id, _)| id).collect();
        ids.into_iter()
            .all(|id| self.send(Message::Release(wire::Release { id })))
    }

    /// Ends our direction, after what is queued.
    pub(super) fn finish(&mut self) {
        self.outgoing = None;
    }
}
