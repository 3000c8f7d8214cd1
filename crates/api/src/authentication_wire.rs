//! RequestAuthentication on the wire and back. What a peer sent is checked field by field, as in [`crate::policy_wire`].

use std::collections::BTreeMap;
use std::time::Duration;

use postern_policy::RequestAuthentication;
use postern_policy::authentication::{
    Algorithm, Audiences, Binding, ClaimHeader, Content, JwtRule, KeySource, Location,
};

use crate::control::v1 as wire;
use crate::policy_wire::{WireError, matches, missing, place_from_wire, place_to_wire, strings};

/// For the wire; the selector stays behind (control sends a document only to whom it selects).
#[must_use]
pub fn to_wire(document: &RequestAuthentication) -> wire::RequestAuthentication {
    use wire::request_authentication::Content as On;
    wire::RequestAuthentication {
        namespace: document.namespace.clone(),
        name: document.name.clone(),
        place: Some(place_to_wire(&document.place)),
        content: Some(match &document.content {
            Content::Rules(rules) => On::Rules(wire::JwtRules {
                rules: rules.iter().map(rule_to_wire).collect(),
            }),
            Content::Unreadable { headers } => On::Unreadable(wire::UnreadableAuthentication {
                headers: headers.clone(),
            }),
        }),
    }
}

/// From the wire.
pub fn from_wire(document: wire::RequestAuthentication) -> Result<RequestAuthentication, WireError> {
    use wire::request_authentication::Content as On;
    let content = match document.content.ok_or(missing("authentication content"))? {
        On::Rules(rules) => Content::Rules(rules.rules.into_iter().map(rule_from_wire).collect::<Result<_, _>>()?),
        On::Unreadable(unreadable) => Content::Unreadable {
            headers: unreadable.headers,
        },
    };
    Ok(RequestAuthentication {
        namespace: document.namespace,
        name: document.name,
        place: document.place.map(place_from_wire).unwrap_or_default(),
        selector: BTreeMap::new(),
        foreign_target: false,
        content,
    })
}

fn rule_to_wire(rule: &JwtRule) -> wire::JwtRule {
    use wire::jwt_rule::Keys;
    let (any_audience, audiences) = match &rule.audiences {
        Audiences::Any => (true, Vec::new()),
        Audiences::OneOf(audiences) => (false, audiences.clone()),
    };
    wire::JwtRule {
        place: Some(place_to_wire(&rule.place)),
        issuer: rule.issuer.clone(),
        any_audience,
        audiences,
        keys: Some(match &rule.keys {
            KeySource::Inline(set) => Keys::Inline(set.clone()),
            KeySource::File(name) => Keys::File(name.clone()),
            KeySource::Uri(uri) => Keys::Uri(uri.clone()),
            KeySource::Discovered => Keys::Discovered(true),
        }),
        locations: rule.locations.iter().map(location_to_wire).collect(),
        forward: rule.forward,
        payload_header: rule.payload_header.clone().unwrap_or_default(),
        claim_headers: rule
            .claim_headers
            .iter()
            .map(|told| wire::ClaimHeader {
                header: told.header.clone(),
                claim: told.claim.clone(),
            })
            .collect(),
        space_delimited: rule.space_delimited.clone(),
        algorithms: rule
            .algorithms
            .iter()
            .map(|one| algorithm_to_wire(*one) as i32)
            .collect(),
        clock_skew_ms: millis(rule.clock_skew),
        bindings: rule
            .bindings
            .iter()
            .map(|binding| wire::ClientBinding {
                client: binding.client.clone(),
                principals: strings(&binding.principals),
            })
            .collect(),
        max_stale_ms: millis(rule.max_stale),
    }
}

