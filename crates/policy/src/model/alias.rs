//! Other names of the mesh's trust domain: what a policy says of one it says of all, so that policies that were written for
//! another name carry over.

use std::sync::Arc;

use postern_identity::TrustDomain;

use super::authentication::{Content, RequestAuthentication};
use super::{AuthorizationPolicy, Condition, StringMatch, TextKey, Values};

/// All names of one trust domain; fewer than two change nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Aliases(Vec<String>);

impl Aliases {
    /// Its own name, and the others.
    #[must_use]
    pub fn of(own: &TrustDomain, others: &[TrustDomain]) -> Self {
        let mut names = Vec::new();
        for name in std::iter::once(own).chain(others) {
            if !names.iter().any(|known| known == name.as_str()) {
                names.push(name.as_str().to_owned());
            }
        }
        Self(names)
    }

    /// Its own name; `None`: not said.
    #[must_use]
    pub fn own(&self) -> Option<TrustDomain> {
        TrustDomain::parse(self.0.first()?).ok()
    }

    /// Is there no other name?
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.len() < 2
    }

    /// Adds what makes identities match under any of the names that match under one.
    fn widen(&self, patterns: &mut Vec<StringMatch>, under: fn(&StringMatch, &str, &str) -> Option<StringMatch>) {
        let mut more = Vec::new();
        for pattern in &*patterns {
            let matched = self.0.iter().map(|name| {
                let others = self.0.iter().filter(move |other| *other != name);
                others.filter_map(move |other| under(pattern, name, other))
            });
            more.extend(matched.flatten());
        }
        for pattern in more {
            if !patterns.contains(&pattern) {
                patterns.push(pattern);
            }
        }
    }

    fn widen_values(
        &self,
        values: &mut Values<StringMatch>,
        under: fn(&StringMatch, &str, &str) -> Option<StringMatch>,
    ) {
        self.widen(&mut values.any, under);
        self.widen(&mut values.none, under);
    }
}

/// What matches `other/…` exactly where `pattern` matches `name/…`; `None`: nothing, or `pattern` itself does.
fn principal(pattern: &StringMatch, name: &str, other: &str) -> Option<StringMatch> {
    let after = |text: &str| {
        let rest = text.strip_prefix(name)?.strip_prefix('/')?;
        Some(format!("{other}/{rest}"))
    };
    match pattern {
        StringMatch::Exact(text) => after(text).map(StringMatch::Exact),
        StringMatch::Prefix(text) => match after(text) {
            Some(prefix) => Some(StringMatch::Prefix(prefix)),
            // The star stands within the name.
            None if name.starts_with(text.as_str()) => Some(StringMatch::Prefix(format!("{other}/"))),
            None => None,
        },
        // What reaches into the name is a whole path, with the end of a name before it.
        StringMatch::Suffix(text) => {
            let (end, path) = text.split_once('/')?;
            let reaches = !end.is_empty() && name.ends_with(end);
            reaches.then(|| StringMatch::Exact(format!("{other}/{path}")))
        }
        // The first matches every name. No decoder makes the others for a principal.
        StringMatch::Present | StringMatch::Wildcard(_) | StringMatch::Template(_) => None,
    }
}

fn trust_domain(pattern: &StringMatch, name: &str, other: &str) -> Option<StringMatch> {
    pattern.matches(name).then(|| StringMatch::Exact(other.to_owned()))
}

