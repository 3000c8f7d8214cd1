//! Puts what control says in force: checked whole, then swapped whole; what does not hold changes nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use postern_api::control::v1 as wire;
use postern_identity::TrustDomain;
use postern_identity::bundle::{self, SignedBundle};
use postern_policy::authentication::JwtRule;
use postern_policy::{Compiled, RequestAuthentication};
use postern_token::{Authenticator, KeySet, Keys};
use rustls::pki_types::UnixTime;
use tokio::sync::watch;

use super::convert;
use super::versions::Update;
use crate::federation;
use crate::metrics::Metrics;
use crate::providers::{self, Providers};
use crate::quarantine;
use crate::snapshot::{Peers, PolicyState, Shared, Workload};
use crate::status::error_chain;
use crate::workload::adopt_bundle;

/// What is in force but destinations.
#[derive(Debug)]
pub(super) struct InForce {
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) trust_domain: TrustDomain,
    /// Announced to whoever renews our SVID.
    pub(super) epoch: watch::Sender<u64>,
    pub(super) workload: Option<Workload>,
    pub(super) compiled: Option<Arc<Compiled>>,
    pub(super) peers: Arc<Peers>,
    pub(super) providers: Arc<Providers>,
    /// See [`PolicyState::rules`].
    pub(super) rules: u64,
    pub(super) users: Users,
    pub(super) federation: federation::Relationships,
    /// What is no longer in force and perhaps still read. Ten thousand rules take milliseconds to free: not a worker does
    /// that, in whose hands the last use ends, but we.
    pub(super) retired: Vec<Arc<PolicyState>>,
}

/// Whose tokens are believed, and the keys for it.
#[derive(Debug, Default)]
pub(super) struct Users {
    documents: Vec<RequestAuthentication>,
    keys: HashMap<String, Keys>,
    authenticator: Arc<Authenticator>,
    answered: Arc<HashMap<String, u64>>,
}

/// Providers whose keys are kept; control has as many.
const MAX_PROVIDERS: usize = 256;

impl InForce {
    /// Everything but destinations; the error goes back to control.
    pub(super) fn apply(&mut self, update: Update) -> Result<(), String> {
        match update {
            Update::Workload(config) => {
                self.workload = Some(convert::workload(&config)?);
                self.rules += 1;
                self.publish_policy();
            }
            Update::Policies(set) => {
                let documents = convert::authentications(&set.authentications)?;
                let (policies, authorizers) = convert::policies(set)?;
                self.compiled = Some(Arc::new(Compiled::at_home_in(&self.trust_domain, policies)));
                self.providers = Arc::new(providers::load(authorizers, &self.providers));
                self.users.believe(documents);
                self.rules += 1;
                self.publish_policy();
            }
            Update::Bundle(set) => self.bundle(&set)?,
            Update::Quarantine(set) => {
                quarantine::take(&self.shared, &self.metrics, &self.trust_domain, &set, UnixTime::now())?;
            }
            Update::Federation(said) => self.federation(&said)?,
            Update::Ranges(ranges) => self.shared.destinations.publish_ranges(convert::ranges(&ranges)?),
            Update::PeerLabels(labels) => {
                self.peers = Arc::new(convert::peers(&labels, &self.trust_domain)?);
                // Whom a CUSTOM policy matches by labels may be another now.
                let by_labels = |compiled: &Arc<Compiled>| compiled.has_custom() && compiled.needs().peer_labels;
                if self.compiled.as_ref().is_some_and(by_labels) {
                    self.rules += 1;
                }
                self.publish_policy();
            }
            Update::Destination(..) => {}
        }
        Ok(())
    }

    /// Keys of a provider. They come before the documents that name it, and whenever they were fetched anew.
    pub(super) fn keys(&mut self, set: &wire::KeySet) -> Result<(), String> {
        if self.users.take(set)? {
            self.publish_policy();
        }
        Ok(())
    }

    /// A policy means something only together with the workload it is for.
    fn publish_policy(&mut self) {
        let (Some(workload), Some(compiled)) = (&self.workload, &self.compiled) else {
            return;
        };
        let generation = self.shared.policy.load().as_ref().map_or(1, |held| held.generation + 1);
        let replaced = self.shared.policy.swap(Some(Arc::new(PolicyState {
            generation,
            workload: workload.clone(),
            compiled: Arc::clone(compiled),
            peers: Arc::clone(&self.peers),
            rules: self.rules,
            providers: Arc::clone(&self.providers),
            authenticator: Arc::clone(&self.users.authenticator),
            answered: Arc::clone(&self.users.answered),
        })));
        self.retired.extend(replaced);
        let process = &self.metrics.process;
        process.policy_generation.store(generation, Ordering::Relaxed);
        self.shared.changed();
    }

