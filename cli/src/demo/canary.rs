//! What the services themselves say: what reached each, and what became of its calls.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_shop::canary::Status;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A service that takes longer is stuck.
const DEADLINE: Duration = Duration::from_secs(3);

/// Statuses by workload.
pub(super) type Statuses = BTreeMap<&'static str, Status>;

/// A service does not say.
#[derive(Debug, thiserror::Error)]
#[error("{workload} does not tell what reached it: {what}")]
pub(super) struct Silent {
    workload: &'static str,
    what: String,
}

/// Asks every service, by its status socket.
pub(super) async fn ask(sockets: &[(&'static str, PathBuf)]) -> Result<Statuses, Silent> {
    let mut statuses = Statuses::new();
    for (workload, socket) in sockets {
        let silent = |what: String| Silent { workload, what };
        statuses.insert(*workload, one(socket).await.map_err(silent)?);
    }
    Ok(statuses)
}

async fn one(socket: &Path) -> Result<Status, String> {
    let read = async {
        let mut stream = UnixStream::connect(socket).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        Ok::<_, std::io::Error>(bytes)
    };
    let bytes = timeout(DEADLINE, read)
        .await
        .map_err(|_| format!("no answer in {DEADLINE:?}"))?
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}

/// All nonces that reached anybody, with the pages that they got.
pub(super) fn reached(statuses: &Statuses) -> impl Iterator<Item = &(String, String)> {
    statuses.values().flat_map(|status| &status.reached.nonces)
}
