//! rustls configs per generation of our SVID: made once at a renewal, swapped whole.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use postern_identity::tls::{ClientAuth, alpn, client_config, server_config};
use postern_identity::{Role, SharedTrust, Svid, verify};
use rustls_pki_types::UnixTime;

use crate::snapshot::{Identity, Shared};

/// What our inbound side agrees to, in order of preference: sidecars first, then any SPIFFE peer.
const SERVER_ALPN: &[&[u8]] = &[
    alpn::POSTERN_H2,
    alpn::POSTERN_H1,
    alpn::POSTERN_TCP,
    alpn::H2,
    alpn::HTTP_1_1,
    alpn::POSTERN_RENEW,
];

impl Identity {
    /// The configs of one SVID. An [`Svid`] is proof that key and leaf match; what rustls refuses is an error and the
    /// generation before stays in force.
    pub fn new(generation: u64, svid: Svid, trust: &SharedTrust) -> Result<Self, rustls::Error> {
        let client = |alpn| client_config(Some(&svid), Arc::clone(trust), &[alpn]);
        Ok(Self {
            generation,
            server: server_config(&svid, Arc::clone(trust), ClientAuth::Required, SERVER_ALPN)?,
            client_h1: client(alpn::POSTERN_H1)?,
            client_h2: client(alpn::POSTERN_H2)?,
            client_tcp: client(alpn::POSTERN_TCP)?,
            client_renew: client(alpn::POSTERN_RENEW)?,
            client_spiffe_h1: client(alpn::HTTP_1_1)?,
            client_spiffe_h2: client(alpn::H2)?,
            root: verify::verify_peer(svid.chain(), Role::Server, &trust.load(), UnixTime::now())
                .ok()
                .map(|own| *own.anchor()),
            svid,
        })
    }
}

impl Shared {
    /// Puts a new SVID in force and tells live streams. The bundle that came with it must be in `trust` already: a peer
    /// may then answer to the new identity at once.
    pub fn publish_identity(&self, svid: Svid) -> Result<(), rustls::Error> {
        // Never used twice, not even after an identity was taken away: pools are keyed by it.
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let identity = Identity::new(generation, svid, &self.trust)?;
        self.identity.store(Some(Arc::new(identity)));
        self.changed();
        Ok(())
    }
}
