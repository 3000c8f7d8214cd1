//! Why proxies turned somebody away, all of them counted: requests by the access logs, and what never became a request
//! (a handshake that failed, plaintext) by the metrics.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::world::World;

/// A local endpoint answers at once.
const DEADLINE: Duration = Duration::from_secs(3);
/// Some hundred series of a hundred bytes.
const MAX_SCRAPE: u64 = 4 * 1024 * 1024;
/// What counts connections that were refused before any request.
const REFUSED: &str = "postern_proxy_refused_connections_total{";

/// Denials by reason, at the doors (inbound): the caller's own proxy only passes the word on.
pub(super) type Reasons = BTreeMap<String, u64>;

/// What we read of an access log line.
#[derive(Debug, Deserialize)]
struct Line {
    direction: String,
    outcome: String,
    #[serde(default)]
    reason: String,
}

/// Counts at all proxies.
pub(super) async fn count(world: &World) -> io::Result<Reasons> {
    let mut reasons = Reasons::new();
    for (_, proxy) in world.proxies() {
        let log = tokio::fs::read_to_string(&proxy.access_log).await?;
        add_requests(&mut reasons, &log);
        let metrics = timeout(DEADLINE, scrape(proxy.metrics)).await??;
        add_refused(&mut reasons, &metrics);
    }
    Ok(reasons)
}

fn add_requests(reasons: &mut Reasons, log: &str) {
    // A last line that is still being written is not whole; it belongs to the next count.
    for line in log.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
        if line.direction == "inbound" && line.outcome == "denied" {
            *reasons.entry(line.reason).or_default() += 1;
        }
    }
}

fn add_refused(reasons: &mut Reasons, metrics: &str) {
    for (labels, value) in metrics
        .lines()
        .filter_map(|line| line.strip_prefix(REFUSED)?.split_once("} "))
    {
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value)
        };
        if label("direction") == Some("inbound")
            && let Some(reason) = label("reason")
            && let Ok(count) = value.trim().parse::<u64>()
        {
            *reasons.entry(reason.to_owned()).or_default() += count;
        }
    }
}

async fn scrape(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut answer = Vec::new();
    stream.take(MAX_SCRAPE).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_request_counts_once_at_the_door_that_denied_it() {
        let mut reasons = Reasons::new();
        add_requests(
            &mut reasons,
            "{\"direction\":\"inbound\",\"outcome\":\"denied\",\"reason\":\"no_allow_rule\"}\n\
             {\"direction\":\"outbound\",\"outcome\":\"denied\",\"reason\":\"no_allow_rule\"}\n\
             {\"direction\":\"inbound\",\"outcome\":\"failed\",\"reason\":\"connect_failed\"}\n\
             {\"direction\":\"inbou",
        );
        assert_eq!(reasons, Reasons::from([("no_allow_rule".to_owned(), 1)]));
    }

    #[test]
    fn what_never_became_a_request_counts_by_its_reason() {
        let mut reasons = Reasons::new();
        add_refused(
            &mut reasons,
            "# TYPE postern_proxy_refused_connections_total counter\n\
             postern_proxy_refused_connections_total{direction=\"inbound\",reason=\"plaintext\"} 2\n\
             postern_proxy_refused_connections_total{direction=\"outbound\",reason=\"bad_target\"} 9\n",
        );
        assert_eq!(reasons, Reasons::from([("plaintext".to_owned(), 2)]));
    }
}
