//! Label and field selectors, as `kubectl get -l` and `--field-selector` send them. What is not understood is refused:
//! a selector that selects too much would show what was not asked for.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// What an object must be to be shown. Default: anything.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(Field, bool, String)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Requirement {
    /// The label has (or has not) this value.
    Equals { key: String, value: String, wanted: bool },
    /// The label is (or is not) there.
    Exists { key: String, wanted: bool },
}

#[derive(Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
}

/// What was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SelectorError {
    #[error("the label selector `{0}` is not supported: key=value, key!=value, key and !key are")]
    Label(String),
    #[error("the field selector `{0}` is not supported: metadata.name and metadata.namespace are")]
    Field(String),
}

impl Selector {
    pub(super) fn take_labels(&mut self, text: &str) -> Result<(), SelectorError> {
        for part in parts(text) {
            let requirement = match equality(part) {
                Some((key, wanted, value)) => Requirement::Equals { key, value, wanted },
                None => {
                    let (key, wanted) = part.strip_prefix('!').map_or((part, true), |key| (key.trim(), false));
                    let key = key.to_owned();
                    Requirement::Exists { key, wanted }
                }
            };
            let (Requirement::Equals { key, .. } | Requirement::Exists { key, .. }) = &requirement;
            if key.is_empty() || key.contains(|c: char| c.is_whitespace() || "()<>!".contains(c)) {
                return Err(SelectorError::Label(part.to_owned()));
            }
            self.labels.push(requirement);
        }
        Ok(())
    }

    pub(super) fn take_fields(&mut self, text: &str) -> Result<(), SelectorError> {
        for part in parts(text) {
            let unknown = || SelectorError::Field(part.to_owned());
            let (key, wanted, value) = equality(part).ok_or_else(unknown)?;
            let field = match &*key {
                "metadata.name" => Field::Name,
                "metadata.namespace" => Field::Namespace,
                _ => return Err(unknown()),
            };
            self.fields.push((field, wanted, value));
        }
        Ok(())
    }

    pub(crate) fn selects(&self, metadata: &ObjectMeta) -> bool {
        let none = BTreeMap::new();
        let labels = metadata.labels.as_ref().unwrap_or(&none);
        let by_label = self.labels.iter().all(|requirement| match requirement {
            Requirement::Equals { key, value, wanted } => (labels.get(key) == Some(value)) == *wanted,
            Requirement::Exists { key, wanted } => labels.contains_key(key) == *wanted,
        });
        by_label
            && self.fields.iter().all(|(field, wanted, value)| {
                let actual = match field {
                    Field::Name => &metadata.name,
                    Field::Namespace => &metadata.namespace,
                };
                (actual.as_deref().unwrap_or_default() == value) == *wanted
            })
    }
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// Key, whether it should be equal, value.
fn equality(part: &str) -> Option<(String, bool, String)> {
    let (key, wanted, value) = if let Some((key, value)) = part.split_once("!=") {
        (key, false, value)
    } else if let Some((key, value)) = part.split_once("==") {
        (key, true, value)
    } else {
        let (key, value) = part.split_once('=')?;
        (key, true, value)
    };
    Some((key.trim().to_owned(), wanted, value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn object() -> ObjectMeta {
        ObjectMeta {
            name: Some("cart".to_owned()),
            namespace: Some("shop".to_owned()),
            labels: Some(BTreeMap::from([("secured".to_owned(), "true".to_owned())])),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn labels_and_fields_select_as_kubectl_means_them() {
        for (labels, fields, selects) in [
            ("", "", true),
            ("secured=true", "", true),
            ("secured==true,!other", "metadata.name=cart", true),
            ("secured!=true", "", false),
            ("other!=x", "", true),
            ("other", "", false),
            ("!secured", "", false),
            ("", "metadata.namespace!=shop", false),
            ("", "metadata.name==cart,metadata.namespace=shop", true),
        ] {
            let mut selector = Selector::default();
            selector.take_labels(labels).unwrap();
            selector.take_fields(fields).unwrap();
            assert_eq!(selector.selects(&object()), selects, "{labels} {fields}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_and_not_ignored() {
        for labels in ["secured in (true, false)", "a > 3", "=x", "!"] {
            assert!(Selector::default().take_labels(labels).is_err(), "{labels}");
        }
        for fields in ["status.phase=Running", "metadata.name"] {
            assert!(Selector::default().take_fields(fields).is_err(), "{fields}");
        }
    }
}
