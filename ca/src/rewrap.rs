//! Follows the key-encryption key: once another one wraps, every record is sealed anew under it, one by one. A process that
//! ends in between leaves some under either, all readable, and the next one goes on.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::issuance::Ca;
use crate::seal::Sealer;

/// Between two looks at which key wraps, as Kubernetes looks at its own plugins.
pub(crate) const LOOK: Duration = Duration::from_secs(30);

/// Before the first caller: what another key sealed, or an older version left in clear.
pub(crate) async fn at_start(ca: &Arc<Ca>) {
    let Some(sealer) = ca.sealer() else { return };
    let done = look(ca, &sealer).await;
    ca.metrics.kek(done.is_ok());
    if let Err(error) = done {
        tracing::error!(reason = "kek", "records stay sealed as they are: {error}");
    }
}

/// For ever.
pub(crate) async fn follow(ca: Arc<Ca>, sealer: Arc<Sealer>, every: Duration) {
    let mut told: Option<String> = None;
    loop {
        sleep(every).await;
        let failed = look(&ca, &sealer).await.err();
        ca.metrics.kek(failed.is_none());
        match &failed {
            Some(error) if told != failed => {
                tracing::error!(
                    reason = "kek",
                    "the CA goes on, and records stay sealed as they are: {error}"
                );
            }
            None if told.is_some() => tracing::info!("the key-encryption key is there again"),
            Some(_) | None => {}
        }
        told = failed;
    }
}

async fn look(ca: &Arc<Ca>, sealer: &Sealer) -> Result<(), String> {
    let shown = |error: &dyn std::error::Error| crate::error_chain(error);
    if sealer.follow_kek().await.map_err(|error| shown(&error))? {
        let (provider, key_id) = sealer.kek_shown();
        tracing::info!(provider, key_id, "another key seals from now on");
    }
    let sealed = ca.rewrap().await.map_err(|error| shown(&error))?;
    if !sealed.is_empty() {
        let records: Vec<&str> = sealed.iter().map(|kind| kind.file()).collect();
        ca.metrics.rewrapped(records.len());
        tracing::info!(records = records.join(" "), "sealed anew");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
