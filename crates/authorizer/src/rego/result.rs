//! The policy's decision as a verdict: a boolean, or the object that OPA-Envoy takes.

use regorus::Value;

use crate::Failure;
use crate::verdict::{self, Append, Edits, Refusal, Verdict};

pub(super) fn verdict(decision: &Value) -> Result<Verdict, Failure> {
    match decision {
        Value::Undefined => Err(Failure::Undefined),
        Value::Bool(true) => Ok(Verdict::Allow(Edits::default())),
        Value::Bool(false) => Ok(Verdict::Deny(Refusal::bare())),
        Value::Object(_) => match member(decision, "allowed") {
            Some(Value::Bool(true)) => edits(decision).map(Verdict::Allow),
            Some(Value::Bool(false)) => refusal(decision).map(Verdict::Deny),
            Some(_) => Err(Failure::Nonsense("`allowed` is no boolean")),
            None => Err(Failure::Nonsense("an object without `allowed`")),
        },
        _ => Err(Failure::Nonsense("neither boolean nor object")),
    }
}

fn edits(decision: &Value) -> Result<Edits, Failure> {
    let with = |append| move |(name, value)| (name, value, append);
    let answer = headers(decision, "response_headers_to_add")?;
    Edits {
        request: headers(decision, "headers")?
            .into_iter()
            .map(with(Append::Overwrite))
            .collect(),
        remove: names(decision, "request_headers_to_remove")?
            .into_iter()
            .map(verdict::name)
            .collect::<Result<_, _>>()?,
        answer: answer.into_iter().map(with(Append::Append)).collect(),
        set_query: query(decision)?,
        remove_query: names(decision, "query_parameters_to_remove")?
            .into_iter()
            .map(str::to_owned)
            .collect(),
    }
    .bounded()
}

fn refusal(decision: &Value) -> Result<Refusal, Failure> {
    let status = match member(decision, "http_status") {
        None => 403,
        Some(status) => status
            .as_u64()
            .map_err(|_| Failure::Nonsense("`http_status` is no number"))?,
    };
    let body = match member(decision, "body") {
        None => "",
        Some(Value::String(body)) => body.as_ref(),
        Some(_) => return Err(Failure::Nonsense("`body` is no string")),
    };
    Refusal::of(status, headers(decision, "headers")?, body.to_owned())
}

fn member<'v>(object: &'v Value, name: &str) -> Option<&'v Value> {
    object.as_object().ok()?.get(&Value::from(name))
}

type Fields = Vec<(http::HeaderName, http::HeaderValue)>;

/// An object of strings or lists of strings, or a list of such objects.
fn headers(decision: &Value, member_name: &'static str) -> Result<Fields, Failure> {
    let mut fields = Fields::new();
    match member(decision, member_name) {
        None => {}
        Some(one @ Value::Object(_)) => add_headers(one, &mut fields)?,
        Some(Value::Array(several)) => {
            for one in several.iter() {
                add_headers(one, &mut fields)?;
            }
        }
        Some(_) => return Err(Failure::Nonsense("headers are neither an object nor a list of objects")),
    }
    Ok(fields)
}

fn add_headers(object: &Value, fields: &mut Fields) -> Result<(), Failure> {
    let wrong = Failure::Nonsense("a header is neither a string nor a list of strings");
    let object = object.as_object().map_err(|_| wrong.clone())?;
    for (name, value) in object.iter_sorted() {
        let Value::String(name) = name else { return Err(wrong) };
        let values = match value {
            Value::String(_) => std::slice::from_ref(value).iter().collect::<Vec<_>>(),
            Value::Array(values) => values.iter().collect(),
            _ => return Err(wrong),
        };
        for value in values {
            let Value::String(value) = value else { return Err(wrong) };
            if fields.len() == verdict::MAX_FIELDS {
                return Err(Failure::TooLarge("fields"));
            }
            fields.push(verdict::field(name, value.as_bytes())?);
        }
    }
    Ok(())
}

fn names<'v>(decision: &'v Value, member_name: &'static str) -> Result<Vec<&'v str>, Failure> {
    let wrong = Failure::Nonsense("what is removed is no list of strings");
    match member(decision, member_name) {
        None => Ok(Vec::new()),
        Some(Value::Array(names)) => names
            .iter()
            .map(|name| match name {
                Value::String(name) => Ok(name.as_ref()),
                _ => Err(wrong.clone()),
            })
            .collect(),
        Some(_) => Err(wrong),
    }
}

fn query(decision: &Value) -> Result<Vec<(String, String)>, Failure> {
    let wrong = Failure::Nonsense("a query parameter is neither a string nor a list of strings");
    let Some(parameters) = member(decision, "query_parameters_to_set") else {
        return Ok(Vec::new());
    };
    let mut set = Vec::new();
    for (name, value) in parameters.as_object().map_err(|_| wrong.clone())?.iter_sorted() {
        let Value::String(name) = name else { return Err(wrong) };
        match value {
            Value::String(value) => set.push((name.to_string(), value.to_string())),
            Value::Array(values) => {
                for value in values.iter() {
                    let Value::String(value) = value else { return Err(wrong) };
                    set.push((name.to_string(), value.to_string()));
                }
            }
            _ => return Err(wrong),
        }
    }
    Ok(set)
}