fn rule_from_wire(rule: wire::JwtRule) -> Result<JwtRule, WireError> {
    use wire::jwt_rule::Keys;
    let algorithms = rule
        .algorithms()
        .map(algorithm_from_wire)
        .collect::<Result<Vec<_>, _>>()?;
    let unknown = algorithms.len() != rule.algorithms.len() || algorithms.is_empty();
    let audiences = match (rule.any_audience, rule.audiences.is_empty()) {
        (true, true) => Audiences::Any,
        (false, false) => Audiences::OneOf(rule.audiences),
        (true, false) | (false, true) => return Err(missing("audiences")),
    };
    if rule.issuer.is_empty() || rule.locations.is_empty() || unknown {
        return Err(missing("issuer, locations or algorithms"));
    }
    Ok(JwtRule {
        place: rule.place.map(place_from_wire).unwrap_or_default(),
        issuer: rule.issuer,
        audiences,
        keys: match rule.keys.ok_or(missing("keys"))? {
            Keys::Inline(set) => KeySource::Inline(set),
            Keys::File(name) => KeySource::File(name),
            Keys::Uri(uri) => KeySource::Uri(uri),
            Keys::Discovered(true) => KeySource::Discovered,
            Keys::Discovered(false) => return Err(missing("keys `discovered`")),
        },
        locations: rule
            .locations
            .into_iter()
            .map(location_from_wire)
            .collect::<Result<_, _>>()?,
        forward: rule.forward,
        payload_header: Some(rule.payload_header).filter(|name| !name.is_empty()),
        claim_headers: rule
            .claim_headers
            .into_iter()
            .map(|told| ClaimHeader {
                header: told.header,
                claim: told.claim,
            })
            .collect(),
        space_delimited: rule.space_delimited,
        algorithms,
        clock_skew: Duration::from_millis(rule.clock_skew_ms),
        bindings: rule
            .bindings
            .into_iter()
            .map(binding_from_wire)
            .collect::<Result<_, _>>()?,
        max_stale: Duration::from_millis(rule.max_stale_ms),
        // Only who fetches needs it.
        timeout: Duration::ZERO,
    })
}

/// One that names nobody would bind to nobody; it is no binding that was left out.
fn binding_from_wire(binding: wire::ClientBinding) -> Result<Binding, WireError> {
    if binding.client.is_empty() || binding.principals.is_empty() {
        return Err(missing("binding"));
    }
    Ok(Binding {
        client: binding.client,
        principals: matches(binding.principals)?,
    })
}

fn location_to_wire(location: &Location) -> wire::TokenLocation {
    use wire::token_location::At;
    let at = match location {
        Location::Header { name, prefix } => At::Header(wire::TokenHeader {
            name: name.clone(),
            prefix: prefix.clone(),
        }),
        Location::Param(name) => At::Param(name.clone()),
        Location::Cookie(name) => At::Cookie(name.clone()),
    };
    wire::TokenLocation { at: Some(at) }
}

fn location_from_wire(location: wire::TokenLocation) -> Result<Location, WireError> {
    use wire::token_location::At;
    let name = |name: String| {
        if name.is_empty() {
            Err(missing("location name"))
        } else {
            Ok(name)
        }
    };
    Ok(match location.at.ok_or(missing("token location"))? {
        At::Header(header) => Location::Header {
            name: name(header.name)?,
            prefix: header.prefix,
        },
        At::Param(param) => Location::Param(name(param)?),
        At::Cookie(cookie) => Location::Cookie(name(cookie)?),
    })
}

fn algorithm_to_wire(algorithm: Algorithm) -> wire::JwtAlgorithm {
    match algorithm {
        Algorithm::Rs256 => wire::JwtAlgorithm::Rs256,
        Algorithm::Rs384 => wire::JwtAlgorithm::Rs384,
        Algorithm::Rs512 => wire::JwtAlgorithm::Rs512,
        Algorithm::Ps256 => wire::JwtAlgorithm::Ps256,
        Algorithm::Ps384 => wire::JwtAlgorithm::Ps384,
        Algorithm::Ps512 => wire::JwtAlgorithm::Ps512,
        Algorithm::Es256 => wire::JwtAlgorithm::Es256,
        Algorithm::Es384 => wire::JwtAlgorithm::Es384,
        Algorithm::EdDsa => wire::JwtAlgorithm::Eddsa,
    }
}

