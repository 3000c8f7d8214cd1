//! Who may call: the socket's file mode, and the caller's user ID by the kernel's word. Nothing that a caller says counts.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{Stream, unfold};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tonic::transport::server::Connected;

/// Connections at once: one app has one or two per process; the next waits in the backlog.
const MAX_CONNECTIONS: usize = 64;
/// Of users who are not served, at once: enough to tell each why. They have places of their own, so that nobody who holds his
/// connections open keeps the app away; more are closed unheard.
const MAX_REFUSED: usize = 8;
/// After an error of accept (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Which users' processes are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Callers {
    /// Whoever can open the socket: in a pod those who have its volume.
    Any,
    /// These user IDs, and our own.
    Uids(Vec<u32>),
}

impl FromStr for Callers {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "any" {
            return Ok(Self::Any);
        }
        let uids: Result<_, _> = text.split(',').map(str::parse).collect();
        uids.map(Self::Uids)
            .map_err(|_| "user IDs parted by commas, such as 1000,1001, or `any`".to_owned())
    }
}

impl Callers {
    /// May a process of this user call?
    fn admit(&self, uid: u32) -> bool {
        match self {
            Self::Any => true,
            Self::Uids(uids) => uid == rustix::process::geteuid().as_raw() || uids.contains(&uid),
        }
    }

    /// With no other user to be let in, the file alone keeps them out.
    fn mode(&self) -> u32 {
        match self {
            Self::Uids(uids) if uids.is_empty() => 0o600,
            Self::Uids(_) | Self::Any => 0o666,
        }
    }
}

/// Binds the socket, replacing one that an earlier process left behind. To be called before any other thread runs.
pub(crate) fn bind(path: &Path, callers: &Callers) -> Result<UnixListener, String> {
    let failed = |error: io::Error| format!("cannot listen on {}: {error}", path.display());
    if !path.is_absolute() {
        return Err(format!(
            "--workload-api-socket {}: clients name it by its absolute path (unix:///run/app/workload.sock)",
            path.display()
        ));
    }
    check_directory(path, callers)?;
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(failed(io::ErrorKind::AddrInUse.into()));
            }
        }
        // Never removes what is not ours: bind will say that it is in use.
        Ok(_) | Err(_) => {}
    }
    let listener = crate::admin::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(callers.mode())).map_err(failed)?;
    Ok(listener)
}

/// Whoever can write into the directory can put a socket of their own in this one's place, and hand out identities. In a
/// pod's volume only the app could, to itself.
fn check_directory(path: &Path, callers: &Callers) -> Result<(), String> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let directory = std::fs::metadata(parent).map_err(|error| {
        format!(
            "--workload-api-socket {}: the directory {}: {error}",
            path.display(),
            parent.display()
        )
    })?;
    let (others_write, sticky) = (directory.mode() & 0o022 != 0, directory.mode() & 0o1000 != 0);
    if others_write && !sticky && *callers != Callers::Any {
        return Err(format!(
            "--workload-api-socket {}: others can write into {} (mode {:o}): they could put a socket of their own in its \
             place; chmod go-w it, or choose another",
            path.display(),
            parent.display(),
            directory.mode() & 0o7777
        ));
    }
    let owner = directory.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() && *callers != Callers::Any {
        return Err(format!(
            "--workload-api-socket {}: user {owner} owns {} and could put a socket of its own in its place; chown it, or choose \
             another",
            path.display(),
            parent.display()
        ));
    }
    Ok(())
}

/// Who is at the other end; in the extensions of every request.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// `Err`: this user, who is not answered.
    pub(super) admitted: Result<(), u32>,
}

/// An accepted connection that holds its place for as long as it is open.
#[derive(Debug)]
pub(super) struct Accepted {
    stream: UnixStream,
    caller: Caller,
    _place: OwnedSemaphorePermit,
}

/// Room for connections.
#[derive(Debug, Clone)]
struct Places {
    served: Arc<Semaphore>,
    refused: Arc<Semaphore>,
}

impl Places {
    fn new() -> Self {
        Self {
            served: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            refused: Arc::new(Semaphore::new(MAX_REFUSED)),
        }
    }

