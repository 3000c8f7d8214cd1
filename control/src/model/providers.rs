//! Whom CUSTOM policies ask. A policy that asks nobody who is there denies what its rules match.

use std::sync::Arc;

use postern_policy::document::nearest;
use postern_policy::{Action, AuthorizationPolicy, Authorizer};

use super::Model;

/// Providers that one workload's policies may ask: a request may have to wait for each of them in turn.
pub(crate) const MAX_ASKED: usize = 8;

/// What to do with the policies that select a workload.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// In the order of their first policy.
    pub(crate) authorizers: Vec<Arc<Authorizer>>,
}

impl Asked {
    /// The policy as a proxy is told of it, its provider by its key; one that cannot be asked is a DENY.
    pub(crate) fn settle(&mut self, model: &Model, policy: AuthorizationPolicy) -> AuthorizationPolicy {
        let Ok(authorizer) = model.provider_of(&policy) else {
            return denying(policy);
        };
        if !self.authorizers.iter().any(|known| Arc::ptr_eq(known, authorizer)) {
            if self.authorizers.len() == MAX_ASKED {
                return denying(policy);
            }
            self.authorizers.push(Arc::clone(authorizer));
        }
        AuthorizationPolicy {
            provider: authorizer.key(),
            ..policy
        }
    }
}

/// It denies what its rules match.
pub(crate) fn denying(policy: AuthorizationPolicy) -> AuthorizationPolicy {
    AuthorizationPolicy {
        action: Action::Deny,
        provider: String::new(),
        ..policy
    }
}

impl Model {
    /// Of a CUSTOM policy: in its own namespace, else in the root namespace. The error is for people.
    pub(crate) fn provider_of(&self, policy: &AuthorizationPolicy) -> Result<&Arc<Authorizer>, String> {
        let places = [&policy.namespace, &self.root_namespace];
        let mut found = places
            .iter()
            .filter_map(|namespace| self.authorizers.get(&((*namespace).clone(), policy.provider.clone())));
        found.next().ok_or_else(|| {
            let near = self
                .authorizers
                .keys()
                .filter(|(namespace, _)| places.contains(&namespace))
                .map(|(_, name)| name.as_str());
            let hint =
                nearest(&policy.provider, near).map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            format!(
                "no readable Authorizer `{}` in namespace {} or {}: it denies what its rules match{hint}",
                policy.provider, policy.namespace, self.root_namespace
            )
        })
    }

    /// Do the same policies ask the same providers?
    pub(crate) fn has_same_policies(&self, other: &Self) -> bool {
        self.policies == other.policies && self.authorizers == other.authorizers
    }

    /// The documents themselves.
    pub(crate) fn authorizers(&self) -> impl Iterator<Item = &Authorizer> {
        self.authorizers.values().map(Arc::as_ref)
    }

    /// The same for every policy that has one and cannot ask it.
    pub(crate) fn unasked(&self) -> impl Iterator<Item = (&AuthorizationPolicy, String)> {
        let custom = self.policies.iter().filter(|policy| policy.action == Action::Custom);
        custom.filter_map(|policy| Some((policy, self.provider_of(policy).err()?)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use postern_identity::TrustDomain;
    use postern_policy::document::parse;

    use super::*;
    use crate::documents::decode;
    use crate::source::Load;

    fn authorizer(namespace: &str, name: &str) -> String {
        format!(
            "---\n{{apiVersion: postern.dev/v1alpha1, kind: Authorizer, metadata: {{name: {name}, namespace: {namespace}}}, \
             spec: {{extAuthz: {{address: \"127.0.0.1:9191\"}}}}}}\n"
        )
    }

    fn custom(namespace: &str, name: &str, provider: &str) -> String {
        format!(
            "---\n{{apiVersion: postern.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: \
             {namespace}}}, spec: {{action: CUSTOM, provider: {{name: {provider}}}, rules: [{{}}]}}}}\n"
        )
    }

    fn model(documents: &[String]) -> Model {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let objects = parse("x.yaml", &documents.concat()).unwrap();
        let load = Load {
            documents: objects.iter().map(|object| decode(object, &domain).unwrap()).collect(),
            ..Load::default()
        };
        Model::build("postern-system", &postern_policy::Aliases::default(), &load)
    }

    /// What becomes of each policy: action, and whom it asks.
    fn settled(model: &Model) -> Vec<(Action, String)> {
        let mut asked = Asked::default();
        let policies = model.policies.iter().cloned();
        let settled: Vec<_> = policies.map(|policy| asked.settle(model, policy)).collect();
        let known: Vec<String> = asked.authorizers.iter().map(|authorizer| authorizer.key()).collect();
        for policy in settled.iter().filter(|policy| policy.action == Action::Custom) {
            assert!(known.contains(&policy.provider), "{} is told of", policy.provider);
        }
        settled
            .into_iter()
            .map(|policy| (policy.action, policy.provider))
            .collect()
    }

    #[test]
    fn a_provider_is_the_policys_own_namespaces_and_else_the_root_namespaces() {
        let model = model(&[
            authorizer("shop", "opa"),
            authorizer("postern-system", "opa"),
            authorizer("postern-system", "root"),
            authorizer("bank", "theirs"),
            custom("shop", "own", "opa"),
            custom("shop", "root", "root"),
            custom("shop", "theirs", "theirs"),
            custom("bank", "opa", "opa"),
        ]);
        assert_eq!(
            settled(&model),
            [
                (Action::Custom, "shop/opa".to_owned()),
                (Action::Custom, "postern-system/root".to_owned()),
                (Action::Deny, String::new()),
                (Action::Custom, "postern-system/opa".to_owned()),
            ]
        );
    }

    #[test]
    fn a_policy_that_asks_nobody_denies_and_the_nearest_name_is_told() {
        let model = model(&[authorizer("shop", "opa-main"), custom("shop", "p", "opa-mian")]);
        assert_eq!(settled(&model), [(Action::Deny, String::new())]);
        let [(policy, why)] = model.unasked().collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(policy.name, "p");
        assert_eq!(
            why,
            "no readable Authorizer `opa-mian` in namespace shop or postern-system: it denies what its rules match; did you \
             mean `opa-main`?"
        );
        assert!(model.conditions.iter().any(|condition| condition.contains(&why)));
    }

    #[test]
    fn more_providers_than_a_request_may_wait_for_deny() {
        let names = |n: usize| (0..n).map(|i| format!("a{i}"));
        let with = |n: usize| {
            let documents: Vec<String> = names(n)
                .flat_map(|name| [authorizer("shop", &name), custom("shop", &name, &name)])
                .collect();
            settled(&model(&documents))
        };
        let custom =
            |settled: &[(Action, String)]| settled.iter().filter(|(action, _)| *action == Action::Custom).count();
        assert_eq!(custom(&with(MAX_ASKED)), MAX_ASKED);
        let past = with(MAX_ASKED + 1);
        assert_eq!((past.len(), custom(&past)), (MAX_ASKED + 1, MAX_ASKED));
    }
}
