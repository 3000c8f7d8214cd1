//! The CA's bundle stream: checked here, carried to proxies byte for byte; away means that the last good one stays.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_api::ca::v1 as pb;
use postern_api::ca::v1::certificate_authority_client::CertificateAuthorityClient;
use postern_api::ca_client::{self, ALPN, Backoff};
use postern_api::transport::{self, DialError};
use postern_identity::bundle::{self, BundleError};
use postern_identity::quarantine::QuarantineError;
use postern_identity::{Expected, IdError, tls};
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;

use crate::error_chain;
use crate::hub::Hub;
use crate::identity::{Own, trust_bundle};
use crate::quarantine;
use crate::state::{Bundles, next_version};

#[cfg(test)]
mod tests;

/// Between attempts: a CA that comes back is noticed well within two seconds.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Until the first update: the CA holds it ready, so one that takes longer is stuck, however alive its connection.
const OPENING_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks at what the proxies have: the CA waits for them with the root's replacement, which takes minutes.
const REPORT_PAUSE: Duration = Duration::from_millis(500);
/// All links of the chain, and the quarantine twice (as signed, and with reasons); past this something else is speaking.
const MAX_UPDATE: usize = 4 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("cannot reach the CA")]
    Dial(#[from] DialError),
    #[error("the CA's stream ended")]
    Stream(#[from] tonic::Status),
    #[error("the CA's bundle does not hold")]
    Bundle(#[from] BundleError),
    #[error("the CA's quarantine does not hold")]
    Quarantine(#[from] QuarantineError),
    #[error("cannot dial the CA")]
    Tls(#[from] rustls::Error),
    #[error("cannot name the CA")]
    Name(#[from] IdError),
    #[error("the CA closed the stream")]
    Closed,
    #[error("the CA took longer than {OPENING_DEADLINE:?} to send its bundle")]
    TooSlow,
    #[error("no bundle of our own trust domain is held")]
    NoBundle,
}

/// Our own SVID is a new one: a stream under it takes the place of the old, which the CA would end at its expiry.
struct Renewed;

/// Follows the CA for ever.
pub(crate) async fn follow(hub: Arc<Hub>, own: Arc<Own>, address: String) -> Infallible {
    let mut backoff = Backoff::up_to(LONGEST_WAIT);
    loop {
        let error = match stream(&hub, &own, &address, &mut backoff).await {
            // The CA is as near as before: nobody needs to hear of it.
            Ok(Renewed) => continue,
            Err(error) => error,
        };
        hub.set_ca_connected(false);
        hub.metrics.ca_connected(false);
        tracing::warn!(reason = "ca_stream", "{}", error_chain(&error));
        tokio::time::sleep(backoff.after_failure(fastrand::f64())).await;
    }
}

async fn stream(hub: &Hub, own: &Own, address: &str, backoff: &mut Backoff) -> Result<Renewed, StreamError> {
    let mut current = own.watch();
    let svid = Arc::clone(&current.borrow_and_update());
    let config = tls::client_config(Some(&svid), Arc::clone(&hub.trust), ALPN)?;
    let expected = Expected {
        ids: vec![ca_client::ca_id(&hub.mesh.trust_domain)?],
        instance: None,
    };
    let channel = transport::connect(address, config, &hub.trust, &expected).await?;
    let mut client = CertificateAuthorityClient::new(channel).max_decoding_message_size(MAX_UPDATE);
    let opening = async {
        // From the first link on: a proxy may hold any bundle of the chain.
        let request = pb::WatchBundleRequest {
            bundle_sequence: 0,
            quarantine: hub.quarantine().signed.clone(),
        };
        let mut updates = client.watch_bundle(request).await?.into_inner();
        let first = updates.message().await?.ok_or(StreamError::Closed)?;
        Ok::<_, StreamError>((first, updates))
    };
    let opened = timeout(OPENING_DEADLINE, opening).await;
    let (mut update, mut updates) = opened.map_err(|_| StreamError::TooSlow)??;
    // Beside the stream, over its connection; it ends with it.
    let mut reporting = std::pin::pin!(report(hub, client.clone()));
    loop {
        take(hub, update)?;
        backoff.reset();
        hub.set_ca_connected(true);
        hub.metrics.ca_connected(true);
        update = tokio::select! {
            // Dropping a half-read message is fine: the stream ends with it.
            renewed = current.changed() => match renewed {
                Ok(()) => return Ok(Renewed),
                Err(_) => return Err(StreamError::Closed),
            },
            never = &mut reporting => match never {},
            update = updates.message() => update?.ok_or(StreamError::Closed)?,
        };
    }
}

/// Tells the CA which bundle the slowest of our proxies has in force, whenever that is another.
async fn report(hub: &Hub, mut client: CertificateAuthorityClient<Channel>) -> Infallible {
    let mut told = None;
    loop {
        let report = lowest(hub);
        if told.as_ref() != Some(&report) {
            match timeout(OPENING_DEADLINE, client.report_bundle(report)).await {
                Ok(Ok(_)) => told = Some(report),
                // It waits for nobody.
                Ok(Err(status)) if status.code() == Code::Unimplemented => std::future::pending().await,
                Ok(Err(status)) => tracing::debug!("the CA took no report of the bundle: {}", status.message()),
                Err(_) => tracing::debug!("the CA took no report of the bundle in time"),
            }
        }
        tokio::time::sleep(REPORT_PAUSE).await;
    }
}

fn lowest(hub: &Hub) -> pb::ReportBundleRequest {
    let own = hub.bundles().sequence;
    let subscribers = hub.subscribers();
    let connected = subscribers.iter().filter(|(_, subscriber)| subscriber.connected());
    let held: Vec<u64> = connected.map(|(_, subscriber)| subscriber.bundle.in_force).collect();
    pb::ReportBundleRequest {
        lowest_sequence: held.iter().copied().fold(own, u64::min),
        proxies: u32::try_from(held.len()).unwrap_or(u32::MAX),
    }
}

fn take(hub: &Hub, update: pb::BundleUpdate) -> Result<(), StreamError> {
    let held = hub
        .trust
        .load()
        .bundles
        .get(hub.mesh.trust_domain.as_str())
        .cloned()
        .ok_or(StreamError::NoBundle)?;
    let links: Vec<bundle::SignedBundle> = update.bundles.iter().cloned().map(Into::into).collect();
    let bundle = bundle::advance(&held, &links, transport::now())?;
    trust_bundle(&hub.trust, &bundle);
    quarantine::from_stream(hub, &bundle, update.quarantine, update.quarantined, transport::now())?;
    let current = hub.bundles();
    if current.version != 0 && current.links == update.bundles && current.issuer_epoch == update.issuer_epoch {
        return Ok(());
    }
    tracing::info!(
        sequence = bundle.sequence(),
        issuer_epoch = update.issuer_epoch,
        "bundle"
    );
    if current.version != 0 {
        hub.event(
            "info",
            format!(
                "bundle {} with issuer {} is in force",
                bundle.sequence(),
                update.issuer_epoch
            ),
        );
    }
    hub.publish_bundles(Bundles {
        version: next_version(current.version, SystemTime::now()),
        sequence: bundle.sequence(),
        issuer_epoch: update.issuer_epoch,
        links: update.bundles,
    });
    Ok(())
}
