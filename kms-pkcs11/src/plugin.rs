//! The plugin: KMS v2 on a Unix socket.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use crate::keeper::Keeper;
use crate::kms_v2 as pb;
use crate::kms_v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use crate::session::{Answer, Question, Secret};
use crate::token::{Fault, KeyName, MAX_PLAINTEXT, Place};

/// A message: a seed or what it was wrapped to, names, and annotations that a caller may send.
const MAX_MESSAGE: usize = 64 * 1024;
/// Calls at once, of one connection.
const MAX_STREAMS: u32 = 16;

/// Calls in flight at SIGTERM get this long.
const DRAIN: Duration = Duration::from_secs(2);

/// Serves until it is told to end.
pub(crate) fn serve(socket: &Path, place: Place, wraps: KeyName) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    let keeper = Keeper::start(place, wraps).map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(async {
        let failed = |error: io::Error| format!("cannot listen on {}: {error}", socket.display());
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let listener = bind(socket).await.map_err(failed)?;
        // Said at once: who waits for the CA to unseal looks here.
        match keeper.ask(Question::Status).await {
            Ok(Answer::Well(key_id)) => tracing::info!(key_id, socket = %socket.display(), "serving"),
            Ok(_) => {}
            Err(fault) => tracing::warn!(reason = "token", "serving, and whoever asks is told: {fault}"),
        }
        let plugin = KeyManagementServiceServer::new(Plugin { keeper }).max_decoding_message_size(MAX_MESSAGE);
        let plugin = tonic::service::interceptor::InterceptedService::new(plugin, only_own_user);
        let mut stopped = std::pin::pin!(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        let (stop, stopping) = oneshot::channel::<()>();
        let server = Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .add_service(plugin);
        let serving = server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            drop(stopping.await);
        });
        let mut serving = std::pin::pin!(serving);
        let served = tokio::select! {
            served = &mut serving => served,
            () = &mut stopped => {
                let _ = stop.send(());
                // A caller that keeps an idle connection is not waited for.
                tokio::time::timeout(DRAIN, serving).await.unwrap_or(Ok(()))
            }
        };
        // Gone already, or of use to nobody.
        let _ = std::fs::remove_file(socket);
        served.map_err(|error| format!("serving ended: {error}"))
    })
}

/// A socket that somebody answers on is left alone; one that a killed process left behind is replaced.
async fn bind(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    // Whoever slips in before this line is turned away by `only_own_user`.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[allow(clippy::result_large_err)] // What an interceptor returns.
fn only_own_user(request: Request<()>) -> Result<Request<()>, Status> {
    let connected = request.extensions().get::<UdsConnectInfo>();
    let uid = connected.and_then(|info| info.peer_cred).map(|peer| peer.uid());
    match uid {
        Some(uid) if uid == 0 || uid == rustix::process::geteuid().as_raw() => Ok(request),
        Some(_) | None => Err(Status::permission_denied(
            "this plugin serves its own user and root only: run it as the user that the CA runs as",
        )),
    }
}

struct Plugin {
    keeper: Keeper,
}

impl Plugin {
    #[allow(clippy::result_large_err)] // What the methods of this service return.
    async fn ask(&self, question: Question) -> Result<Answer, Status> {
        self.keeper.ask(question).await.map_err(|fault| {
            let text = fault.to_string();
            tracing::warn!(reason = "token", "{text}");
            match fault {
                Fault::Away(_) => Status::unavailable(text),
                Fault::Pin(_) | Fault::Key(_) => Status::failed_precondition(text),
            }
        })
    }
}

/// An answer to another question: a fault of ours.
fn confused() -> Status {
    Status::internal("the session answered another question")
}

#[tonic::async_trait]
impl KeyManagementService for Plugin {
    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let (healthz, key_id) = match self.keeper.ask(Question::Status).await {
            Ok(Answer::Well(key_id)) => ("ok".to_owned(), key_id),
            Ok(_) => return Err(confused()),
            Err(fault) => {
                tracing::warn!(reason = "token", "{fault}");
                (fault.to_string(), String::new())
            }
        };
        Ok(Response::new(pb::StatusResponse {
            version: "v2".to_owned(),
            healthz,
            key_id,
        }))
    }

    async fn encrypt(&self, request: Request<pb::EncryptRequest>) -> Result<Response<pb::EncryptResponse>, Status> {
        let plaintext = Zeroizing::new(request.into_inner().plaintext);
        if plaintext.is_empty() || plaintext.len() > MAX_PLAINTEXT {
            return Err(Status::invalid_argument(format!(
                "{} bytes to encrypt: 1 to {MAX_PLAINTEXT}; KMS v2 is for keys and seeds",
                plaintext.len()
            )));
        }
        let Answer::Wrapped(key_id, ciphertext) = self.ask(Question::Wrap(Secret(plaintext))).await? else {
            return Err(confused());
        };
        Ok(Response::new(pb::EncryptResponse {
            ciphertext,
            key_id,
            annotations: Default::default(),
        }))
    }

    async fn decrypt(&self, request: Request<pb::DecryptRequest>) -> Result<Response<pb::DecryptResponse>, Status> {
        let pb::DecryptRequest { ciphertext, key_id, .. } = request.into_inner();
        // (KMS v2 keeps both under 1 kB; a line to the session has room for them.)
        if ciphertext.len() > 1024 || key_id.len() > 1024 {
            return Err(Status::invalid_argument(
                "a ciphertext or key ID of more than 1 kB is none of KMS v2",
            ));
        }
        let Answer::Unwrapped(Secret(plaintext)) = self.ask(Question::Unwrap(key_id, ciphertext)).await? else {
            return Err(confused());
        };
        // (What gRPC has of it goes with the call.)
        Ok(Response::new(pb::DecryptResponse {
            plaintext: plaintext.to_vec(),
        }))
    }
}
