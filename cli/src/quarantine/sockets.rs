//! The CA's admin socket, and control's view.

use std::path::Path;
use std::time::Duration;

use postern_api::ca::v1 as pb;
use postern_api::ca::v1::admin_client::AdminClient;
use postern_api::control::v1 as wire;
use postern_api::control::v1::view_client::ViewClient;
use postern_api::transport;
use postern_telemetry::error_chain;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::Known;

/// How long is waited for proxies to say that they enforce it: they take milliseconds.
const ENFORCED_WITHIN: Duration = Duration::from_secs(5);
/// Control draws its picture at once.
const PICTURE_WITHIN: Duration = Duration::from_secs(5);
/// While nothing changes.
const INTERVAL_MS: u32 = 100;

pub(super) struct Ca(AdminClient<Channel>);

impl Ca {
    pub(super) async fn at(socket: &Path) -> Result<Self, String> {
        let channel = transport::connect_unix(socket).await;
        let channel = channel.map_err(|error| format!("{}; is the CA running?", error_chain(&error)))?;
        Ok(Self(AdminClient::new(channel)))
    }

    pub(super) async fn list(&mut self) -> Result<pb::QuarantineState, String> {
        said(self.0.list_quarantine(pb::ListQuarantineRequest {}).await)
    }

    pub(super) async fn add(&mut self, request: pb::AddQuarantineRequest) -> Result<pb::QuarantineState, String> {
        said(self.0.add_quarantine(request).await)
    }

    pub(super) async fn lift(&mut self, request: pb::LiftQuarantineRequest) -> Result<pb::QuarantineState, String> {
        said(self.0.lift_quarantine(request).await)
    }
}

fn said<T>(answer: Result<tonic::Response<T>, Status>) -> Result<T, String> {
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| status.message().to_owned())
}

/// Control's pictures, as they come.
pub(super) struct View {
    pictures: Streaming<wire::Picture>,
    last: wire::Picture,
}

/// How many proxies have put a version in force.
pub(super) struct Enforced {
    pub(super) by: usize,
    pub(super) of: usize,
    /// `NAMESPACE/NAME`.
    pub(super) missing: Vec<String>,
}

impl View {
    pub(super) async fn at(socket: Option<&Path>) -> Result<Option<Self>, String> {
        let Some(socket) = socket else { return Ok(None) };
        let failed = |why: String| format!("control's view at {}: {why}", socket.display());
        let opening = async {
            let channel = transport::connect_unix(socket)
                .await
                .map_err(|error| error_chain(&error))?;
            let request = wire::WatchRequest {
                interval_ms: INTERVAL_MS,
            };
            let mut pictures = said(ViewClient::new(channel).watch(request).await)?;
            let first = pictures.message().await.map_err(|status| status.message().to_owned())?;
            let last = first.ok_or("it ended")?;
            Ok::<_, String>(Self { pictures, last })
        };
        let opened = timeout(PICTURE_WITHIN, opening).await;
        let opened = opened.unwrap_or_else(|_| Err("no answer".to_owned()));
        opened.map(Some).map_err(failed)
    }

    /// Whom control knew when it was asked.
    pub(super) fn known(&self) -> Known {
        Known(self.last.workloads.clone())
    }

    /// Waits until all do, as long as that can take.
    pub(super) async fn enforced(&mut self, version: u64) -> Result<Enforced, String> {
        let all = async {
            loop {
                let enforced = enforced(&self.last, version);
                if enforced.missing.is_empty() && self.last.quarantine_version >= version {
                    return Ok(());
                }
                let next = self.pictures.message().await;
                let next = next.map_err(|status| format!("control's view: {}", status.message()))?;
                self.last = next.ok_or("control's view ended")?;
            }
        };
        // Whoever is missing then is named.
        timeout(ENFORCED_WITHIN, all).await.unwrap_or(Ok::<(), String>(()))?;
        Ok(enforced(&self.last, version))
    }
}

fn enforced(picture: &wire::Picture, version: u64) -> Enforced {
    let connected = picture.workloads.iter().filter(|view| view.connected);
    let missing: Vec<String> = connected
        .clone()
        .filter(|view| view.quarantine_version_acknowledged < version)
        .map(|view| format!("{}/{}", view.namespace, view.name))
        .collect();
    let of = connected.count();
    Enforced {
        by: of - missing.len(),
        of,
        missing,
    }
}
