//! The CA's own SVID: issued to itself, in memory only, renewed when a connection comes in and half its life is over.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postern_api::ca_client::ALPN;
use postern_identity::tls::{self, ClientAuth};
use postern_identity::{Instance, Svid};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, UnixTime};

use crate::clock::{later, shown, until};
use crate::csr;
use crate::issuance::Ca;
use crate::ledger::entry::{Event, Issued};
use crate::profile::Holder;
use crate::tokens::hex;

/// What the CA shows to callers; swapped whole.
pub(crate) struct Serving {
    ca: Arc<Ca>,
    current: Mutex<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    issuer_epoch: u64,
    obtained: UnixTime,
    renew_at: UnixTime,
}

impl Serving {
    /// Issues the first one.
    pub(crate) fn start(ca: Arc<Ca>) -> Result<Self, String> {
        let current = issue(&ca, ca.now())?;
        Ok(Self {
            ca,
            current: Mutex::new(current),
        })
    }

    /// The config for a connection that comes in now.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        let now = self.ca.now();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stale = now >= current.renew_at || now < current.obtained;
        if stale || current.issuer_epoch != self.ca.authority().issuer_epoch() {
            match issue(&self.ca, now) {
                Ok(next) => *current = next,
                // The one we have serves on: callers judge it, and their refusal is better than our silence.
                Err(error) => tracing::error!(reason = "own_svid", error, "the CA's own SVID was not renewed"),
            }
        }
        Arc::clone(&current.config)
    }
}

fn issue(ca: &Ca, now: UnixTime) -> Result<Current, String> {
    let authority = ca.authority();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
    let instance = Instance::parse("postern-ca").map_err(|error| error.to_string())?;
    let spki = key.subject_public_key_info();
    let signed = authority
        .sign(
            authority.own_id(),
            Some(&instance),
            Holder::Proxy,
            &key,
            ca.svid_life,
            now,
        )
        .map_err(|refusal| refusal.to_string())?;
    let mut chain = signed.chain;
    // The root goes along: a caller that knows only its SHA-256 can then verify the rest.
    chain.extend(authority.shown_roots());
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let svid = Svid::new(chain, key).map_err(|error| crate::error_chain(&error))?;
    let config = tls::server_config(&svid, Arc::clone(&ca.trust), ClientAuth::Optional, ALPN)
        .map_err(|error| error.to_string())?;
    let half: Duration = until(signed.not_after, now) / 2;
    ca.ledger.note(Event::Issued(Issued {
        serial: signed.serial,
        identity: authority.own_id().to_string(),
        instance: Some(instance.to_string()),
        key_sha256: hex(&csr::fingerprint(&spki)),
        attestation: "self".to_owned(),
        evidence: "this CA".to_owned(),
        caller: None,
        not_before: signed.not_before.as_secs(),
        not_after: signed.not_after.as_secs(),
        issuer_epoch: signed.issuer_epoch,
    }));
    tracing::debug!(not_after = shown(signed.not_after), "own SVID issued");
    Ok(Current {
        config,
        issuer_epoch: signed.issuer_epoch,
        obtained: now,
        renew_at: later(now, half),
    })
}
