//! The pictures of all replicas, from which every answer is made: our own, and those that the others show to control's
//! own ID. Which replicas there are, a headless Service's name says. A replica that does not answer is named in a warning.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use postern_api::ca_client::{self, ALPN};
use postern_api::control::v1 as wire;
use postern_api::control::v1::view_client::ViewClient;
use postern_api::transport::{self, DialError};
use postern_identity::{Expected, IdError, tls};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::error_chain;
use crate::hub::{Hub, picture};
use crate::identity::Own;

/// Another replica is one hop away, and a picture is made in milliseconds. An operator waits for this.
const DEADLINE: Duration = Duration::from_secs(2);
/// Pictures are not older than this; so many requests cost one look around.
const FRESH: Duration = Duration::from_secs(1);
/// Replicas that are asked. A Deployment of control has two or three.
const MAX_REPLICAS: usize = 16;
/// 16,384 edges with IDs of usual length take a quarter of it.
const MAX_PICTURE: usize = 32 * 1024 * 1024;

/// See the module.
pub(crate) struct Pictures {
    hub: Arc<Hub>,
    own: Arc<Own>,
    /// `host:port` of all replicas; `None`: there is one.
    replicas: Option<String>,
    own_address: Option<IpAddr>,
    last: Mutex<Option<(Instant, Arc<Gathered>)>>,
}

/// What was there to see.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// Of different replicas.
    pub(crate) pictures: Vec<wire::Picture>,
    /// What is missing, for a warning.
    pub(crate) missing: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
enum PeerError {
    #[error("our own SVID cannot be used")]
    Own(#[from] rustls::Error),
    #[error("control has no ID")]
    Id(#[from] IdError),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("it did not show its picture")]
    Call(#[from] tonic::Status),
    #[error("it ended without a picture")]
    Ended,
    #[error("it did not answer within {DEADLINE:?}")]
    TooSlow,
}

impl Pictures {
    pub(crate) fn new(hub: Arc<Hub>, own: Arc<Own>, replicas: Option<String>, own_address: Option<IpAddr>) -> Self {
        Self {
            hub,
            own,
            replicas,
            own_address,
            last: Mutex::default(),
        }
    }

    /// Of now, or of a moment ago. Those who ask meanwhile wait for the same look around.
    pub(crate) async fn gathered(&self) -> Arc<Gathered> {
        let mut last = self.last.lock().await;
        if let Some((when, gathered)) = &*last
            && when.elapsed() < FRESH
        {
            return Arc::clone(gathered);
        }
        let gathered = Arc::new(self.gather().await);
        *last = Some((Instant::now(), Arc::clone(&gathered)));
        gathered
    }

    async fn gather(&self) -> Gathered {
        let mut gathered = Gathered::default();
        let (addresses, failure) = self.others().await;
        gathered.missing.extend(failure);
        let answers = join_all(addresses.iter().map(|address| async move {
            let asked = timeout(DEADLINE, self.ask(&address.to_string())).await;
            (address, asked.unwrap_or(Err(PeerError::TooSlow)))
        }));
        let answers = answers.await;
        let own = picture(&self.hub);
        // A name may lead to ourselves, too, and twice to another.
        let mut seen = BTreeSet::from([own.replica.clone()]);
        gathered.pictures.push(own);
        for (address, answer) in answers {
            match answer {
                Ok(picture) if seen.insert(picture.replica.clone()) => gathered.pictures.push(picture),
                Ok(_) => {}
                Err(error) => {
                    let why = error_chain(&error);
                    tracing::warn!(reason = "replica", replica = %address, "{why}");
                    gathered
                        .missing
                        .push(format!("control's replica at {address} is not in this view: {why}"));
                }
            }
        }
        gathered
    }

    async fn others(&self) -> (Vec<SocketAddr>, Option<String>) {
        let Some(name) = &self.replicas else {
            return (Vec::new(), None);
        };
        match timeout(DEADLINE, tokio::net::lookup_host(name)).await {
            Ok(Ok(found)) => {
                let others = found.filter(|address| Some(address.ip()) != self.own_address);
                let mut others: Vec<SocketAddr> = others.collect();
                others.sort_unstable();
                others.dedup();
                others.truncate(MAX_REPLICAS);
                (others, None)
            }
            // Of a headless Service without a ready pod there is no record.
            Ok(Err(error)) => (
                Vec::new(),
                Some(format!("other replicas of control are not found ({name}): {error}")),
            ),
            Err(_) => (
                Vec::new(),
                Some(format!("other replicas of control are not found ({name}): no answer")),
            ),
        }
    }

    async fn ask(&self, address: &str) -> Result<wire::Picture, PeerError> {
        let trust = &self.hub.trust;
        let config = tls::client_config(Some(&self.own.svid()), Arc::clone(trust), ALPN)?;
        let expected = Expected {
            ids: vec![ca_client::control_id(&self.hub.mesh.trust_domain)?],
            instance: None,
        };
        let channel = transport::connect(address, config, trust, &expected).await?;
        let mut client = ViewClient::new(channel).max_decoding_message_size(MAX_PICTURE);
        let mut pictures = client.watch(wire::WatchRequest::default()).await?.into_inner();
        pictures.message().await?.ok_or(PeerError::Ended)
    }
}
