//! Sessions of ledger's line protocol: hear the greeting, enter a line, hear it confirmed, close.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::{End, Load, every};
use crate::ledger::GREETING;
use crate::through::{self, Way};

const LEDGER: &str = "ledger.shop:7000";

pub(super) fn repeat(load: &Load, kind: &'static str, rate: u32, way: Way, expect_denied: bool) {
    every(load, kind, rate, expect_denied, move || {
        call(way, LEDGER, "1 lantern", expect_denied)
    });
}

/// A session in which `entry` is entered. Where a denial is expected, a reset is one.
pub(crate) async fn call(way: Way, authority: &str, entry: &str, expect_denied: bool) -> End {
    match session(way, authority, entry).await {
        Ok(end) => end,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => End::Denied,
        Err(error) if expect_denied && error.kind() == io::ErrorKind::ConnectionReset => End::Denied,
        Err(error) => End::Failed(error.to_string()),
    }
}

/// A denied stream is closed before the server's first word: there is no status in a protocol that has none.
async fn session(way: Way, authority: &str, entry: &str) -> io::Result<End> {
    let mut socket = BufReader::new(through::connect(way, authority).await?);
    let mut line = String::new();
    if socket.read_line(&mut line).await? == 0 {
        return Ok(End::Denied);
    }
    if line != GREETING {
        return Ok(End::Failed(format!("greeted with {line:?}")));
    }
    socket.write_all(format!("{entry}\n").as_bytes()).await?;
    line.clear();
    socket.read_line(&mut line).await?;
    if line != format!("entered {entry}\n") {
        return Ok(End::Failed(format!("answered {line:?}")));
    }
    // Half-close: the ledger must see the end and close its side.
    socket.shutdown().await?;
    line.clear();
    match socket.read_line(&mut line).await? {
        0 => Ok(End::Allowed),
        _ => Ok(End::Failed(format!("{line:?} after the end"))),
    }
}
