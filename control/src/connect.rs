//! `Connect`: who calls, and whether this control serves it. What follows is the session's.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use postern_api::control::v1 as wire;
use postern_api::control::v1::control_server::Control;
use postern_api::transport::{self, Caller};
use postern_identity::VerifiedPeer;
use postern_policy::document::nearest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::documents::Capture;
use crate::hub::Hub;
use crate::mesh::Mesh;
use crate::model::{Model, Standing, Workload};

mod session;

use session::Session;
pub(crate) use session::snapshot_word;

/// Messages that wait for a slow proxy; what changes meanwhile is folded into the next one.
const QUEUE: usize = 8;
/// A proxy speaks first, and at once.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// Someone is about to write the missing document, perhaps.
const RETRY_SOON: u32 = 1;
/// An upgrade is under way: another replica, or this one after it, may be of a version that serves this proxy. Often enough
/// that nobody restarts pods for it, and too seldom to be a load.
const RETRY_OTHER_VERSION: u32 = 45;
/// Minor versions apart that still understand each other.
const MAX_SKEW: u64 = 2;

type Answer = Result<wire::ControlMessage, Status>;

/// Serves proxies.
pub(crate) struct Connecting {
    pub(crate) hub: Arc<Hub>,
}

/// Why a proxy is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// A closed set of words, for metrics.
    pub(crate) word: &'static str,
    pub(crate) reason: String,
    pub(crate) retry_after_seconds: u32,
}

#[tonic::async_trait]
impl Control for Connecting {
    type ConnectStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

