//! Takes a map's fields one by one and refuses what is left over, with the nearest valid name.

use std::collections::BTreeMap;

use super::{DocumentError, Node, Place, Value};

/// How alike two names must be (Jaro-Winkler) to be suggested.
const ALIKE: f64 = 0.7;

/// The one of `known` that is most like `name`, if any is like it.
pub fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let name = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&name, &candidate.to_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// Decodes a map's fields one by one. What is never taken is an error at [`Fields::finish`].
#[derive(Debug)]
pub struct Fields<'a> {
    place: &'a Place,
    path: String,
    left: Vec<&'a (String, Place, Node)>,
    known: Vec<&'static str>,
    errors: Vec<DocumentError>,
}

impl<'a> Fields<'a> {
    /// The fields of `node`, which must be a map (absent and `null` are an empty one). `path` is for messages.
    pub fn of(node: &'a Node, path: &str) -> Result<Self, DocumentError> {
        let left = match &node.value {
            Value::Map(entries) => entries.iter().collect(),
            Value::Null => Vec::new(),
            other @ (Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) | Value::List(_)) => {
                let what = format!("must be a map, not {}", other.describe());
                return Err(DocumentError {
                    place: node.place.clone(),
                    path: path.to_owned(),
                    what,
                    nearest: None,
                });
            }
        };
        Ok(Self {
            place: &node.place,
            path: path.to_owned(),
            left,
            known: Vec::new(),
            errors: Vec::new(),
        })
    }

    /// Where the map begins.
    #[must_use]
    pub fn place(&self) -> &'a Place {
        self.place
    }

    /// The path of a field in messages.
    #[must_use]
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// Is the field there, and not taken yet?
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.left.iter().any(|(key, _, _)| key == name)
    }

    /// Where the field's value begins, if it is there and not taken yet.
    #[must_use]
    pub fn place_of(&self, name: &str) -> Option<&'a Place> {
        let (_, _, node) = self.left.iter().find(|(key, _, _)| key == name)?;
        Some(&node.place)
    }

    /// The field's node, whatever it is.
    pub fn take(&mut self, name: &'static str) -> Option<&'a Node> {
        self.known.push(name);
        let at = self.left.iter().position(|(key, _, _)| key == name)?;
        Some(&self.left.remove(at).2)
    }

    /// The fields of a map inside this one. Written without a value it is refused, as are lists and maps of text: what
    /// remains of a list whose items were commented out is not a list left out.
    pub fn child(&mut self, name: &'static str) -> Option<Fields<'a>> {
        let node = self.take(name)?;
        if node.value == Value::Null {
            return self.wrong(node, name, &node.value, "a map");
        }
        match Fields::of(node, &self.path_of(name)) {
            Ok(fields) => Some(fields),
            Err(error) => {
                self.errors.push(error);
                None
            }
        }
    }

    /// Text; numbers and booleans where text belongs are refused, since YAML would have changed them.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        let node = self.take(name)?;
        match &node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Null => None,
            other => self.wrong(node, name, other, "text (in quotes if it looks like a number)"),
        }
    }

    /// Text that must be there and not empty.
    pub fn required_text(&mut self, name: &'static str) -> Option<String> {
        let before = self.errors.len();
        let text = self.text(name).filter(|text| !text.is_empty());
        if text.is_none() && self.errors.len() == before {
            self.missing(name);
        }
        text
    }

    /// `true` or `false`.
    pub fn bool(&mut self, name: &'static str) -> Option<bool> {
        let node = self.take(name)?;
        match &node.value {
            Value::Bool(value) => Some(*value),
            Value::Null => None,
            other => self.wrong(node, name, other, "true or false"),
        }
    }

    /// A port: 1 to 65535.
    pub fn port(&mut self, name: &'static str) -> Option<u16> {
        let node = self.take(name)?;
        match &node.value {
            Value::Int(value) => match u16::try_from(*value) {
                Ok(port) if port > 0 => Some(port),
                _ => {
                    self.error(&node.place, name, format!("{value} is no port: 1 to 65535"));
                    None
                }
            },
            Value::Null => None,
            other => self.wrong(node, name, other, "a port number"),
        }
    }

    /// A list's items, each with its path.
    pub fn list(&mut self, name: &'static str) -> Option<Vec<(String, &'a Node)>> {
        let node = self.take(name)?;
        match &node.value {
            Value::List(items) => {
                let path = self.path_of(name);
                Some(
                    items
                        .iter()
                        .enumerate()
                        .map(|(i, item)| (format!("{path}[{i}]"), item))
                        .collect(),
                )
            }
            other => self.wrong(node, name, other, "a list"),
        }
    }

    /// A list of text.
    pub fn texts(&mut self, name: &'static str) -> Option<Vec<(&'a Place, String)>> {
        let mut texts = Vec::new();
        for (path, item) in self.list(name)? {
            match &item.value {
                Value::Text(text) => texts.push((&item.place, text.clone())),
                other => {
                    let what = format!(
                        "must be text (in quotes if it looks like a number), not {}",
                        other.describe()
                    );
                    self.errors.push(DocumentError {
                        place: item.place.clone(),
                        path,
                        what,
                        nearest: None,
                    });
                }
            }
        }
        Some(texts)
    }

    /// A map of text to text.
    pub fn text_map(&mut self, name: &'static str) -> BTreeMap<String, String> {
        let Some(node) = self.take(name) else {
            return BTreeMap::new();
        };
        match &node.value {
            Value::Map(entries) => {
                let mut map = BTreeMap::new();
                for (key, place, value) in entries {
                    if let Value::Text(text) = &value.value {
                        map.insert(key.clone(), text.clone());
                    } else {
                        let what = format!("`{key}` must be text (in quotes), not {}", value.value.describe());
                        self.error(place, name, what);
                    }
                }
                map
            }
            other => {
                self.wrong::<()>(node, name, other, "a map of text");
                BTreeMap::new()
            }
        }
    }

    /// Records that a field is missing.
    pub fn missing(&mut self, name: &'static str) {
        let place = self.place.clone();
        self.errors.push(DocumentError {
            place,
            path: self.path.clone(),
            what: format!("`{name}` is missing"),
            nearest: None,
        });
    }

    /// Records an error about a field.
    pub fn error(&mut self, place: &Place, name: &str, what: impl Into<String>) {
        let path = self.path_of(name);
        self.errors.push(DocumentError {
            place: place.clone(),
            path,
            what: what.into(),
            nearest: None,
        });
    }

    /// Records an error about a field's value, with the nearest valid one.
    pub fn unknown_value(&mut self, place: &Place, name: &str, value: &str, known: &[&str]) {
        let path = self.path_of(name);
        let what = format!("`{value}` is not one of {}", known.join(", "));
        let nearest = nearest(value, known.iter().copied()).map(str::to_owned);
        self.errors.push(DocumentError {
            place: place.clone(),
            path,
            what,
            nearest,
        });
    }

    /// Refuses fields that nobody took, and hands over all errors.
    pub fn finish(mut self, errors: &mut Vec<DocumentError>) {
        for (key, place, _) in &self.left {
            self.errors.push(DocumentError {
                place: place.clone(),
                path: self.path.clone(),
                what: format!("unknown field `{key}`"),
                nearest: nearest(key, self.known.iter().copied()).map(str::to_owned),
            });
        }
        errors.append(&mut self.errors);
    }

    fn wrong<T>(&mut self, node: &Node, name: &str, is: &Value, wanted: &str) -> Option<T> {
        self.error(&node.place, name, format!("must be {wanted}, not {}", is.describe()));
        None
    }
}

impl Value {
    fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Bool(value) => format!("the boolean {value}"),
            Self::Int(value) => format!("the number {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Text(text) => format!("the text `{text}`"),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a map".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_like_the_given_one_or_none_is_named() {
        let known = ["principals", "notPrincipals", "namespaces", "serviceAccounts"];
        for (given, near) in [
            ("principal", Some("principals")),
            ("NAMESPACES", Some("namespaces")),
            ("not_principals", Some("notPrincipals")),
            ("serviceAcounts", Some("serviceAccounts")),
            ("zzz", None),
            ("", None),
        ] {
            assert_eq!(nearest(given, known), near, "{given}");
        }
        assert_eq!(nearest("principals", []), None);
    }
}