fn algorithm_from_wire(algorithm: wire::JwtAlgorithm) -> Result<Algorithm, WireError> {
    Ok(match algorithm {
        wire::JwtAlgorithm::Unspecified => return Err(missing("algorithm")),
        wire::JwtAlgorithm::Rs256 => Algorithm::Rs256,
        wire::JwtAlgorithm::Rs384 => Algorithm::Rs384,
        wire::JwtAlgorithm::Rs512 => Algorithm::Rs512,
        wire::JwtAlgorithm::Ps256 => Algorithm::Ps256,
        wire::JwtAlgorithm::Ps384 => Algorithm::Ps384,
        wire::JwtAlgorithm::Ps512 => Algorithm::Ps512,
        wire::JwtAlgorithm::Es256 => Algorithm::Es256,
        wire::JwtAlgorithm::Es384 => Algorithm::Es384,
        wire::JwtAlgorithm::Eddsa => Algorithm::EdDsa,
    })
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use postern_policy::document::parse;

    use super::*;

    fn document() -> RequestAuthentication {
        let text = "apiVersion: postern.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {name: sso, namespace: shop}\nspec:\n  \
                    jwtRules:\n  - {issuer: https://a.test, audiences: [x, y], jwksUri: https://a.test/jwks, fromParams: [t], \
                    fromCookies: [c], fromHeaders: [{name: x-j, prefix: 'JWT '}], forwardOriginalToken: true, \
                    outputPayloadToHeader: x-p, outputClaimToHeaders: [{header: x-c, claim: a.b}], timeout: 7s, \
                    spaceDelimitedClaims: [roles], clockSkew: 1.5s, maxStale: 2h, \
                    bindToWorkload: [{clientId: web, principals: ['cluster.local/ns/*']}]}\n  - {issuer: https://b.test, \
                    audiences: ['*'], algorithms: [EdDSA]}\n  - {issuer: c, audiences: ['*'], jwks: '{\"keys\":[]}'}\n  - \
                    {issuer: d, audiences: ['*'], jwksFile: d.json}\n";
        RequestAuthentication::from_object(&parse("sso.yaml", text).unwrap()[0]).unwrap()
    }

    #[test]
    fn a_document_survives_the_wire_but_for_what_only_control_needs() {
        let sent = document();
        let mut wanted = sent.clone();
        let Content::Rules(rules) = &mut wanted.content else {
            unreachable!()
        };
        rules.iter_mut().for_each(|rule| rule.timeout = Duration::ZERO);
        assert_eq!(from_wire(to_wire(&sent)), Ok(wanted));
        let unreadable = RequestAuthentication {
            content: Content::Unreadable {
                headers: vec!["x-a".to_owned()],
            },
            ..sent
        };
        assert_eq!(from_wire(to_wire(&unreadable)), Ok(unreadable));
    }

    #[test]
    fn what_is_missing_or_not_understood_is_an_error_and_never_a_default() {
        let broken: [fn(&mut wire::JwtRule); 10] = [
            |rule| rule.issuer.clear(),
            |rule| rule.audiences.clear(),
            |rule| rule.any_audience = true,
            |rule| rule.keys = None,
            |rule| rule.keys = Some(wire::jwt_rule::Keys::Discovered(false)),
            |rule| rule.locations.clear(),
            |rule| rule.locations[0].at = None,
            |rule| rule.algorithms.clear(),
            |rule| rule.algorithms.push(99),
            |rule| rule.bindings[0].principals.clear(),
        ];
        for spoil in broken {
            let mut document = to_wire(&document());
            let Some(wire::request_authentication::Content::Rules(rules)) = &mut document.content else {
                unreachable!()
            };
            spoil(&mut rules.rules[0]);
            assert!(from_wire(document).is_err());
        }
        let empty = wire::RequestAuthentication {
            content: None,
            ..to_wire(&document())
        };
        assert!(from_wire(empty).is_err());
    }
}
