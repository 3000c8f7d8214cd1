//! The question as OPA-Envoy's input document: the same `CheckRequest`, in protobuf's JSON form and with its path, query
//! and body parsed. Made as values at once, never as text. What protobuf leaves out because it is empty is absent.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use regorus::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Failure;
use crate::check::{Body, Check, Http, PARTIAL_BODY, Peer};
use crate::message::FACTS;
use crate::target;

type Fields = BTreeMap<Value, Value>;

impl Check {
    /// What the policy sees as `input`.
    pub fn input(&self) -> Result<Value, Failure> {
        let mut attributes = Fields::new();
        put(&mut attributes, "source", peer(&self.source));
        put(&mut attributes, "destination", peer(&self.destination));
        let mut request = Fields::new();
        if let Ok(time) = OffsetDateTime::from(self.time).format(&Rfc3339) {
            put(&mut request, "time", text(&time));
        }
        if let Some(asked) = &self.http {
            put(&mut request, "http", http(asked));
        }
        put(&mut attributes, "request", request.into());
        if !self.context.is_empty() {
            put(&mut attributes, "contextExtensions", texts(&self.context));
        }
        let facts = object([(FACTS, serde_json::Value::Object(self.facts.clone()).into())]);
        put(&mut attributes, "metadataContext", object([("filterMetadata", facts)]));
        put(&mut attributes, "routeMetadataContext", Value::new_object());
        if let Some(sni) = &self.sni {
            put(&mut attributes, "tlsSession", object([("sni", text(sni))]));
        }

        let mut input = Fields::new();
        put(&mut input, "attributes", attributes.into());
        put(
            &mut input,
            "version",
            object([("ext_authz", text("v3")), ("encoding", text("protojson"))]),
        );
        if let Some(principal) = &self.source.principal {
            put(&mut input, "source_principal", text(principal));
        }
        let (path, query) = match &self.http {
            Some(asked) => target::split(&asked.path)?,
            // OPA-Envoy parses the empty path that it finds.
            None => (vec![String::new()], BTreeMap::new()),
        };
        put(&mut input, "parsed_path", list(&path));
        put(&mut input, "parsed_query", lists(&query));
        let (body, cut) = match &self.http {
            Some(asked) => parsed_body(asked)?,
            None => (Value::Null, false),
        };
        put(&mut input, "parsed_body", body);
        put(&mut input, "truncated_body", cut.into());
        Ok(input.into())
    }
}

fn http(http: &Http) -> Value {
    let mut fields = Fields::new();
    let named: [(&str, &str); 6] = [
        ("id", &http.id),
        ("method", &http.method),
        ("path", &http.path),
        ("host", &http.host),
        ("scheme", http.scheme),
        ("protocol", http.protocol),
    ];
    for (name, value) in named.into_iter().filter(|(_, value)| !value.is_empty()) {
        put(&mut fields, name, text(value));
    }
    if !http.headers.is_empty() {
        put(&mut fields, "headers", texts(&http.headers));
    }
    if http.size != 0 {
        // protobuf's JSON writes 64-bit numbers as text.
        put(&mut fields, "size", text(&http.size.to_string()));
    }
    if let Some(body) = http.body.as_ref().filter(|body| !body.bytes.is_empty()) {
        match body.text() {
            Some(body) => put(&mut fields, "body", text(body)),
            None => put(&mut fields, "rawBody", text(&BASE64_STANDARD.encode(&body.bytes))),
        }
    }
    fields.into()
}

fn peer(peer: &Peer) -> Value {
    let mut fields = Fields::new();
    if let Some(address) = peer.address {
        put(&mut fields, "address", socket(address));
    }
    if let Some(principal) = &peer.principal {
        put(&mut fields, "principal", text(principal));
    }
    fields.into()
}

fn socket(address: SocketAddr) -> Value {
    let socket = object([
        ("address", text(&address.ip().to_string())),
        ("portValue", u64::from(address.port()).into()),
    ]);
    object([("socketAddress", socket)])
}

/// The body by its type, and whether it is cut. OPA-Envoy answers 400 to what it cannot parse.
fn parsed_body(http: &Http) -> Result<(Value, bool), Failure> {
    let header = |name: &str| http.headers.get(name).map(String::as_str);
    let (Some(kind), Some(body)) = (header("content-type"), &http.body) else {
        return Ok((Value::Null, false));
    };
    let json = kind.contains("application/json");
    let form = kind.contains("application/x-www-form-urlencoded");
    let multipart = kind.contains("multipart/form-data");
    if body.bytes.is_empty() || !(json || form || multipart) {
        return Ok((Value::Null, false));
    }
    if is_cut(body, header("content-length"), header(PARTIAL_BODY))? {
        return Ok((Value::Null, true));
    }
    if json {
        let value: Value =
            serde_json::from_slice(&body.bytes).map_err(|_| Failure::Unaskable("body is not JSON as declared"))?;
        return Ok((value, false));
    }
    if multipart {
        // A policy that looks for what must not be there would not find it: refused rather than left out.
        return Err(Failure::Unaskable("multipart bodies are not parsed"));
    }
    match body.text().map(target::pairs) {
        Some((pairs, true)) => Ok((lists(&pairs), false)),
        _ => Err(Failure::Unaskable("body is not a form as declared")),
    }
}

fn is_cut(body: &Body, declared: Option<&str>, partial: Option<&str>) -> Result<bool, Failure> {
    let Some(declared) = declared else {
        return Ok(body.cut || partial == Some("true"));
    };
    let declared: i64 = declared.parse().map_err(|_| Failure::Unaskable("content-length"))?;
    let have = i64::try_from(body.bytes.len()).unwrap_or(i64::MAX);
    Ok(body.cut || partial == Some("true") || declared > have)
}

fn put(fields: &mut Fields, name: &str, value: Value) {
    fields.insert(text(name), value);
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::from(
        fields
            .into_iter()
            .map(|(name, value)| (text(name), value))
            .collect::<Fields>(),
    )
}

fn text(text: &str) -> Value {
    Value::from(text)
}

fn texts(pairs: &BTreeMap<String, String>) -> Value {
    Value::from(
        pairs
            .iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect::<Fields>(),
    )
}

fn list(items: &[String]) -> Value {
    Value::from(items.iter().map(|item| text(item)).collect::<Vec<_>>())
}

fn lists(pairs: &BTreeMap<String, Vec<String>>) -> Value {
    Value::from(
        pairs
            .iter()
            .map(|(name, values)| (text(name), list(values)))
            .collect::<Fields>(),
    )
}
