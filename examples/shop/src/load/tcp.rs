//! Sessions of ledger's line protocol through a tunnel: hear the greeting, enter a line, hear it confirmed, close.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::{End, Load, every};
use crate::ledger::GREETING;
use crate::through;

const LEDGER: &str = "ledger.shop:7000";

pub(super) fn repeat(load: &Load, kind: &'static str, rate: u32, proxy: SocketAddr, expect_denied: bool) {
    every(load, kind, rate, expect_denied, move || async move {
        match session(proxy).await {
            Ok(end) => end,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => End::Denied,
            Err(error) if expect_denied && error.kind() == io::ErrorKind::ConnectionReset => End::Denied,
            Err(error) => End::Failed(error.to_string()),
        }
    });
}

/// A denied stream is closed before the server's first word: there is no status in a protocol that has none.
async fn session(proxy: SocketAddr) -> io::Result<End> {
    let mut socket = BufReader::new(through::connect(proxy, LEDGER).await?);
    let mut line = String::new();
    if socket.read_line(&mut line).await? == 0 {
        return Ok(End::Denied);
    }
    if line != GREETING {
        return Ok(End::Failed(format!("greeted with {line:?}")));
    }
    socket.write_all(b"1 lantern\n").await?;
    line.clear();
    socket.read_line(&mut line).await?;
    if line != "entered 1 lantern\n" {
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
