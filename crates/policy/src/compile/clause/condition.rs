//! How a condition is met.

use std::net::IpAddr;

use super::fit::{Fit, Known, fit};
use super::{by_address, by_peer, header, identity};
use crate::user::Said;
use crate::{Action, AddressKey, Condition, Labels, Request, StringMatch, TextKey, User, UserMatch, Values};

/// Clocks of the issuer and ours may differ by this many seconds: a login may be that far in the future.
const CLOCK_SKEW: u64 = 60;

pub(super) fn fits(condition: &Condition, request: &Request<'_>, action: Action) -> Fit {
    match condition {
        Condition::Text(key, values) => text(key, values, request, action),
        Condition::Address(key, Values { any, none }) => {
            by_address((any, none), address(*key, request), request, action)
        }
        Condition::Port(Values { any, none }) => fit(any, none, Known::Yes, action, |port| Some(*port == request.port)),
        Condition::User(Values { any, none }) => by_user(any, none, request, action),
        Condition::Age(Values { any, none }) => {
            let age = |user: &User| {
                let login = user.logged_in()?;
                (login <= request.now.saturating_add(CLOCK_SKEW)).then(|| request.now.saturating_sub(login))
            };
            match user(request) {
                Ok(user) => fit(any, none, Known::Yes, action, |at_most| {
                    age(user).map(|age| age <= *at_most)
                }),
                Err(known) => fit(any, none, known, action, |_| None),
            }
        }
    }
}

pub(super) fn by_user(any: &[UserMatch], none: &[UserMatch], request: &Request<'_>, action: Action) -> Fit {
    if any.is_empty() && none.is_empty() {
        return Fit::Met;
    }
    match user(request) {
        Ok(user) => fit(any, none, Known::Yes, action, |wanted| Some(wanted.matches(user))),
        Err(known) => fit(any, none, known, action, |_| None),
    }
}

fn address(key: AddressKey, request: &Request<'_>) -> Option<IpAddr> {
    match key {
        AddressKey::Source => request.source_ip,
        AddressKey::Remote => request.remote_ip,
        AddressKey::Destination => request.destination_ip,
    }
}

/// The end user; on an opaque stream nobody can tell.
fn user<'a>(request: &Request<'a>) -> Result<&'a User, Known> {
    let http = request.http.as_ref().ok_or(Known::No)?;
    http.user.ok_or(Known::Absent)
}

fn text(key: &TextKey, values: &Values<StringMatch>, request: &Request<'_>, action: Action) -> Fit {
    let Values { any, none } = values;
    let of_peer = |compare| by_peer(any, none, request.peer, action, compare);
    let of_label = |labels: Labels<'_>, name: &str| {
        let known = match labels {
            Labels::Known(labels) => {
                let label = labels.get(name);
                return fit(any, none, Known::Yes, action, |m| {
                    Some(label.is_some_and(|label| m.matches(label)))
                });
            }
            // Without a peer there is nothing to be told.
            Labels::Unknown if request.peer.is_some() => Known::NotTold(request.doubt),
            Labels::Unknown | Labels::None => Known::Absent,
        };
        fit(any, none, known, action, |_| None)
    };
    let of_user = |ask: &dyn Fn(&User, &StringMatch) -> Option<bool>| match user(request) {
        Ok(user) => fit(any, none, Known::Yes, action, |m| ask(user, m)),
        Err(known) => fit(any, none, known, action, |_| None),
    };
    match key {
        TextKey::Header(name) => match request.http {
            Some(http) => header::fits(name, values, http.headers, action, request.doubt),
            None => fit(any, none, Known::No, action, |_| None),
        },
        TextKey::SourcePrincipal => of_peer(identity::principal),
        TextKey::SourceNamespace => of_peer(identity::namespace),
        TextKey::SourceServiceAccount => of_peer(identity::service_account),
        TextKey::SourceTrustDomain => of_peer(identity::trust_domain),
        TextKey::SourceLabel(name) => of_label(request.peer_labels, name),
        TextKey::SourceNamespaceLabel(name) => of_label(request.peer_namespace_labels, name),
        // Control settles these; where it has not, nobody can tell.
        TextKey::DestinationLabel(_) | TextKey::DestinationNamespaceLabel(_) => {
            fit(any, none, Known::NotTold(request.doubt), action, |_| None)
        }
        TextKey::Sni => fit(any, none, Known::Yes, action, |m| {
            Some(request.sni.is_some_and(|name| m.matches(name)))
        }),
        TextKey::UserAudiences => of_user(&|user, m| Some(user.audiences().any(|audience| m.matches(audience)))),
        TextKey::UserPresenter => of_user(&|user, m| Some(user.presenter().is_some_and(|client| m.matches(client)))),
        TextKey::UserClaim(path) => of_user(&|user, m| match user.claim_says(path, |value| m.matches(value)) {
            Said::Yes => Some(true),
            Said::No => Some(false),
            Said::Unclear => None,
        }),
    }
}
