//! What control shows: pictures of the whole mesh, as they come.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use postern_api::control::v1 as wire;
use postern_api::control::v1::view_client::ViewClient;
use postern_api::transport;
use tokio::sync::watch;

/// A picture at least this often.
const INTERVAL_MS: u32 = 500;
/// Between attempts to reach control.
const RETRY: Duration = Duration::from_millis(100);

/// The last picture; `None` until there is one.
pub(super) type Pictures = watch::Receiver<Option<Arc<wire::Picture>>>;

/// Watches control's socket for as long as somebody holds the receiver.
pub(super) fn watch(socket: PathBuf) -> Pictures {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        while !sender.is_closed() {
            // Control is started, or it is ending with the demo: either way there is nothing to say about it here.
            let _ = follow(&socket, &sender).await;
            tokio::time::sleep(RETRY).await;
        }
    });
    receiver
}

async fn follow(
    socket: &std::path::Path,
    to: &watch::Sender<Option<Arc<wire::Picture>>>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let channel = transport::connect_unix(socket).await?;
    let request = wire::WatchRequest {
        interval_ms: INTERVAL_MS,
    };
    let mut pictures = ViewClient::new(channel).watch(request).await?.into_inner();
    while let Some(picture) = pictures.message().await? {
        if to.send(Some(Arc::new(picture))).is_err() {
            break;
        }
    }
    Ok(())
}

/// Renewals so far, by workload.
pub(super) fn renewals(picture: &wire::Picture) -> impl Iterator<Item = (&str, u64)> {
    picture.workloads.iter().map(|workload| {
        let certificate = workload.certificate.as_ref();
        (
            workload.name.as_str(),
            certificate.map_or(0, |certificate| certificate.renewals),
        )
    })
}

/// Requests and streams that a workload's proxy let in under mutual TLS.
pub(super) fn under_mutual_tls(picture: &wire::Picture, workload: &str) -> u64 {
    picture
        .flows
        .iter()
        .filter(|view| view.reporter.rsplit('/').next() == Some(workload))
        .filter_map(|view| view.flow.as_ref())
        .filter(|flow| flow.mutual_tls && flow.direction() == wire::Direction::Inbound)
        .map(|flow| flow.allowed.saturating_add(flow.failed))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(reporter: &str, direction: wire::Direction, mutual_tls: bool, allowed: u64) -> wire::FlowView {
        wire::FlowView {
            reporter: reporter.to_owned(),
            flow: Some(wire::Flow {
                direction: direction as i32,
                mutual_tls,
                allowed,
                ..wire::Flow::default()
            }),
            ..wire::FlowView::default()
        }
    }

    #[test]
    fn only_what_came_in_under_mutual_tls_counts_and_only_at_its_own_proxy() {
        let picture = wire::Picture {
            flows: vec![
                flow("shop/cart", wire::Direction::Inbound, true, 5),
                flow("shop/cart", wire::Direction::Inbound, false, 7),
                flow("shop/cart", wire::Direction::Outbound, true, 11),
                flow("shop/web", wire::Direction::Inbound, true, 13),
            ],
            ..wire::Picture::default()
        };
        assert_eq!(under_mutual_tls(&picture, "cart"), 5);
    }
}
