//! `when[]`: a key, and values of the kind that the key has.

use super::values::{blocks, durations, ports, users, values};
use crate::document::{DocumentError, Fields, nearest};
use crate::model::text::Form;
use crate::model::value;
use crate::user::MAX_CLAIM_DEPTH;
use crate::{AddressKey, Condition, TextKey, Values};

/// What a key is, before the names in its brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    Header,
    SourceIp,
    RemoteIp,
    DestinationIp,
    DestinationPort,
    SourcePrincipal,
    SourceNamespace,
    SourceServiceAccount,
    SourceTrustDomain,
    SourceLabel,
    SourceNamespaceLabel,
    DestinationLabel,
    DestinationNamespaceLabel,
    Sni,
    UserPrincipal,
    UserAudiences,
    UserPresenter,
    UserClaim,
    UserAge,
}

/// Its name, and how it goes on.
const KEYS: [(&str, Base, &str); 19] = [
    ("request.headers", Base::Header, "[name]"),
    ("source.ip", Base::SourceIp, ""),
    ("remote.ip", Base::RemoteIp, ""),
    ("destination.ip", Base::DestinationIp, ""),
    ("destination.port", Base::DestinationPort, ""),
    ("source.principal", Base::SourcePrincipal, ""),
    ("source.namespace", Base::SourceNamespace, ""),
    ("source.serviceAccount", Base::SourceServiceAccount, ""),
    ("source.trustDomain", Base::SourceTrustDomain, ""),
    ("source.labels", Base::SourceLabel, "[name]"),
    ("source.namespace.labels", Base::SourceNamespaceLabel, "[name]"),
    ("destination.labels", Base::DestinationLabel, "[name]"),
    (
        "destination.namespace.labels",
        Base::DestinationNamespaceLabel,
        "[name]",
    ),
    ("connection.sni", Base::Sni, ""),
    ("request.auth.principal", Base::UserPrincipal, ""),
    ("request.auth.audiences", Base::UserAudiences, ""),
    ("request.auth.presenter", Base::UserPresenter, ""),
    (
        "request.auth.claims",
        Base::UserClaim,
        "[name], or [name][name] for one inside another",
    ),
    ("request.auth.age", Base::UserAge, ""),
];

/// `None`: what is wrong was recorded.
pub(super) fn condition(mut fields: Fields<'_>, namespace: &str, errors: &mut Vec<DocumentError>) -> Option<Condition> {
    let place = fields.place().clone();
    let known = fields.required_text("key").and_then(|key| match parse(&key) {
        Ok(known) => Some(known),
        Err((what, nearest)) => {
            let path = fields.path_of("key");
            errors.push(DocumentError {
                place: place.clone(),
                path,
                what: format!("`{key}` {what}"),
                nearest,
            });
            None
        }
    });
    let given = fields.has("values") || fields.has("notValues");
    let condition = match known {
        Some((base, names)) => read(&mut fields, base, names, namespace),
        None => {
            // Its values mean nothing without it.
            fields.take("values");
            fields.take("notValues");
            None
        }
    };
    if !given {
        fields.error(&place, "values", "a condition needs `values` or `notValues`");
    }
    fields.finish(errors);
    condition
}

