//! An identity from somebody else's SPIFFE Workload API (SPIRE, say) in place of our CA: SVID and bundle as they come, judged by our
//! own rules, through the `spiffe` crate, which reconnects and follows.

use std::time::Duration;

use postern_identity::svid::SvidError;
use postern_identity::{BundleSet, Role, Svid, Trust, TrustBundle, TrustDomain, VerifyError, verify};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use spiffe::transport::Endpoint;
use spiffe::{X509Source, X509SourceError, X509SourceUpdates};

use crate::transport;

/// Before whoever waits is told why.
const FIRST_SYNC: Duration = Duration::from_secs(2);
/// Between attempts to reach it again.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What it gave, checked: the SVID verifies under the bundle.
#[derive(Debug)]
pub struct Given {
    /// Ours.
    pub svid: Svid,
    /// Of our own trust domain. Its sequence counts what this source has given: it has no other.
    pub bundle: TrustBundle,
}

/// A Workload API that is followed.
#[derive(Debug)]
pub struct WorkloadSource {
    source: X509Source,
    updates: X509SourceUpdates,
    trust_domain: TrustDomain,
}

/// Why there is no identity of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkloadError {
    /// It is away, or says no.
    #[error("the Workload API at {address} gives no identity")]
    Source {
        /// Where it is.
        address: String,
        /// Why not.
        #[source]
        source: X509SourceError,
    },
    /// It gave what cannot be used.
    #[error("what the Workload API gave is no X.509-SVID with its key")]
    Svid(#[from] SvidError),
    /// Another trust domain's.
    #[error("the Workload API gave {got}, which is not of trust domain {expected} (--trust-domain)")]
    TrustDomain {
        /// Whose identity it is.
        got: String,
        /// Ours.
        expected: TrustDomain,
    },
    /// SVID and bundle do not belong together.
    #[error("the SVID that the Workload API gave does not verify under the bundle beside it")]
    Unverified(#[from] VerifyError),
}

/// Is this where a Workload API can be? (`unix:///path`, `tcp://address:port`; SPIFFE Workload Endpoint section 4.)
pub fn check_address(text: &str) -> Result<String, String> {
    Endpoint::parse(text)
        .map(|_| text.to_owned())
        .map_err(|error| format!("{error}; expected unix:///absolute/path or tcp://1.2.3.4:port"))
}

impl WorkloadSource {
    /// Connects; fails if it has given nothing after two seconds.
    pub async fn open(address: &str, trust_domain: &TrustDomain) -> Result<Self, WorkloadError> {
        let source = X509Source::builder()
            .endpoint(address)
            .reconnect_backoff(RECONNECT.0, RECONNECT.1)
            .initial_sync_timeout(FIRST_SYNC)
            .build()
            .await
            .map_err(|source| WorkloadError::Source {
                address: address.to_owned(),
                source,
            })?;
        Ok(Self {
            updates: source.updated(),
            source,
            trust_domain: trust_domain.clone(),
        })
    }

    /// What is given now.
    pub fn now(&self, address: &str) -> Result<Given, WorkloadError> {
        let state = self.source.x509_context().map_err(|source| WorkloadError::Source {
            address: address.to_owned(),
            source,
        })?;
        let der = |bytes: &[u8]| CertificateDer::from(bytes.to_vec());
        let Some(given) = state.default_svid() else {
            return Err(SvidError::EmptyChain.into());
        };
        let chain = given
            .cert_chain()
            .iter()
            .map(|certificate| der(certificate.as_bytes()))
            .collect();
        let key = PrivateKeyDer::Pkcs8(given.private_key().as_bytes().to_vec().into());
        let svid = Svid::new(chain, key)?;
        if svid.id().trust_domain() != self.trust_domain.as_str() {
            return Err(WorkloadError::TrustDomain {
                got: svid.id().to_string(),
                expected: self.trust_domain.clone(),
            });
        }
        // Of our own trust domain alone: whom else to believe is federation's affair.
        let roots = state.bundle_set().get(given.spiffe_id().trust_domain());
        let roots = roots
            .iter()
            .flat_map(|bundle| bundle.authorities())
            .map(|root| der(root.as_bytes()))
            .collect();
        let bundle = TrustBundle::new(
            self.trust_domain.clone(),
            self.updates.last().saturating_add(1),
            roots,
            transport::now(),
        );
        let trust = Trust {
            bundles: BundleSet::default().with(bundle.clone()),
            ..Trust::default()
        };
        verify::verify_peer(svid.chain(), Role::Server, &trust, transport::now())?;
        Ok(Given { svid, bundle })
    }

    /// Waits for something else than before; an error is the end of it.
    pub async fn changed(&mut self) -> Result<(), X509SourceError> {
        self.updates.changed().await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn spec_086_an_address_is_an_absolute_socket_or_an_ip_address_with_a_port() {
        for good in [
            "unix:///run/spire/agent.sock",
            "tcp://127.0.0.1:8081",
            "tcp://[::1]:8081",
        ] {
            assert_eq!(check_address(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "blah",
            "unix://",
            "unix:opaque",
            "unix://foo",
            "unix:///foo?q",
            "unix:///foo#f",
            "unix://u:p@/foo",
            "tcp://host:1",
            "tcp://1.2.3.4",
            "tcp://1.2.3.4:5/x",
            "tcp://1.2.3.4:5?q",
            "http://1.2.3.4:5",
        ] {
            let error = check_address(bad).err().unwrap_or_else(|| panic!("{bad} was taken"));
            assert!(error.contains("unix:///absolute/path"), "{bad}: {error}");
        }
    }
}
