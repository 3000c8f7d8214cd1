//! The policy model: Istio's `AuthorizationPolicy`, in our words.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::document::{DocumentError, Object, Place, nearest};
use crate::{Feature, FeatureSet, turns};

mod address;
mod alias;
pub mod authentication;
mod condition;
mod decode;
mod mask;
pub mod peer_authentication;
mod resolve;
mod text;
mod user_match;
mod value;

pub use address::IpBlock;
pub use alias::Aliases;
pub use condition::{AddressKey, Condition, TextKey, Values};
pub use user_match::UserMatch;

/// How strictly a workload is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Mode {
    /// Everything flows, mTLS where possible, flows are recorded.
    Discover,
    /// Policy is evaluated and would-be denials are reported; nothing is blocked.
    Monitor,
    /// Strict mTLS, deny unless allowed.
    #[default]
    Protect,
}

/// What a policy does when a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Lets through what matches.
    Allow,
    /// Refuses what matches, before any ALLOW.
    Deny,
    /// Marks what matches, whatever becomes of it.
    Audit,
    /// Asks a provider about what matches, before any DENY; its no is final.
    Custom,
}

/// A policy and where it applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Where it was read.
    pub place: Place,
    /// Labels that a workload must have; empty selects all of the namespace.
    pub selector: BTreeMap<String, String>,
    /// What it does.
    pub action: Action,
    /// `provider.name`: whom a CUSTOM policy asks; empty for the others.
    pub provider: String,
    /// It has a `targetRef` or `targetRefs`: it is for a gateway or waypoint, and applies to no sidecar.
    pub foreign_target: bool,
    /// Any one suffices. ALLOW and AUDIT with none never match; DENY and CUSTOM with none are invalid.
    pub rules: Vec<Rule>,
}

/// any(from) and any(to) and all(when); an empty list matches all.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// Where it was read.
    pub place: Place,
    /// Its index in the document, also after rules were left out for an older proxy.
    pub index: u32,
    /// Sources; what is compiled shares them.
    pub from: Vec<Arc<Source>>,
    /// Operations; likewise.
    pub to: Vec<Arc<Operation>>,
    /// Conditions.
    pub when: Vec<Condition>,
}

/// Copying thousands of rules gives way, wherever that is.
impl Clone for Rule {
    fn clone(&self) -> Self {
        turns::next();
        Self {
            place: self.place.clone(),
            index: self.index,
            from: self.from.clone(),
            to: self.to.clone(),
            when: self.when.clone(),
        }
    }
}

/// So does freeing them.
impl Drop for Rule {
    fn drop(&mut self) {
        turns::next();
    }
}

/// All given fields must match; values of one field are alternatives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Source {
    /// Without `spiffe://`, as in Istio: `cluster.local/ns/shop/sa/web`.
    pub principals: Vec<StringMatch>,
    /// None may match.
    pub not_principals: Vec<StringMatch>,
    /// Namespaces; `*` in the middle is allowed.
    pub namespaces: Vec<StringMatch>,
    /// None may match.
    pub not_namespaces: Vec<StringMatch>,
    /// `namespace/name`; a bare `name` was completed with the policy's namespace.
    pub service_accounts: Vec<StringMatch>,
    /// None may match.
    pub not_service_accounts: Vec<StringMatch>,
    /// Trust domains.
    pub trust_domains: Vec<StringMatch>,
    /// None may match.
    pub not_trust_domains: Vec<StringMatch>,
    /// End users.
    pub request_principals: Vec<UserMatch>,
    /// None may match.
    pub not_request_principals: Vec<UserMatch>,
    /// Where the transport comes from.
    pub ip_blocks: Vec<IpBlock>,
    /// None may match.
    pub not_ip_blocks: Vec<IpBlock>,
    /// The same, or what a trusted proxy before us says of it.
    pub remote_ip_blocks: Vec<IpBlock>,
    /// None may match.
    pub not_remote_ip_blocks: Vec<IpBlock>,
}

/// All given fields must match; values of one field are alternatives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Operation {
    /// Case-insensitive; the port is part of the value (`example.com:8080`, `example.com:*`).
    pub hosts: Vec<StringMatch>,
    /// None may match.
    pub not_hosts: Vec<StringMatch>,
    /// The workload's port number.
    pub ports: Vec<u16>,
    /// None may match.
    pub not_ports: Vec<u16>,
    /// Case-sensitive.
    pub methods: Vec<StringMatch>,
    /// None may match.
    pub not_methods: Vec<StringMatch>,
    /// Matched against the canonical path.
    pub paths: Vec<StringMatch>,
    /// None may match.
    pub not_paths: Vec<StringMatch>,
}

/// How a value is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// Byte for byte.
    Exact(String),
    /// `abc*`.
    Prefix(String),
    /// `*abc`.
    Suffix(String),
    /// `*`: present and not empty.
    Present,
    /// `*` anywhere (namespaces and service accounts): the literal pieces between the stars, at least two.
    Wildcard(Vec<String>),
    /// A path template with `{*}` or `{**}`, checked.
    Template(String),
}

impl AuthorizationPolicy {
    /// Decodes `kind: AuthorizationPolicy` under `postern.dev/v1alpha1` or `security.istio.io/v1`.
    pub fn from_object(object: &Object) -> Result<Self, Vec<DocumentError>> {
        decode::policy(object)
    }

