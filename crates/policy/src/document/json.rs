//! JSON values to nodes, as an API server hands them over. A node's place is its path inside the object, since there are no
//! lines: `AuthorizationPolicy/shop/cart:spec.rules[0].from`.

use serde_json::Value as Json;

use super::yaml::{MAX_DEPTH, MAX_KEYS};
use super::{DocumentError, Node, Place, Value};
use crate::turns;

pub(super) fn node(json: &Json, origin: &str) -> Result<Node, DocumentError> {
    read(json, origin, &mut String::new(), 0)
}

/// `path` is as it was when this returns.
fn read(json: &Json, origin: &str, path: &mut String, depth: usize) -> Result<Node, DocumentError> {
    turns::next();
    let place = place(origin, path);
    if depth > MAX_DEPTH {
        return Err(error(place, path, format!("nested deeper than {MAX_DEPTH}")));
    }
    let length = path.len();
    let value = match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => number
            .as_i64()
            .map_or_else(|| Value::Float(number.as_f64().unwrap_or(f64::NAN)), Value::Int),
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(items) => {
            let mut nodes = Vec::with_capacity(items.len());
            for (index, item) in items.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                nodes.push(read(item, origin, path, depth + 1)?);
                path.truncate(length);
            }
            Value::List(nodes)
        }
        Json::Object(entries) if entries.len() > MAX_KEYS => {
            return Err(error(place, path, format!("a map with more than {MAX_KEYS} keys")));
        }
        Json::Object(entries) => {
            let mut map = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
                let value = read(value, origin, path, depth + 1)?;
                map.push((key.clone(), value.place.clone(), value));
                path.truncate(length);
            }
            Value::Map(map)
        }
    };
    Ok(Node { place, value })
}

fn place(origin: &str, path: &str) -> Place {
    let file = if path.is_empty() {
        origin.into()
    } else {
        format!("{origin}:{path}").into()
    };
    Place {
        file,
        line: 0,
        column: 0,
    }
}

fn error(place: Place, path: &str, what: String) -> DocumentError {
    DocumentError {
        place,
        path: path.to_owned(),
        what,
        nearest: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use crate::AuthorizationPolicy;
    use crate::document::{Object, parse};

    fn policy(rules: &serde_json::Value) -> serde_json::Value {
        json!({
            "apiVersion": "postern.dev/v1alpha1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": "cart", "namespace": "shop", "uid": "1", "managedFields": [{ "manager": "kubectl" }] },
            "spec": { "action": "ALLOW", "rules": rules },
        })
    }

    fn errors(rules: &serde_json::Value) -> Vec<String> {
        let object = Object::from_json(&policy(rules), "AuthorizationPolicy/shop/cart").unwrap();
        let errors = AuthorizationPolicy::from_object(&object).unwrap_err();
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_error_names_the_json_path_and_the_nearest_name() {
        assert_eq!(
            errors(&json!([{ "from": [{ "source": { "principal": ["a"] } }] }])),
            [
                "AuthorizationPolicy/shop/cart:spec.rules[0].from[0].source.principal: unknown field `principal`; did you mean `principals`?"
            ]
        );
    }

    #[test]
    fn an_error_about_a_fields_value_names_the_field_and_not_only_the_map_that_it_is_in() {
        assert_eq!(
            errors(&json!([{ "when": [{ "key": "source.ips", "values": ["10.0.0.1"] }] }])),
            [
                "AuthorizationPolicy/shop/cart:spec.rules[0].when[0].key: `source.ips` is no key of a condition; did you mean `source.ip`?"
            ]
        );
        let missing = errors(&json!([{ "when": [{ "values": ["10.0.0.1"] }] }]));
        assert_eq!(
            missing,
            ["AuthorizationPolicy/shop/cart:spec.rules[0].when[0]: `key` is missing"]
        );
    }

    #[test]
    fn a_policy_reads_the_same_as_json_and_as_yaml_but_for_its_places() {
        let rules = json!([{ "to": [{ "operation": { "paths": ["/a/*"], "methods": ["GET"], "ports": ["80"] } }] }]);
        let text = policy(&rules).to_string();
        let from = |object: &Object| {
            let mut policy = AuthorizationPolicy::from_object(object).unwrap();
            policy.place = crate::document::Place::default();
            policy
                .rules
                .iter_mut()
                .for_each(|rule| rule.place = policy.place.clone());
            policy
        };
        let json = Object::from_json(&policy(&rules), "x").unwrap();
        assert_eq!(from(&json), from(&parse("x", &text).unwrap()[0]));
        let policy = AuthorizationPolicy::from_object(&json).unwrap();
        assert_eq!(policy.place.to_string(), "x");
        assert_eq!(policy.rules[0].place.to_string(), "x:spec.rules[0]");
    }

    #[test]
    fn what_nests_too_deep_or_is_no_object_is_refused() {
        let mut deep = json!(1);
        for _ in 0..40 {
            deep = json!([deep]);
        }
        let error = Object::from_json(
            &json!({ "apiVersion": "v1", "kind": "X", "metadata": { "name": "a" }, "spec": deep }),
            "x",
        )
        .unwrap_err();
        assert!(error[0].to_string().contains("nested deeper"), "{error:?}");
        for other in [json!(null), json!([]), json!("x"), json!({})] {
            assert!(Object::from_json(&other, "x").is_err(), "{other}");
        }
    }
}