fn read(fields: &mut Fields<'_>, base: Base, names: Vec<String>, namespace: &str) -> Option<Condition> {
    let account = |text: &str| value::account(text, namespace);
    let name = names.first().cloned().unwrap_or_default();
    let text = |fields: &mut Fields<'_>, key: TextKey, form: Form, checked: &dyn Fn(&str) -> value::Checked| {
        Condition::Text(
            key,
            Values {
                any: values(fields, "values", form, checked),
                none: values(fields, "notValues", form, checked),
            },
        )
    };
    let address = |fields: &mut Fields<'_>, key: AddressKey| {
        Condition::Address(
            key,
            Values {
                any: blocks(fields, "values"),
                none: blocks(fields, "notValues"),
            },
        )
    };
    let plain = Form::Plain;
    Some(match base {
        Base::Header => text(fields, TextKey::Header(name), plain, &value::field_value),
        Base::SourceIp => address(fields, AddressKey::Source),
        Base::RemoteIp => address(fields, AddressKey::Remote),
        Base::DestinationIp => address(fields, AddressKey::Destination),
        Base::DestinationPort => Condition::Port(Values {
            any: ports(fields, "values"),
            none: ports(fields, "notValues"),
        }),
        Base::SourcePrincipal => text(fields, TextKey::SourcePrincipal, plain, &value::principal),
        Base::SourceNamespace => text(fields, TextKey::SourceNamespace, Form::Wildcard, &value::namespace),
        Base::SourceServiceAccount => text(fields, TextKey::SourceServiceAccount, Form::Wildcard, &account),
        Base::SourceTrustDomain => text(fields, TextKey::SourceTrustDomain, plain, &value::trust_domain),
        Base::SourceLabel => text(fields, TextKey::SourceLabel(name), plain, &value::label),
        Base::SourceNamespaceLabel => text(fields, TextKey::SourceNamespaceLabel(name), plain, &value::label),
        Base::DestinationLabel => text(fields, TextKey::DestinationLabel(name), plain, &value::label),
        Base::DestinationNamespaceLabel => text(fields, TextKey::DestinationNamespaceLabel(name), plain, &value::label),
        Base::Sni => text(fields, TextKey::Sni, plain, &value::server_name),
        Base::UserPrincipal => Condition::User(Values {
            any: users(fields, "values"),
            none: users(fields, "notValues"),
        }),
        Base::UserAudiences => text(fields, TextKey::UserAudiences, plain, &value::any),
        Base::UserPresenter => text(fields, TextKey::UserPresenter, plain, &value::any),
        Base::UserClaim => text(fields, TextKey::UserClaim(names), plain, &value::any),
        Base::UserAge => Condition::Age(Values {
            any: durations(fields, "values"),
            none: durations(fields, "notValues"),
        }),
    })
}

/// The key and the names in its brackets; or what is wrong, and the nearest that is right.
fn parse(key: &str) -> Result<(Base, Vec<String>), (String, Option<String>)> {
    let (name, brackets) = match key.find('[') {
        Some(at) => key.split_at(at),
        None => (key, ""),
    };
    let Some((name, base, goes_on)) = KEYS.iter().find(|(known, _, _)| *known == name) else {
        let near = nearest(name, KEYS.iter().map(|(known, _, _)| *known));
        return Err((
            "is no key of a condition".to_owned(),
            near.map(|near| format!("{near}{brackets}")),
        ));
    };
    let wrong = || (format!("is not written as `{name}{goes_on}`"), None);
    let names = names_of(brackets).ok_or_else(wrong)?;
    let most = match base {
        Base::Header | Base::SourceLabel | Base::SourceNamespaceLabel => 1,
        Base::DestinationLabel | Base::DestinationNamespaceLabel => 1,
        Base::UserClaim => MAX_CLAIM_DEPTH,
        _ => 0,
    };
    if names.len() > most || (most > 0 && names.is_empty()) {
        return Err(wrong());
    }
    match base {
        Base::Header => header(&names).map(|names| (*base, names)),
        Base::SourceLabel | Base::SourceNamespaceLabel | Base::DestinationLabel | Base::DestinationNamespaceLabel
            if !names.iter().all(|name| is_label_name(name)) =>
        {
            Err(("names no label".to_owned(), None))
        }
        _ => Ok((*base, names)),
    }
}

/// `[a][b]`.
fn names_of(mut brackets: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    while !brackets.is_empty() {
        let (name, rest) = brackets.strip_prefix('[')?.split_once(']')?;
        if name.is_empty() || name.contains('[') {
            return None;
        }
        names.push(name.to_owned());
        brackets = rest;
    }
    Some(names)
}

/// A field's name, in lower case.
fn header(names: &[String]) -> Result<Vec<String>, (String, Option<String>)> {
    let name = names.first().map(|name| name.to_ascii_lowercase()).unwrap_or_default();
    // There is one effective authority, method and path; no field of the head is.
    let instead = match name.as_str() {
        "host" | ":authority" => Some("to[].operation.hosts"),
        ":method" => Some("to[].operation.methods"),
        ":path" => Some("to[].operation.paths"),
        _ => None,
    };
    if let Some(instead) = instead {
        return Err((format!("is compared in `{instead}`"), None));
    }
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.bytes().all(token) {
        Ok(vec![name])
    } else {
        Err(("names no field".to_owned(), None))
    }
}

/// An optional DNS prefix and a name.
fn is_label_name(name: &str) -> bool {
    let (prefix, name) = name
        .split_once('/')
        .map_or((None, name), |(prefix, name)| (Some(prefix), name));
    let possible = |text: &str, more: &[u8]| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    prefix.is_none_or(|prefix| possible(prefix, b"-.")) && possible(name, b"-_.")
}
