//! The question, and how it is read from JSON: the same on control's socket and in `view.postern.dev`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use postern_identity::SpiffeId;
use postern_policy::document::nearest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Longest question, as JSON: claims of a token and fields of a head. More is none.
pub(crate) const MAX_QUESTION: usize = 256 * 1024;
/// Of a namespace's name, as Kubernetes has it.
const MAX_NAMESPACE: usize = 63;

/// One request, as far as it is told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Question {
    /// Who calls: an ID, `NAMESPACE/WORKLOAD` of the documents, or `plaintext`.
    pub from: String,
    /// Labels of the caller's workload, beside those that the documents give.
    pub from_labels: BTreeMap<String, String>,
    /// Who is called: an ID, or `NAMESPACE/WORKLOAD`.
    pub to: String,
    /// Labels of the workload that is called, beside those that the documents give.
    pub to_labels: BTreeMap<String, String>,
    /// The workload's port. Told by the documents if it has but one.
    pub port: Option<u16>,
    /// An HTTP request; otherwise a stream of bytes.
    pub http: Option<Asked>,
    /// Where the connection comes from.
    pub source_ip: Option<IpAddr>,
    /// The address that is called.
    pub destination_ip: Option<IpAddr>,
    /// The server name of the handshake.
    pub sni: Option<String>,
    /// Seconds since 1970; without it: now.
    pub now: Option<u64>,
}

/// The HTTP part of a question.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Asked {
    /// Case-sensitive.
    pub method: String,
    /// As a client would send it, without the query.
    pub path: String,
    /// `name` or `name:port`.
    pub host: Option<String>,
    /// Name and value, in order.
    pub headers: Vec<(String, String)>,
    /// The claims of the end user's token, taken as verified.
    pub claims: Option<Map<String, Value>>,
}

/// A question that has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswerable {
    says: String,
    /// The workload that may be meant, by namespace and name.
    near: Option<(String, String)>,
    otherwise: &'static str,
}

/// JSON that is no question, or not what one is sent in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("{length} bytes are more than the {MAX_QUESTION} of a question")]
    TooLong { length: usize },
    #[error("{0}")]
    Misshapen(String),
    #[error("the question cannot be read")]
    Json(#[from] serde_json::Error),
}

impl Question {
    pub(crate) fn read(text: &[u8]) -> Result<Self, Unreadable> {
        if text.len() > MAX_QUESTION {
            return Err(Unreadable::TooLong { length: text.len() });
        }
        if let Some(says) = misshapen(&serde_json::from_slice(text)?, &Self::fields(), "") {
            return Err(Unreadable::Misshapen(says));
        }
        // Not from the value: a field that is there twice would be the last one.
        Ok(serde_json::from_slice(text)?)
    }

    /// All that a question may have.
    pub(crate) fn fields() -> Value {
        let all = Self {
            http: Some(Asked::default()),
            ..Self::default()
        };
        // Strings, lists and maps with string keys always are JSON.
        serde_json::to_value(all).unwrap_or_default()
    }

    /// The namespace of the workload that is called, whose policies an answer speaks of.
    pub fn called_namespace(&self) -> Result<&str, Unanswerable> {
        if let Some((namespace, _)) = split(&self.to) {
            return named("--to", namespace);
        }
        SpiffeId::parse(&self.to).map_err(|error| Unanswerable::because(format!("--to: {error}")))?;
        let rest = self.to.split("/ns/").nth(1).and_then(|rest| rest.split_once("/sa/"));
        let (namespace, _) =
            rest.ok_or_else(|| Unanswerable::because("--to: the identity has no namespace".to_owned()))?;
        Ok(namespace)
    }

    /// The namespace whose documents say who the caller is; an ID says that itself.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn namespace_that_describes_caller(&self) -> Result<Option<&str>, Unanswerable> {
        split(&self.from)
            .map(|(namespace, _)| named("--from", namespace))
            .transpose()
    }
}

/// `NAMESPACE/WORKLOAD`.
pub(super) fn split(text: &str) -> Option<(&str, &str)> {
    if text.contains(':') {
        return None;
    }
    text.split_once('/')
}

/// It becomes a part of a path, and of reviews.
fn named<'t>(option: &str, namespace: &'t str) -> Result<&'t str, Unanswerable> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if namespace.is_empty() || namespace.len() > MAX_NAMESPACE || !namespace.bytes().all(plain) {
        return Err(Unanswerable::because(format!(
            "{option}: `{namespace}` is no namespace's name"
        )));
    }
    Ok(namespace)
}

/// The first field that is not among `known`, or that is no object where `known` has fields.
pub(crate) fn misshapen(given: &Value, known: &Value, path: &str) -> Option<String> {
    let known = known.as_object().filter(|known| !known.is_empty())?;
    let at = |path: &str| {
        if path.is_empty() {
            String::new()
        } else {
            format!("{path}: ")
        }
    };
    let given = match given {
        Value::Object(given) => given,
        Value::Null => return None,
        // A list would do for serde: the fields in their order.
        _ => return Some(format!("{}this is no object", at(path))),
    };
    given.iter().find_map(|(key, value)| match known.get(key) {
        Some(known) => {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            misshapen(value, known, &path)
        }
        None => {
            let near = nearest(key, known.keys().map(String::as_str));
            let hint = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            Some(format!("{}unknown field `{key}`{hint}", at(path)))
        }
    })
}

impl Unanswerable {
    pub(super) fn because(says: String) -> Self {
        Self {
            says,
            near: None,
            otherwise: "",
        }
    }

    /// No document describes the workload that an option names.
    pub(super) fn undescribed<'m>(
        option: &str,
        (namespace, name): (&str, &str),
        all: impl Iterator<Item = (&'m str, &'m str)>,
    ) -> Self {
        let known: Vec<(String, (&str, &str))> = all.map(|(n, w)| (format!("{n}/{w}"), (n, w))).collect();
        let near = nearest(
            &format!("{namespace}/{name}"),
            known.iter().map(|(text, _)| text.as_str()),
        );
        let near = near.and_then(|near| known.iter().find(|(text, _)| text == near));
        Self {
            says: format!("{option}: no document describes workload {namespace}/{name}"),
            near: near.map(|(_, (namespace, name))| ((*namespace).to_owned(), (*name).to_owned())),
            otherwise: match option {
                "--to" => "; one that is not described is told by its labels, with --to-label",
                _ => "",
            },
        }
    }

    /// For somebody who may look at these namespaces and no others.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn seen_from(mut self, namespaces: &[&str]) -> Self {
        self.near = self
            .near
            .filter(|(namespace, _)| namespaces.contains(&namespace.as_str()));
        self
    }
}

impl fmt::Display for Unanswerable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.says)?;
        if let Some((namespace, name)) = &self.near {
            write!(f, "; did you mean `{namespace}/{name}`?")?;
        }
        f.write_str(self.otherwise)
    }
}

impl std::error::Error for Unanswerable {}
