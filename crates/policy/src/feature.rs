//! What a proxy can evaluate. A closed set: control never sends a rule that needs more.

/// One capability of the evaluator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Feature {
    /// `principals`, `notPrincipals`.
    Principals,
    /// `namespaces`, `notNamespaces`.
    Namespaces,
    /// `serviceAccounts`, `notServiceAccounts`.
    ServiceAccounts,
    /// `methods`, `notMethods`.
    Methods,
    /// `paths`, `notPaths` (exact, prefix, suffix, presence).
    Paths,
    /// `hosts`, `notHosts`.
    Hosts,
    /// `ports`, `notPorts`.
    Ports,
    /// `{*}` and `{**}` in paths.
    PathTemplates,
    /// `requestPrincipals`, `notRequestPrincipals`.
    RequestPrincipals,
    /// `ipBlocks`, `remoteIpBlocks` and their negations.
    IpBlocks,
    /// `trustDomains`, `notTrustDomains`.
    TrustDomains,
    /// `when`: `request.headers`, `source.*` but labels, `remote.ip`, `destination.ip`, `destination.port`, `connection.sni`.
    Conditions,
    /// `when`: `request.auth.*`.
    UserConditions,
    /// `when`: `source.labels`, `source.namespace.labels`.
    SourceLabels,
    /// The action AUDIT.
    Audit,
    /// The action CUSTOM.
    Custom,
    /// What each port takes, by PeerAuthentication: mutual TLS, plaintext, or either.
    PeerAuthentication,
}

impl Feature {
    /// All, in wire order.
    pub const ALL: [Self; 17] = [
        Self::Principals,
        Self::Namespaces,
        Self::ServiceAccounts,
        Self::Methods,
        Self::Paths,
        Self::Hosts,
        Self::Ports,
        Self::PathTemplates,
        Self::RequestPrincipals,
        Self::IpBlocks,
        Self::TrustDomains,
        Self::Conditions,
        Self::UserConditions,
        Self::SourceLabels,
        Self::Audit,
        Self::Custom,
        Self::PeerAuthentication,
    ];
}

/// A set of features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FeatureSet(u32);

impl FeatureSet {
    /// Everything that this version evaluates.
    #[must_use]
    pub fn all() -> Self {
        Feature::ALL.into_iter().collect()
    }
    /// Is `feature` in it?
    #[must_use]
    pub fn has(self, feature: Feature) -> bool {
        self.0 & (1 << feature as u32) != 0
    }
    /// Without one feature.
    #[must_use]
    pub fn without(self, feature: Feature) -> Self {
        Self(self.0 & !(1 << feature as u32))
    }
    /// With everything of `other` as well.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// Everything of `other` is in `self`.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }
}

impl FromIterator<Feature> for FeatureSet {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Self {
        Self(features.into_iter().fold(0, |bits, f| bits | 1 << f as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_features_differ_and_a_set_holds_what_it_was_made_of() {
        for feature in Feature::ALL {
            let one: FeatureSet = [feature].into_iter().collect();
            let rest = FeatureSet::all().without(feature);
            assert!(one.has(feature) && !rest.has(feature), "{feature:?}");
            assert!(!rest.covers(one) && FeatureSet::all().covers(one) && one.covers(FeatureSet::default()));
            assert_eq!(one.union(rest), FeatureSet::all());
            assert_eq!(one.without(feature), FeatureSet::default());
        }
    }
}
