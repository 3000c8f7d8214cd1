//! JWT-SVIDs: asked of the CA as our identity, verified, and kept for half of their life, since apps ask for one with each call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use postern_api::ca_client::{self, CaError};
use postern_token::svid;
use rustls::pki_types::UnixTime;
use tokio::sync::Semaphore;
use tonic::Status;
use zeroize::Zeroizing;

use crate::snapshot::Shared;
use crate::status::error_chain;

/// Audiences that an app asks for by turns. Past it the one that ends first goes.
const MAX_KEPT: usize = 64;
/// Questions to the CA under way; more wait, within the CA's deadline for each.
const AT_ONCE: usize = 4;

/// Gets and keeps them.
#[derive(Debug)]
pub(crate) struct Tokens {
    ca: String,
    shared: Arc<Shared>,
    kept: Mutex<HashMap<Vec<String>, Kept>>,
    places: Semaphore,
}

/// One, and for how long it is given out.
struct Kept {
    token: Zeroizing<String>,
    /// Of our identity: what an earlier one was given is not handed on.
    generation: u64,
    until: u64,
}

impl Tokens {
    pub(crate) fn new(ca: String, shared: Arc<Shared>) -> Self {
        Self {
            ca,
            shared,
            kept: Mutex::default(),
            places: Semaphore::new(AT_ONCE),
        }
    }

    /// A token of our identity for these audiences, at least one.
    pub(super) async fn get(&self, audience: &[String]) -> Result<Zeroizing<String>, Status> {
        let unavailable = |why: String| Status::unavailable(format!("no JWT-SVID: {why}"));
        let own = self.shared.identity.load_full();
        let own = own.ok_or_else(|| unavailable("this proxy has no SVID yet".to_owned()))?;
        if let Some(token) = self.kept(audience, own.generation) {
            return Ok(token);
        }
        let _place = self
            .places
            .acquire()
            .await
            .map_err(|error| unavailable(error.to_string()))?;
        // Who waited may find what another asked for.
        if let Some(token) = self.kept(audience, own.generation) {
            return Ok(token);
        }
        let trust = &self.shared.trust;
        let (token, expires) = ca_client::issue_jwt(&self.ca, &own.svid, trust, audience)
            .await
            .map_err(|error| refused(&error))?;
        let now = UnixTime::now().as_secs();
        let first = audience.first().map(String::as_str).unwrap_or_default();
        // Under the bundle that the app is given: one that it could not verify is of no use to its peers either.
        match svid::verify(&token, first, &trust.load().bundles, now) {
            Ok(verified) if verified.id == *own.svid.id() => {}
            Ok(verified) => return Err(unavailable(format!("the CA's is for {}", verified.id))),
            Err(error) => return Err(unavailable(format!("the CA's does not hold: {}", error_chain(&error)))),
        }
        let kept = Kept {
            token: token.clone(),
            generation: own.generation,
            until: now + expires.saturating_sub(now) / 2,
        };
        self.keep(audience, kept);
        Ok(token)
    }

    fn kept(&self, audience: &[String], generation: u64) -> Option<Zeroizing<String>> {
        let all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = all.get(audience)?;
        let holds = kept.generation == generation && UnixTime::now().as_secs() < kept.until;
        holds.then(|| kept.token.clone())
    }

    fn keep(&self, audience: &[String], kept: Kept) {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = UnixTime::now().as_secs();
        all.retain(|_, other| now < other.until && other.generation == kept.generation);
        if all.len() >= MAX_KEPT
            && let Some(first) = all
                .iter()
                .min_by_key(|(_, kept)| kept.until)
                .map(|(audience, _)| audience.clone())
        {
            all.remove(&first);
        }
        all.insert(audience.to_vec(), kept);
    }
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept")
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

fn refused(error: &CaError) -> Status {
    let code = match error {
        CaError::Refused { reason, .. } => reason.code(),
        _ => tonic::Code::Unavailable,
    };
    // The app hears of its own mistakes and entitlement; what else goes wrong between us and the CA will pass.
    let code = match code {
        tonic::Code::InvalidArgument | tonic::Code::PermissionDenied => code,
        _ => tonic::Code::Unavailable,
    };
    Status::new(code, format!("no JWT-SVID: {}", error_chain(error)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn kept(generation: u64, until: u64) -> Kept {
        Kept {
            token: Zeroizing::new("secret".to_owned()),
            generation,
            until,
        }
    }

    #[test]
    fn tokens_are_kept_for_half_of_their_life_within_a_bound_and_never_shown() {
        let tokens = Tokens::new(
            "127.0.0.1:1".into(),
            Arc::new(Shared::new(tokio::sync::mpsc::channel(1).0)),
        );
        let audience = |n: usize| vec![format!("a-{n}")];
        let now = UnixTime::now().as_secs();
        tokens.keep(&audience(0), kept(1, now + 1_000));
        assert!(tokens.kept(&audience(0), 1).is_some());
        assert!(tokens.kept(&audience(0), 2).is_none(), "of another generation");
        tokens.keep(&audience(1), kept(1, now));
        assert!(tokens.kept(&audience(1), 1).is_none(), "its time is over");
        assert!(!format!("{tokens:?}").contains("secret"));
        for n in 2..=MAX_KEPT + 10 {
            tokens.keep(&audience(n), kept(1, now + 1_000 + n as u64));
        }
        assert_eq!(tokens.kept.lock().unwrap().len(), MAX_KEPT);
        assert!(tokens.kept(&audience(0), 1).is_none(), "the one that ends first went");
    }
}