    /// A stand-in for a policy that cannot be decoded: it denies what the policy selects, or its whole namespace if even
    /// the selector cannot be read.
    #[must_use]
    pub fn deny_all_for(object: &Object, namespace: &str) -> Self {
        Self {
            foreign_target: decode::has_foreign_target(object),
            ..Self::denying_all(namespace, &object.name, &object.place, decode::selector_of(object))
        }
    }

    /// It denies everything that is asked of what it selects.
    #[must_use]
    pub fn denying_all(namespace: &str, name: &str, place: &Place, selector: BTreeMap<String, String>) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            place: place.clone(),
            selector,
            action: Action::Deny,
            provider: String::new(),
            foreign_target: false,
            // Neither sources nor operations: everything matches.
            rules: vec![Rule {
                place: place.clone(),
                index: 0,
                from: Vec::new(),
                to: Vec::new(),
                when: Vec::new(),
            }],
        }
    }

    /// Does it apply to a workload? `root_namespace` policies apply mesh-wide.
    #[must_use]
    pub fn selects(&self, root_namespace: &str, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        !self.foreign_target
            && (self.namespace == namespace || self.namespace == root_namespace)
            && self.selector.iter().all(|(k, v)| labels.get(k) == Some(v))
    }

    /// What an evaluator needs for it.
    #[must_use]
    pub fn features(&self) -> FeatureSet {
        let of_action = mask::of_action(self.action).into_iter().collect();
        self.rules
            .iter()
            .fold(of_action, |all: FeatureSet, rule| all.union(mask::features(rule)))
    }

    /// What is sent to a proxy that evaluates only `features`: an ALLOW rule that needs more is left out,
    /// any other rule loses the unknown part and so matches more; CUSTOM becomes DENY, and AUDIT is left out.
    /// Never allows what the full policy denies.
    #[must_use]
    pub fn masked(&self, features: FeatureSet) -> Option<Self> {
        let mut policy = self.clone();
        match self.action {
            Action::Allow => policy.rules.retain(|rule| features.covers(mask::features(rule))),
            Action::Audit if !features.has(Feature::Audit) => return None,
            Action::Deny | Action::Audit | Action::Custom => {
                policy.rules.iter_mut().for_each(|rule| mask::broaden(rule, features));
            }
        }
        if self.action == Action::Custom && !features.has(Feature::Custom) {
            policy.action = Action::Deny;
            policy.provider = String::new();
        }
        Some(policy)
    }

    /// As it is for one workload: conditions on the labels of the workload and its namespace are settled. Rules that cannot
    /// match it are left out.
    #[must_use]
    pub fn resolved(&self, labels: &BTreeMap<String, String>, namespace: &BTreeMap<String, String>) -> Self {
        let mut policy = self.clone();
        policy.rules.retain_mut(|rule| resolve::settle(rule, labels, namespace));
        policy
    }

    /// Does it look at labels of the workload that is called?
    #[must_use]
    pub fn has_destination_labels(&self) -> bool {
        self.rules
            .iter()
            .any(|rule| rule.when.iter().any(Condition::is_of_destination))
    }

    /// Which labels of peers it looks at: of workloads, and of namespaces.
    #[must_use]
    pub fn peer_labels(&self) -> [BTreeSet<&str>; 2] {
        resolve::peer_labels(self)
    }
}

impl Rule {
    /// Does it look at the port?
    #[must_use]
    pub fn looks_at_ports(&self) -> bool {
        let operations = self
            .to
            .iter()
            .any(|to| !to.ports.is_empty() || !to.not_ports.is_empty());
        operations
            || self
                .when
                .iter()
                .any(|condition| matches!(condition, Condition::Port(_)))
    }

    /// Does it look at the host?
    #[must_use]
    pub fn looks_at_hosts(&self) -> bool {
        self.to
            .iter()
            .any(|to| !to.hosts.is_empty() || !to.not_hosts.is_empty())
    }
}

impl Action {
    /// The word in documents.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
            Self::Custom => "CUSTOM",
        }
    }
}

impl Mode {
    /// `discover`, `monitor`, `protect`; anything else names the nearest.
    pub fn parse(text: &str) -> Result<Self, String> {
        const KNOWN: [(&str, Mode); 3] = [
            ("discover", Mode::Discover),
            ("monitor", Mode::Monitor),
            ("protect", Mode::Protect),
        ];
        if let Some((_, mode)) = KNOWN.iter().find(|(name, _)| *name == text) {
            return Ok(*mode);
        }
        let hint = nearest(text, KNOWN.iter().map(|(name, _)| *name))
            .map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
        Err(format!("`{text}` is not a mode: discover, monitor or protect{hint}"))
    }

    /// The word that [`Mode::parse`] reads.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Discover => "discover",
            Self::Monitor => "monitor",
            Self::Protect => "protect",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_they_are_written() {
        for mode in [Mode::Discover, Mode::Monitor, Mode::Protect] {
            assert_eq!(Mode::parse(mode.as_str()), Ok(mode));
        }
        assert_eq!(
            Mode::default(),
            Mode::Protect,
            "the strictest unless something else is said"
        );
        let error = Mode::parse("protekt").expect_err("misspelled");
        assert!(error.ends_with("did you mean `protect`?"), "{error}");
        for wrong in ["", "PROTECT", " protect", "off"] {
            assert!(Mode::parse(wrong).is_err(), "{wrong}");
        }
    }
}
