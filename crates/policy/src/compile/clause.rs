//! One source, one operation and the conditions of a rule: the unit that matches or not.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use postern_identity::{SpiffeId, TrustDomain};

use self::fit::{Fit, Known, fit};
use crate::{Action, Condition, IpBlock, Operation, Request, Source, StringMatch, TextKey, Values};

mod condition;
mod fit;
mod header;
mod identity;

pub(crate) use identity::{names_principal, without_scheme};

/// A source and an operation of one rule, with its conditions.
#[derive(Debug, Clone)]
pub(crate) struct Clause {
    pub(crate) policy: u32,
    pub(crate) rule: u32,
    pub(crate) source: Arc<Source>,
    pub(crate) operation: Arc<Operation>,
    pub(crate) when: Arc<[Condition]>,
    /// The trust domain that is meant where none is named; `None`: any.
    pub(crate) home: Option<TrustDomain>,
}

/// What of a clause a request misses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missed<'c> {
    /// A field, in the words of the document.
    Field(&'static str),
    /// A condition; `true`: by one of its `notValues`.
    Condition(&'c Condition, bool),
}

/// What a rule lacks that is not for a foreign peer, in words that explain it.
const NOT_FOR_FOREIGNERS: &str = "principals or trustDomains, which must name the caller's trust domain";

/// A field's name, and that of its negation.
type Names = (&'static str, &'static str);

impl Clause {
    pub(crate) fn matches(&self, request: &Request<'_>, action: Action) -> bool {
        self.missed_by_operation(request, action).is_none()
            && self.missed_by_source(request, action).is_none()
            && self.missed_by_conditions(request, action).is_none()
    }

    /// The first that is missed, as a reader of the document meets it.
    pub(crate) fn missed(&self, request: &Request<'_>, action: Action) -> Option<Missed<'_>> {
        self.missed_by_source(request, action)
            .or_else(|| self.missed_by_operation(request, action))
            .or_else(|| self.missed_by_conditions(request, action))
    }

    pub(crate) fn missed_by_source(&self, request: &Request<'_>, action: Action) -> Option<Missed<'_>> {
        let source = &*self.source;
        if let (Some(home), Some(peer)) = (&self.home, request.peer)
            && peer.trust_domain() != home.as_str()
            && !self.names(peer)
        {
            return Some(Missed::Field(NOT_FOR_FOREIGNERS));
        }
        let by_identity = [
            (
                ("principals", "notPrincipals"),
                (&source.principals, &source.not_principals),
                identity::principal as identity::Compare,
            ),
            (
                ("namespaces", "notNamespaces"),
                (&source.namespaces, &source.not_namespaces),
                identity::namespace,
            ),
            (
                ("serviceAccounts", "notServiceAccounts"),
                (&source.service_accounts, &source.not_service_accounts),
                identity::service_account,
            ),
            (
                ("trustDomains", "notTrustDomains"),
                (&source.trust_domains, &source.not_trust_domains),
                identity::trust_domain,
            ),
        ];
        for (names, (any, none), compare) in by_identity {
            let missed = named(names, by_peer(any, none, request.peer, action, compare));
            if missed.is_some() {
                return missed;
            }
        }
        let users = condition::by_user(
            &source.request_principals,
            &source.not_request_principals,
            request,
            action,
        );
        named(("requestPrincipals", "notRequestPrincipals"), users)
            .or_else(|| {
                let from = by_address(
                    (&source.ip_blocks, &source.not_ip_blocks),
                    request.source_ip,
                    request,
                    action,
                );
                named(("ipBlocks", "notIpBlocks"), from)
            })
            .or_else(|| {
                let blocks = (&source.remote_ip_blocks[..], &source.not_remote_ip_blocks[..]);
                let from = by_address(blocks, request.remote_ip, request, action);
                named(("remoteIpBlocks", "notRemoteIpBlocks"), from)
            })
    }

    /// Is the peer's trust domain named, by what also matches the peer?
    fn names(&self, peer: &SpiffeId) -> bool {
        let principals = |values: &[StringMatch]| values.iter().any(|value| identity::names_principal(value, peer));
        let domains = |values: &[StringMatch]| values.iter().any(|value| identity::names_trust_domain(value, peer));
        let by_condition = |condition: &Condition| match condition {
            Condition::Text(TextKey::SourcePrincipal, Values { any, .. }) => principals(any),
            Condition::Text(TextKey::SourceTrustDomain, Values { any, .. }) => domains(any),
            Condition::Text(..)
            | Condition::Address(..)
            | Condition::Port(_)
            | Condition::User(_)
            | Condition::Age(_) => false,
        };
        principals(&self.source.principals) || domains(&self.source.trust_domains) || self.when.iter().any(by_condition)
    }

    pub(crate) fn missed_by_operation(&self, request: &Request<'_>, action: Action) -> Option<Missed<'_>> {
        let operation = &*self.operation;
        if !operation.ports.is_empty() && !operation.ports.contains(&request.port) {
            return Some(Missed::Field("ports"));
        }
        if operation.not_ports.contains(&request.port) {
            return Some(Missed::Field("notPorts"));
        }
        let Some(http) = request.http else {
            // On an opaque stream an ALLOW rule with HTTP fields does not match; any other rule loses them and matches more.
            let missed = action == Action::Allow && operation.has_http_fields();
            return missed.then_some(Missed::Field("HTTP fields"));
        };
        let fields = [
            (
                ("methods", "notMethods"),
                (&operation.methods, &operation.not_methods),
                http.method,
            ),
            (
                ("paths", "notPaths"),
                (&operation.paths, &operation.not_paths),
                http.path.as_str(),
            ),
            (
                ("hosts", "notHosts"),
                (&operation.hosts, &operation.not_hosts),
                http.host.as_str(),
            ),
        ];
        for ((name, not_name), (any, none), value) in fields {
            if !any.is_empty() && !any.iter().any(|m| m.matches(value)) {
                return Some(Missed::Field(name));
            }
            if none.iter().any(|m| m.matches(value)) {
                return Some(Missed::Field(not_name));
            }
        }
        None
    }

    pub(crate) fn missed_by_conditions(&self, request: &Request<'_>, action: Action) -> Option<Missed<'_>> {
        let (condition, negated) = self.all_missed_conditions(request, action).next()?;
        Some(Missed::Condition(condition, negated))
    }

    /// Each with whether it is one of its `notValues` that it is missed by.
    pub(crate) fn all_missed_conditions(
        &self,
        request: &Request<'_>,
        action: Action,
    ) -> impl Iterator<Item = (&Condition, bool)> {
        self.when
            .iter()
            .filter_map(move |condition| match condition::fits(condition, request, action) {
                Fit::Met => None,
                Fit::NotAny => Some((condition, false)),
                Fit::OneOfNone => Some((condition, true)),
            })
    }
}

fn named((name, not_name): Names, fit: Fit) -> Option<Missed<'static>> {
    match fit {
        Fit::Met => None,
        Fit::NotAny => Some(Missed::Field(name)),
        Fit::OneOfNone => Some(Missed::Field(not_name)),
    }
}

fn by_peer(
    any: &[StringMatch],
    none: &[StringMatch],
    peer: Option<&SpiffeId>,
    action: Action,
    compare: identity::Compare,
) -> Fit {
    if any.is_empty() && none.is_empty() {
        return Fit::Met;
    }
    match peer {
        // No identity to negate: never good enough for ALLOW (ISTIO-SECURITY-2021-004), always for DENY.
        None => fit(any, none, Known::Absent, action, |_| None),
        Some(id) if matches!(any.first().or(none.first()), Some(m) if compare(m, id).is_none()) => {
            // An ID of another shape has no such part: as with no identity.
            fit(any, none, Known::Absent, action, |_| None)
        }
        Some(id) => fit(any, none, Known::Yes, action, |m| compare(m, id)),
    }
}

fn by_address((any, none): (&[IpBlock], &[IpBlock]), ip: Option<IpAddr>, request: &Request<'_>, action: Action) -> Fit {
    match ip {
        None => fit(any, none, Known::NotTold(request.doubt), action, |_| None),
        Some(ip) => fit(any, none, Known::Yes, action, |block| Some(block.contains(ip))),
    }
}

impl fmt::Display for Missed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => f.write_str(name),
            Self::Condition(condition, false) => write!(f, "when {condition}"),
            Self::Condition(condition, true) => write!(f, "when not {condition}"),
        }
    }
}