    /// Those who are served wait for one; of others `None`, who are too many.
    async fn take(&self, served: bool) -> Option<OwnedSemaphorePermit> {
        if served {
            Arc::clone(&self.served).acquire_owned().await.ok()
        } else {
            Arc::clone(&self.refused).try_acquire_owned().ok()
        }
    }
}

/// Accepts, [`MAX_CONNECTIONS`] at once, and [`MAX_REFUSED`] of others.
pub(super) fn incoming(listener: UnixListener, callers: Callers) -> impl Stream<Item = io::Result<Accepted>> + Send {
    let places = Places::new();
    unfold((listener, places, callers), |(listener, places, callers)| async move {
        loop {
            let accepted = listener
                .accept()
                .await
                .and_then(|(stream, _)| Ok((stream.peer_cred()?.uid(), stream)));
            let Ok((uid, stream)) = accepted else {
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let admitted = if callers.admit(uid) { Ok(()) } else { Err(uid) };
            if let Some(place) = places.take(admitted.is_ok()).await {
                let accepted = Accepted {
                    stream,
                    caller: Caller { admitted },
                    _place: place,
                };
                return Some((Ok(accepted), (listener, places, callers)));
            }
        }
    })
}

impl Connected for Accepted {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn callers_are_named_by_user_id_or_all_of_them() {
        assert_eq!("any".parse(), Ok(Callers::Any));
        assert_eq!("0,1000".parse(), Ok(Callers::Uids(vec![0, 1000])));
        for bad in ["", "root", "1,", "-1", "4294967296", "any,1"] {
            assert!(bad.parse::<Callers>().unwrap_err().contains("`any`"), "{bad}");
        }
        let own = rustix::process::geteuid().as_raw();
        assert!(Callers::Uids(vec![]).admit(own) && !Callers::Uids(vec![]).admit(own + 1));
        assert!(Callers::Uids(vec![own + 1]).admit(own + 1) && Callers::Any.admit(own + 2));
    }

    #[tokio::test]
    async fn who_is_not_served_takes_no_place_of_those_who_are() {
        let places = Places::new();
        let mut held = Vec::new();
        for _ in 0..MAX_REFUSED {
            held.push(places.take(false).await.unwrap());
        }
        assert!(places.take(false).await.is_none(), "closed unheard");
        for _ in 0..MAX_CONNECTIONS {
            held.push(places.take(true).await.unwrap());
        }
        // One more of the app's waits for a place, and gets the next.
        let mut waiting = std::pin::pin!(places.take(true));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        held.clear();
        assert!(waiting.await.is_some());
    }

    #[tokio::test]
    async fn the_socket_is_ours_alone_unless_others_are_named_and_a_left_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("w.sock");
        let listener = bind(&path, &Callers::Uids(vec![])).unwrap();
        assert_eq!(mode(&path), 0o600);
        let taken = bind(&path, &Callers::Any).unwrap_err();
        assert!(taken.contains("in use"), "{taken}");
        drop(listener);
        let _listener = bind(&path, &Callers::Uids(vec![1])).unwrap();
        assert_eq!(mode(&path), 0o666);
    }

    #[tokio::test]
    async fn a_place_where_others_could_put_their_own_socket_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("w.sock");
        let open = |mode| std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        open(0o777);
        let refused = bind(&path, &Callers::Uids(vec![])).unwrap_err();
        assert!(
            refused.contains("others can write") && refused.contains("777"),
            "{refused}"
        );
        // A pod's volume: only the app is there.
        drop(bind(&path, &Callers::Any).unwrap());
        open(0o1777);
        drop(bind(&path, &Callers::Uids(vec![])).unwrap());
        let relative = bind(Path::new("w.sock"), &Callers::Any).unwrap_err();
        assert!(relative.contains("absolute"), "{relative}");
        let missing = bind(&directory.path().join("none/w.sock"), &Callers::Any).unwrap_err();
        assert!(missing.contains("none"), "{missing}");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "not a socket").unwrap();
        assert!(bind(&path, &Callers::Any).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"not a socket");
    }
}
