//! Follows the directory: the system says that something changed, a slow poll catches what it does not say.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use super::scan::scan;
use super::{Directory, GONE_AFTER};
use crate::source::Load;

/// A change is read once nothing has happened for this long: programs write a file in several steps.
const QUIET: Duration = Duration::from_millis(30);
/// But no later than this after the first sign of it.
const PATIENCE: Duration = Duration::from_millis(100);
/// Without any sign: some file systems give none.
const POLL: Duration = Duration::from_secs(2);

/// The first look, before anybody is served. An unreadable directory is an error here, later it is a fault like others.
pub(crate) async fn first(directory: &mut Directory, root: &Path) -> std::io::Result<Load> {
    let metadata = tokio::fs::metadata(root).await?;
    if !metadata.is_dir() {
        return Err(std::io::ErrorKind::NotADirectory.into());
    }
    look(directory, root).await;
    Ok(directory.load())
}

/// Calls `changed` with every new state, for ever.
pub(crate) async fn follow(mut directory: Directory, root: PathBuf, mut changed: impl FnMut(Load)) -> Infallible {
    let signs = Arc::new(Notify::new());
    let mut watcher = watcher(&root, &signs);
    // Between the first look and the watch something may have happened.
    let mut wait = Duration::ZERO;
    loop {
        let sign = tokio::time::timeout(wait, signs.notified()).await.is_ok();
        if sign {
            settle(&signs).await;
        }
        if look(&mut directory, &root).await {
            changed(directory.load());
        }
        wait = if directory.waits() { GONE_AFTER } else { POLL };
        if watcher.is_none() && !sign {
            watcher = self::watcher(&root, &signs);
        }
    }
}

async fn settle(signs: &Notify) {
    let latest = tokio::time::Instant::now() + PATIENCE;
    loop {
        let quiet = (tokio::time::Instant::now() + QUIET).min(latest);
        if tokio::time::timeout_at(quiet, signs.notified()).await.is_err() {
            return;
        }
    }
}

async fn look(directory: &mut Directory, root: &Path) -> bool {
    let root = root.to_path_buf();
    match tokio::task::spawn_blocking(move || scan(&root)).await {
        Ok(scan) => directory.take(scan, Instant::now()),
        // Only at shutdown.
        Err(_) => false,
    }
}

fn watcher(root: &Path, signs: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let signs = Arc::clone(signs);
    let said = move |event: notify::Result<notify::Event>| {
        // Reading the files is an event, too: that one must not make us read them again.
        if !event.is_ok_and(|event| matches!(event.kind, notify::EventKind::Access(kind) if !is_write(kind))) {
            signs.notify_one();
        }
    };
    let watching = notify::recommended_watcher(said).and_then(|mut watcher| {
        watcher.watch(root, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    watching
        .inspect_err(|error| {
            tracing::warn!(reason = "watch", "changes are found by looking every {POLL:?}: {error}");
        })
        .ok()
}

fn is_write(kind: notify::event::AccessKind) -> bool {
    use notify::event::{AccessKind, AccessMode};
    matches!(kind, AccessKind::Close(AccessMode::Write))
}