    /// Frees what nobody reads any more: nothing can come to read it again.
    pub(super) fn free_retired(&mut self) {
        for state in std::mem::take(&mut self.retired) {
            match Arc::try_unwrap(state).map(|state| Arc::into_inner(state.compiled)) {
                Ok(Some(compiled)) => compiled.free(),
                // The rules are still in force, with something else beside them.
                Ok(None) => {}
                Err(read) => self.retired.push(read),
            }
        }
    }

    fn federation(&mut self, said: &wire::Federation) -> Result<(), String> {
        // Whoever believes a Workload API believes nobody by control's word.
        if self.shared.trust_is_given.load(Ordering::Relaxed) {
            return Ok(());
        }
        let now = UnixTime::now();
        federation::take(&self.shared, &self.trust_domain, &mut self.federation, said, now)
    }

    fn bundle(&self, set: &wire::BundleSet) -> Result<(), String> {
        // Our CA's chain of bundles says nothing to who believes a Workload API.
        if self.shared.trust_is_given.load(Ordering::Relaxed) {
            return Ok(());
        }
        let links: Vec<SignedBundle> = set.bundles.iter().cloned().map(Into::into).collect();
        let trust = self.shared.trust.load_full();
        let held = trust
            .bundles
            .get(self.trust_domain.as_str())
            .ok_or("no bundle to verify this one against")?;
        let next = bundle::advance(held, &links, UnixTime::now()).map_err(|error| error_chain(&error))?;
        adopt_bundle(&self.shared, &self.metrics, &next);
        // Control can delay an epoch, not make renewal unsafe: renewing early costs the CA a signature.
        self.epoch.send_if_modified(|epoch| {
            let raised = set.issuer_epoch > *epoch;
            *epoch = set.issuer_epoch.max(*epoch);
            raised
        });
        Ok(())
    }
}

impl Users {
    fn believe(&mut self, documents: Vec<RequestAuthentication>) {
        let rules = documents.iter().flat_map(RequestAuthentication::rules);
        let providers: HashSet<String> = rules.filter_map(JwtRule::provider).collect();
        self.keys.retain(|provider, _| providers.contains(provider));
        self.documents = documents;
        self.make();
    }

    /// Older keys than those that are held are another replica's, which has not fetched for longer. True if anything changed.
    fn take(&mut self, set: &wire::KeySet) -> Result<bool, String> {
        let held = self.keys.get(&set.provider);
        if held.is_none() && self.keys.len() >= MAX_PROVIDERS {
            return Err("keys of too many providers".to_owned());
        }
        let answers = set.answers > self.answered.get(&set.provider).copied().unwrap_or(0);
        if held.is_some_and(|held| held.fetched > set.fetched_unix) && !answers {
            return Ok(false);
        }
        let parsed = KeySet::parse(&set.jwks).map_err(|error| format!("keys of {}: {error}", set.provider))?;
        let keys = Keys {
            set: Arc::new(parsed),
            fetched: set.fetched_unix,
        };
        self.keys.insert(set.provider.clone(), keys);
        if answers {
            Arc::make_mut(&mut self.answered).insert(set.provider.clone(), set.answers);
        }
        self.make();
        Ok(true)
    }

    fn make(&mut self) {
        let providers = |provider: &str| self.keys.get(provider).cloned();
        self.authenticator = Arc::new(Authenticator::new(&self.documents, providers));
        if self.answered.keys().any(|provider| !self.keys.contains_key(provider)) {
            Arc::make_mut(&mut self.answered).retain(|provider, _| self.keys.contains_key(provider));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use postern_identity::{BundleSet, Trust, TrustBundle};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SigningKey as _};
    use rustls::pki_types::CertificateDer;
    use tokio::sync::mpsc;

    use super::*;

    fn root() -> (KeyPair, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).unwrap();
        (key, certificate.der().clone())
    }

