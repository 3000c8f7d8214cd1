//! What reached a service: counted by the service itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use crate::load::{Calls, Load};

/// Nonces that are remembered; attacks are few.
const MAX_NONCES: usize = 4_096;

/// A service's count of what reached it.
#[derive(Debug, Clone, Default)]
pub struct Canary(Arc<Mutex<Reached>>);

/// What reached a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// Requests by the identity that the proxy vouched for (`x-postern-source`); empty: none did.
    pub by_caller: BTreeMap<String, u64>,
    /// Nonces of requests, with the page that they got.
    pub nonces: BTreeSet<(String, String)>,
    /// Sessions of a protocol that carries no identity (TCP).
    pub sessions: u64,
}

/// What a service says of itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// What reached it.
    pub reached: Reached,
    /// What became of its calls, by kind of call.
    pub calls: BTreeMap<String, Calls>,
}

impl Canary {
    /// A request with an answer of substance.
    pub fn request(&self, caller: Option<&str>, nonce: Option<&str>, page: &str) {
        let mut reached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *reached
            .by_caller
            .entry(caller.unwrap_or_default().to_owned())
            .or_default() += 1;
        if let Some(nonce) = nonce
            && reached.nonces.len() < MAX_NONCES
        {
            reached.nonces.insert((nonce.to_owned(), page.to_owned()));
        }
    }

    /// A session of a protocol without identities.
    pub fn session(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).sessions += 1;
    }

    pub(crate) fn requests(&self) -> u64 {
        let reached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reached.by_caller.values().sum()
    }

    fn snapshot(&self) -> Reached {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Writes a [`Status`] as JSON to whoever connects.
pub async fn serve_status(path: PathBuf, canary: Canary, load: Load) {
    let listener = match listen(&path) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("shop: no status at {}: {error}", path.display());
            return;
        }
    };
    loop {
        let Ok((mut socket, _)) = listener.accept().await else {
            continue;
        };
        let status = Status {
            reached: canary.snapshot(),
            calls: load.snapshot(),
        };
        let bytes = serde_json::to_vec(&status).unwrap_or_default();
        // A reader that goes away early has read enough.
        let _ = socket.write_all(&bytes).await;
    }
}

fn listen(path: &Path) -> io::Result<tokio::net::UnixListener> {
    let std = match abstract_address(path)? {
        Some(address) => net::UnixListener::bind_addr(&address)?,
        None => {
            let _ = std::fs::remove_file(path);
            net::UnixListener::bind(path)?
        }
    };
    std.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(std)
}

/// Reads what a service in this network namespace says of itself.
///
/// # Errors
/// Nobody serves there, or what it says is no status.
pub fn read_status(path: &Path) -> io::Result<Status> {
    let socket = match abstract_address(path)? {
        Some(address) => net::UnixStream::connect_addr(&address)?,
        None => net::UnixStream::connect(path)?,
    };
    serde_json::from_reader(socket).map_err(io::Error::other)
}

/// `@name` is a name that no file system holds.
fn abstract_address(path: &Path) -> io::Result<Option<net::SocketAddr>> {
    match path.to_str().and_then(|path| path.strip_prefix('@')) {
        #[cfg(target_os = "linux")]
        Some(name) => {
            use std::os::linux::net::SocketAddrExt as _;
            net::SocketAddr::from_abstract_name(name).map(Some)
        }
        #[cfg(not(target_os = "linux"))]
        Some(_) => Err(io::Error::other("only Linux has sockets without a file")),
        None => Ok(None),
    }
}