impl AuthorizationPolicy {
    /// The same, for all names of the mesh's trust domain.
    #[must_use]
    pub fn under(mut self, aliases: &Aliases) -> Self {
        if aliases.is_idle() {
            return self;
        }
        for rule in &mut self.rules {
            for source in rule.from.iter_mut().map(Arc::make_mut) {
                aliases.widen(&mut source.principals, principal);
                aliases.widen(&mut source.not_principals, principal);
                aliases.widen(&mut source.trust_domains, trust_domain);
                aliases.widen(&mut source.not_trust_domains, trust_domain);
            }
            for condition in &mut rule.when {
                match condition {
                    Condition::Text(TextKey::SourcePrincipal, values) => aliases.widen_values(values, principal),
                    Condition::Text(TextKey::SourceTrustDomain, values) => aliases.widen_values(values, trust_domain),
                    Condition::Text(..)
                    | Condition::Address(..)
                    | Condition::Port(_)
                    | Condition::User(_)
                    | Condition::Age(_) => {}
                }
            }
        }
        self
    }
}

impl RequestAuthentication {
    /// The same, for all names of the mesh's trust domain.
    #[must_use]
    pub fn under(mut self, aliases: &Aliases) -> Self {
        if let Content::Rules(rules) = &mut self.content
            && !aliases.is_idle()
        {
            for binding in rules.iter_mut().flat_map(|rule| &mut rule.bindings) {
                aliases.widen(&mut binding.principals, principal);
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn aliases() -> Aliases {
        let [own, others @ ..] = ["mesh.example", "cluster.local", "old"].map(|name| TrustDomain::parse(name).unwrap());
        Aliases::of(&own, &others)
    }

    fn pattern() -> impl Strategy<Value = StringMatch> {
        let path = prop_oneof![Just("ns/a/sa/b"), Just("ns/a/sa/bb"), Just("ns"), Just("")];
        let domain = prop_oneof![
            Just("mesh.example"),
            Just("cluster.local"),
            Just("old"),
            Just("other"),
            Just("old.other")
        ];
        (domain, path, 0_usize..24, 0..4).prop_map(|(domain, path, cut, form)| {
            let whole = format!("{domain}/{path}");
            let cut = cut.min(whole.len());
            match form {
                0 => StringMatch::Exact(whole),
                1 => StringMatch::Prefix(whole[..cut].to_owned()),
                2 => StringMatch::Suffix(whole[cut..].to_owned()),
                _ => StringMatch::Present,
            }
        })
    }

    proptest! {
        #[test]
        fn an_identity_is_matched_under_every_name_of_its_trust_domain_or_under_none(
            pattern in pattern(),
            domain in prop_oneof![Just("mesh.example"), Just("cluster.local"), Just("old"), Just("other"), Just("xold")],
            path in prop_oneof![Just("ns/a/sa/b"), Just("ns/a/sa/bb"), Just("ns/b/sa/b")],
        ) {
            let aliases = aliases();
            let mut wide = vec![pattern.clone()];
            aliases.widen(&mut wide, principal);
            let of = |domain: &str| format!("{domain}/{path}");
            let names: Vec<&str> = match aliases.0.iter().any(|name| name == domain) {
                true => aliases.0.iter().map(String::as_str).collect(),
                false => vec![domain],
            };
            let expected = names.iter().any(|name| pattern.matches(&of(name)));
            prop_assert_eq!(wide.iter().any(|pattern| pattern.matches(&of(domain))), expected, "{:?} {:?}", pattern, wide);
            let of_domain = match pattern {
                StringMatch::Exact(text) => StringMatch::Exact(text.split('/').next().unwrap().to_owned()),
                StringMatch::Prefix(text) if !text.contains('/') => StringMatch::Prefix(text),
                _ => StringMatch::Suffix("cal".to_owned()),
            };
            let mut wide = vec![of_domain.clone()];
            aliases.widen(&mut wide, trust_domain);
            let expected = names.iter().any(|name| of_domain.matches(name));
            prop_assert_eq!(wide.iter().any(|pattern| pattern.matches(domain)), expected);
        }
    }

    #[test]
    fn without_another_name_nothing_changes() {
        let own = TrustDomain::parse("cluster.local").unwrap();
        for aliases in [Aliases::default(), Aliases::of(&own, std::slice::from_ref(&own))] {
            assert!(aliases.is_idle());
        }
    }
}