    async fn connect(
        &self,
        request: Request<Streaming<wire::ProxyMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let peer = request
            .extensions()
            .get::<Caller>()
            .and_then(|caller| caller.peer.clone());
        let peer = peer.ok_or_else(|| Status::unauthenticated("control is called with an SVID"))?;
        if let Err(error) = peer.still_holds(&self.hub.trust.load(), transport::now()) {
            return Err(Status::unauthenticated(error.to_string()));
        }
        if peer.is_app() {
            let message = "control is for proxies; this SVID is of the app beside one (its Workload API gave it)";
            return Err(Status::permission_denied(message));
        }
        let (out, answers) = mpsc::channel(QUEUE);
        let hub = Arc::clone(&self.hub);
        // Ends with the proxy's half of the stream, with the receiver of its answers, or with the process.
        tokio::spawn(async move { serve(hub, peer, request.into_inner(), out).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

async fn serve(
    hub: Arc<Hub>,
    peer: VerifiedPeer,
    mut inbound: Streaming<wire::ProxyMessage>,
    out: mpsc::Sender<Answer>,
) {
    let hello = match tokio::time::timeout(HELLO_DEADLINE, inbound.message()).await {
        Ok(Ok(Some(wire::ProxyMessage {
            message: Some(wire::proxy_message::Message::Hello(hello)),
        }))) => hello,
        Ok(Ok(None) | Err(_)) => return,
        Ok(Ok(Some(_))) => return end(&out, Status::invalid_argument("the first message is Hello")).await,
        Err(_) => return end(&out, Status::deadline_exceeded("no Hello came")).await,
    };
    let admitted = {
        let state = hub.state();
        versions_meet(&hello.version).and_then(|()| {
            let workload = workload_of(&state.model, &hub.mesh, &peer)?;
            warn_of_capture(&hub, workload, hello.capture());
            Ok(workload.key())
        })
    };
    let name = match admitted {
        Ok(name) => name,
        Err(refusal) => return refuse(&hub, &peer, &out, refusal).await,
    };
    let Some(id) = hub.subscribers().connect(&name, peer.id().as_str(), &hello.version) else {
        return end(&out, Status::resource_exhausted("too many streams")).await;
    };
    hub.metrics.connected(&hub.subscribers());
    hub.look();
    tracing::info!(peer.id = %peer.id(), workload = %format!("{}/{}", name.0, name.1), version = hello.version, "connected");
    let mut session = Session::new(Arc::clone(&hub), name.clone(), id, peer, &hello, out);
    let ended = session.run(&mut inbound).await;
    tracing::info!(peer.id = %session.peer_id(), workload = %format!("{}/{}", name.0, name.1), reason = ended, "disconnected");
    let gone = hub.subscribers().disconnect(&name, id);
    hub.metrics.connected(&hub.subscribers());
    // A stream under a renewed SVID takes the old one's place: what is open stays open.
    if gone {
        hub.observed().flows.closed(&name);
    }
    hub.look();
}

/// Says why, and ends. A proxy that does not read is not waited for.
pub(crate) async fn refuse(hub: &Hub, peer: &VerifiedPeer, out: &mpsc::Sender<Answer>, refusal: Refusal) {
    tracing::warn!(peer.id = %peer.id(), reason = refusal.word, "refused: {}", refusal.reason);
    hub.metrics.refused(refusal.word);
    hub.event("warning", format!("{} is refused: {}", peer.id(), refusal.reason));
    let refused = wire::Refused {
        reason: refusal.reason,
        retry_after_seconds: refusal.retry_after_seconds,
    };
    let message = wire::ControlMessage {
        message: Some(wire::control_message::Message::Refused(refused)),
    };
    let _ = tokio::time::timeout(HELLO_DEADLINE, out.send(Ok(message))).await;
}

async fn end(out: &mpsc::Sender<Answer>, status: Status) {
    let _ = tokio::time::timeout(HELLO_DEADLINE, out.send(Err(status))).await;
}

/// The workload that a verified peer is: the namespace from its ID, the name from its instance.
pub(crate) fn workload_of<'m>(model: &'m Model, mesh: &Mesh, peer: &VerifiedPeer) -> Result<&'m Workload, Refusal> {
    let trust_domain = mesh.trust_domain.as_str();
    let refusal = |word, reason, retry_after_seconds| Refusal {
        word,
        reason,
        retry_after_seconds,
    };
    if peer.id().trust_domain() != trust_domain {
        let reason = format!("{} is not of trust domain {trust_domain}", peer.id());
        return Err(refusal("trust_domain", reason, 0));
    }
    let Some((namespace, account)) = peer.id().workload() else {
        return Err(refusal("no_workload", format!("{} names no workload", peer.id()), 0));
    };
    if mesh.without_instances {
        let is_theirs = |workload: &&Arc<Workload>| {
            let captured = workload.document.capture != Capture::Foreign;
            captured && matches!(&workload.standing, Standing::Meshed(id) if id == peer.id())
        };
        let mut theirs = model.workloads.values().filter(is_theirs);
        return match (theirs.next(), theirs.next()) {
            (Some(workload), None) => Ok(workload),
            (None, _) => {
                let reason = format!("no Workload in namespace `{namespace}` runs as {}", peer.id());
                Err(refusal("unknown_workload", reason, RETRY_SOON))
            }
            (Some(_), Some(_)) => {
                let reason = format!(
                    "several Workloads run as {}, and SVIDs of a Workload API name no instance: give each a service account \
                     of its own",
                    peer.id()
                );
                Err(refusal("no_instance", reason, RETRY_SOON))
            }
        };
    }
    let Some(instance) = peer.instance() else {
        let reason = format!(
            "the SVID of {} names no instance; control cannot tell which workload it is",
            peer.id()
        );
        return Err(refusal("no_instance", reason, 0));
    };
    let Some(workload) = model.by_instance(namespace, instance.as_str()) else {
        // A name is misspelled; a pod's UID is not.
        let here = model
            .workloads
            .values()
            .map(|workload| &workload.document)
            .filter(|document| document.namespace == namespace && document.instance == document.name)
            .map(|document| document.name.as_str());
        let hint = match nearest(instance.as_str(), here) {
            Some(nearest) => format!("; did you mean `{nearest}`?"),
            None => String::new(),
        };
        let reason = format!("there is no Workload `{instance}` in namespace `{namespace}`{hint}");
        return Err(refusal("unknown_workload", reason, RETRY_SOON));
    };
    let name = &workload.document.name;
    match &workload.standing {
        Standing::Meshed(_) if workload.document.capture == Capture::Foreign => {
            let reason = format!(
                "Workload {namespace}/{name} has no proxy of ours, says {}: `capture: foreign`",
                workload.document.place
            );
            Err(refusal("not_meshed", reason, RETRY_SOON))
        }
        Standing::Meshed(id) if id == peer.id() => Ok(workload),
        Standing::Meshed(id) => {
            let reason = format!("Workload {namespace}/{name} runs as {id}, not under service account `{account}`");
            Err(refusal("service_account", reason, RETRY_SOON))
        }
        Standing::Unmeshed | Standing::NoIdentity => {
            let reason = format!(
                "Workload {namespace}/{name} is not in the mesh, says {}",
                workload.document.place
            );
            Err(refusal("not_meshed", reason, RETRY_SOON))
        }
    }
}

fn versions_meet(theirs: &str) -> Result<(), Refusal> {
    let ours = postern_api::VERSION;
    let refusal = |reason| {
        Err(Refusal {
            word: "version",
            reason,
            retry_after_seconds: RETRY_OTHER_VERSION,
        })
    };
    let (Some(our), Some(their)) = (major_minor(ours), major_minor(theirs)) else {
        return refusal(format!("`{theirs}` is no semantic version"));
    };
    if our.0 == their.0 && our.1.abs_diff(their.1) <= MAX_SKEW {
        return Ok(());
    }
    refusal(format!(
        "a proxy of version {theirs} and control of version {ours} are more than {MAX_SKEW} minor versions apart"
    ))
}

fn major_minor(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split('.');
    let pair = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next()?;
    Some(pair)
}

/// Others dial this workload where its document says; a proxy that captures in another way will not be found there.
fn warn_of_capture(hub: &Hub, workload: &Workload, capture: wire::Capture) {
    let (documented, word) = match workload.document.capture {
        Capture::Explicit => (wire::Capture::Explicit, "explicit"),
        Capture::Redirect => (wire::Capture::Redirect, "redirect"),
        // Not served at all.
        Capture::Foreign => return,
    };
    if capture != documented {
        let (namespace, name) = workload.key();
        let text = format!("the proxy of {namespace}/{name} does not run with `capture: {word}`, as its Workload says");
        tracing::warn!(reason = "capture", "{text}");
        hub.event("warning", text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_minor_versions_either_way_are_served() {
        let (major, minor) = major_minor(postern_api::VERSION).unwrap_or_default();
        for skew in 0..=MAX_SKEW {
            assert_eq!(versions_meet(&format!("{major}.{}.0", minor + skew)), Ok(()));
        }
        assert!(versions_meet(&format!("{major}.{}.0", minor + MAX_SKEW + 1)).is_err());
        assert!(versions_meet(&format!("{}.{minor}.0", major + 1)).is_err());
        assert!(versions_meet("latest").is_err());
        assert!(versions_meet("").is_err());
    }
}
