//! Conditions on the wire and back.

use postern_policy::{AddressKey, Condition, TextKey, Values};

use super::{WireError, blocks, ip_blocks, matches, missing, ports, strings, user_matches, users};
use crate::control::v1 as wire;
use crate::control::v1::condition::Condition as Of;

/// `None`: no proxy is sent it.
pub(super) fn to_wire(condition: &Condition) -> Option<wire::Condition> {
    let condition = match condition {
        Condition::Text(key, values) => {
            let (key, names) = text_key(key)?;
            Of::Text(wire::TextCondition {
                key: key as i32,
                names,
                any: strings(&values.any),
                none: strings(&values.none),
            })
        }
        Condition::Address(key, values) => Of::Address(wire::AddressCondition {
            key: match key {
                AddressKey::Source => wire::AddressKey::Source,
                AddressKey::Remote => wire::AddressKey::Remote,
                AddressKey::Destination => wire::AddressKey::Destination,
            } as i32,
            any: blocks(&values.any),
            none: blocks(&values.none),
        }),
        Condition::Port(values) => Of::Port(wire::PortCondition {
            any: values.any.iter().copied().map(u32::from).collect(),
            none: values.none.iter().copied().map(u32::from).collect(),
        }),
        Condition::User(values) => Of::User(wire::UserCondition {
            any: users(&values.any),
            none: users(&values.none),
        }),
        Condition::Age(values) => Of::Age(wire::AgeCondition {
            any: values.any.clone(),
            none: values.none.clone(),
        }),
    };
    Some(wire::Condition {
        condition: Some(condition),
    })
}

fn text_key(key: &TextKey) -> Option<(wire::TextKey, Vec<String>)> {
    let one = |name: &String| vec![name.clone()];
    Some(match key {
        TextKey::Header(name) => (wire::TextKey::Header, one(name)),
        TextKey::SourcePrincipal => (wire::TextKey::SourcePrincipal, Vec::new()),
        TextKey::SourceNamespace => (wire::TextKey::SourceNamespace, Vec::new()),
        TextKey::SourceServiceAccount => (wire::TextKey::SourceServiceAccount, Vec::new()),
        TextKey::SourceTrustDomain => (wire::TextKey::SourceTrustDomain, Vec::new()),
        TextKey::SourceLabel(name) => (wire::TextKey::SourceLabel, one(name)),
        TextKey::SourceNamespaceLabel(name) => (wire::TextKey::SourceNamespaceLabel, one(name)),
        TextKey::DestinationLabel(_) | TextKey::DestinationNamespaceLabel(_) => return None,
        TextKey::Sni => (wire::TextKey::Sni, Vec::new()),
        TextKey::UserAudiences => (wire::TextKey::UserAudiences, Vec::new()),
        TextKey::UserPresenter => (wire::TextKey::UserPresenter, Vec::new()),
        TextKey::UserClaim(path) => (wire::TextKey::UserClaim, path.clone()),
    })
}

pub(super) fn from_wire(condition: wire::Condition) -> Result<Condition, WireError> {
    let read = match condition.condition.ok_or(missing("condition"))? {
        Of::Text(text) => {
            let key = read_text_key(text.key(), text.names)?;
            let (any, none) = (matches(text.any)?, matches(text.none)?);
            Condition::Text(key, given(any, none)?)
        }
        Of::Address(address) => {
            let key = match address.key() {
                wire::AddressKey::Unspecified => return Err(missing("address key")),
                wire::AddressKey::Source => AddressKey::Source,
                wire::AddressKey::Remote => AddressKey::Remote,
                wire::AddressKey::Destination => AddressKey::Destination,
            };
            Condition::Address(key, given(ip_blocks(address.any)?, ip_blocks(address.none)?)?)
        }
        Of::Port(port) => Condition::Port(given(ports(port.any)?, ports(port.none)?)?),
        Of::User(user) => Condition::User(given(user_matches(user.any)?, user_matches(user.none)?)?),
        Of::Age(age) => Condition::Age(given(age.any, age.none)?),
    };
    Ok(read)
}

/// One without values would always hold.
fn given<T>(any: Vec<T>, none: Vec<T>) -> Result<Values<T>, WireError> {
    let values = Values { any, none };
    if values.is_empty() {
        Err(missing("condition values"))
    } else {
        Ok(values)
    }
}

fn read_text_key(key: wire::TextKey, names: Vec<String>) -> Result<TextKey, WireError> {
    let wrong = missing("condition key");
    let one = || match &names[..] {
        [name] if !name.is_empty() => Ok(name.clone()),
        _ => Err(wrong.clone()),
    };
    Ok(match key {
        wire::TextKey::Unspecified => return Err(wrong),
        wire::TextKey::Header => TextKey::Header(one()?),
        wire::TextKey::SourceLabel => TextKey::SourceLabel(one()?),
        wire::TextKey::SourceNamespaceLabel => TextKey::SourceNamespaceLabel(one()?),
        wire::TextKey::UserClaim if !names.is_empty() => TextKey::UserClaim(names),
        wire::TextKey::UserClaim => return Err(wrong),
        wire::TextKey::SourcePrincipal
        | wire::TextKey::SourceNamespace
        | wire::TextKey::SourceServiceAccount
        | wire::TextKey::SourceTrustDomain
        | wire::TextKey::Sni
        | wire::TextKey::UserAudiences
        | wire::TextKey::UserPresenter
            if !names.is_empty() =>
        {
            return Err(wrong);
        }
        wire::TextKey::SourcePrincipal => TextKey::SourcePrincipal,
        wire::TextKey::SourceNamespace => TextKey::SourceNamespace,
        wire::TextKey::SourceServiceAccount => TextKey::SourceServiceAccount,
        wire::TextKey::SourceTrustDomain => TextKey::SourceTrustDomain,
        wire::TextKey::Sni => TextKey::Sni,
        wire::TextKey::UserAudiences => TextKey::UserAudiences,
        wire::TextKey::UserPresenter => TextKey::UserPresenter,
    })
}