    const PROVIDER: &str = "https://sso.test/jwks";
    /// RFC 8037 appendix A.2.
    const SET: &str =
        r#"{"keys":[{"kid":"2","kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    fn set(provider: &str, fetched_unix: u64, answers: u64, jwks: &str) -> wire::KeySet {
        wire::KeySet {
            provider: provider.to_owned(),
            fetched_unix,
            jwks: jwks.as_bytes().to_vec(),
            answers,
        }
    }

    #[test]
    fn keys_give_way_to_newer_ones_and_to_those_that_answer_a_question() {
        let yaml = "{apiVersion: postern.dev/v1alpha1, kind: RequestAuthentication, metadata: {name: sso, namespace: shop}, \
                    spec: {jwtRules: [{issuer: x, audiences: [a], jwksUri: 'https://sso.test/jwks'}]}}";
        let object = postern_policy::document::parse("sso.yaml", yaml).unwrap().remove(0);
        let mut users = Users::default();
        users.believe(vec![RequestAuthentication::from_object(&object).unwrap()]);
        let fetched = |users: &Users| users.keys[PROVIDER].fetched;
        assert_eq!(users.take(&set(PROVIDER, 10, 0, SET)), Ok(true));
        assert_eq!(
            users.take(&set(PROVIDER, 9, 0, SET)),
            Ok(false),
            "of a replica that lags"
        );
        assert_eq!(fetched(&users), 10);
        assert_eq!(users.take(&set(PROVIDER, 9, 1, SET)), Ok(true));
        assert_eq!((fetched(&users), users.answered[PROVIDER]), (9, 1));
        // What is no set changes nothing.
        assert!(users.take(&set(PROVIDER, 11, 2, "{}")).is_err());
        assert_eq!((fetched(&users), users.answered[PROVIDER]), (9, 1));
        // Nor does what nobody needs any more stay.
        users.believe(Vec::new());
        assert!(users.keys.is_empty() && users.answered.is_empty());
    }

    #[test]
    fn keys_of_so_many_providers_are_kept_and_not_of_one_more() {
        let mut users = Users::default();
        for n in 0..MAX_PROVIDERS {
            assert_eq!(users.take(&set(&format!("p{n}"), 1, 0, SET)), Ok(true));
        }
        assert!(users.take(&set("one more", 1, 0, SET)).is_err());
        assert_eq!(users.take(&set("p0", 2, 0, SET)), Ok(true));
    }

    fn in_force(shared: &Arc<Shared>, trust_domain: &TrustDomain) -> InForce {
        InForce {
            shared: Arc::clone(shared),
            metrics: Arc::default(),
            trust_domain: trust_domain.clone(),
            epoch: watch::channel(1).0,
            workload: None,
            compiled: None,
            peers: Arc::default(),
            providers: Arc::default(),
            rules: 0,
            users: Users::default(),
            federation: federation::Relationships::new(),
            retired: Vec::new(),
        }
    }

    #[test]
    fn a_bundle_that_control_sends_and_the_ca_did_not_sign_changes_nothing() {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let (_, ours) = root();
        let (evil_key, evil) = root();
        let held = TrustBundle::new(domain.clone(), 1, vec![ours], UnixTime::now());
        let shared = Arc::new(Shared::new(mpsc::channel(1).0));
        shared.trust.store(Arc::new(Trust {
            bundles: BundleSet::default().with(held),
            ..Trust::default()
        }));
        let mut in_force = in_force(&shared, &domain);
        let document = TrustBundle::new(domain.clone(), 2, vec![evil.clone()], UnixTime::now()).to_document();
        let signature = evil_key.sign(&bundle::signing_input(&domain, &document)).unwrap();
        for (signature, signer_chain) in [
            (signature.clone(), vec![evil.to_vec()]),
            (signature, Vec::new()),
            (Vec::new(), Vec::new()),
        ] {
            let link = postern_api::ca::v1::SignedBundle {
                document: document.clone(),
                signature,
                signer_chain,
            };
            let refused = in_force.apply(Update::Bundle(wire::BundleSet {
                version: 2,
                bundles: vec![link],
                issuer_epoch: 2,
            }));
            assert!(refused.is_err());
            let trust = shared.trust.load();
            assert_eq!(trust.bundles.get("cluster.local").unwrap().sequence(), 1);
            assert_eq!(*in_force.epoch.borrow(), 1, "nor is a new issuer believed in");
        }
    }
    #[test]
    fn whoever_believes_a_workload_api_believes_nobody_of_another_trust_domain_by_controls_word() {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let shared = Arc::new(Shared::new(mpsc::channel(1).0));
        let mut in_force = in_force(&shared, &domain);
        let foreign = TrustDomain::parse("partner.example").unwrap();
        let said = || {
            let bundle = TrustBundle::new(foreign.clone(), 1, vec![root().1], UnixTime::now());
            Update::Federation(wire::Federation {
                version: 1,
                trust_domains: vec![wire::FederatedTrustDomain {
                    trust_domain: foreign.to_string(),
                    document: bundle.to_document(),
                    relationship: "r".to_owned(),
                    bootstrap: false,
                }],
            })
        };
        let held = || shared.trust.load().bundles.get("partner.example").is_some();
        shared.trust_is_given.store(true, Ordering::Relaxed);
        // It is no mistake either.
        in_force.apply(said()).unwrap();
        assert!(!held());
        shared.trust_is_given.store(false, Ordering::Relaxed);
        in_force.apply(said()).unwrap();
        assert!(held());
    }
}
