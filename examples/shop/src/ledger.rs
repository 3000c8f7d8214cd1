//! ledger: a line protocol on TCP in which the server speaks first.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::canary::Canary;

/// What a client hears first.
pub(crate) const GREETING: &str = "ledger ready\n";
/// A silent client is let go.
const IDLE: Duration = Duration::from_secs(60);

pub(crate) async fn serve(listener: TcpListener, canary: Canary) -> io::Result<()> {
    loop {
        let (socket, _) = listener.accept().await?;
        let canary = canary.clone();
        tokio::spawn(async move {
            // A client that breaks off has had its answer, or not: it knows.
            let _ = session(socket, canary).await;
        });
    }
}

async fn session(socket: TcpStream, canary: Canary) -> io::Result<()> {
    socket.set_nodelay(true)?;
    canary.session();
    let mut socket = BufReader::new(socket);
    socket.write_all(GREETING.as_bytes()).await?;
    let mut line = String::new();
    loop {
        line.clear();
        let read = tokio::time::timeout(IDLE, socket.read_line(&mut line)).await??;
        if read == 0 {
            return socket.shutdown().await;
        }
        let entry = line.trim_end();
        if entry.starts_with("nonce-") {
            canary.request(None, Some(entry), "entry");
        }
        let answer = format!("entered {entry}\n");
        socket.write_all(answer.as_bytes()).await?;
    }
}
