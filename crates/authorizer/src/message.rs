//! The question as Envoy's protobuf message.

use std::net::SocketAddr;
use std::time::UNIX_EPOCH;

use prost_types::{ListValue, Struct, Timestamp, Value, value::Kind};

use crate::check::{Check, Http, Peer};
use crate::envoy::config::core::v3::{Address, Metadata, SocketAddress, address, socket_address};
use crate::envoy::service::auth::v3::{AttributeContext, CheckRequest, attribute_context as context};

/// Where our facts stand among other filters' metadata.
pub(crate) const FACTS: &str = "postern";

impl Check {
    /// The message that is sent.
    #[must_use]
    pub fn message(&self) -> CheckRequest {
        let since = self.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let facts = self.facts.iter().map(|(name, fact)| (name.clone(), struct_value(fact)));
        let metadata = Metadata {
            filter_metadata: [(
                FACTS.to_owned(),
                Struct {
                    fields: facts.collect(),
                },
            )]
            .into(),
        };
        CheckRequest {
            attributes: Some(AttributeContext {
                source: Some(peer(&self.source)),
                destination: Some(peer(&self.destination)),
                request: Some(context::Request {
                    time: Some(Timestamp {
                        seconds: since.as_secs().try_into().unwrap_or(i64::MAX),
                        nanos: since.subsec_nanos().try_into().unwrap_or(0),
                    }),
                    http: self.http.as_ref().map(http),
                }),
                context_extensions: self.context.clone(),
                metadata_context: Some(metadata),
                tls_session: self.sni.clone().map(|sni| context::TlsSession { sni }),
                route_metadata_context: Some(Metadata::default()),
            }),
        }
    }
}

fn peer(peer: &Peer) -> context::Peer {
    context::Peer {
        address: peer.address.map(socket),
        principal: peer.principal.clone().unwrap_or_default(),
        ..context::Peer::default()
    }
}

fn socket(address: SocketAddr) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            protocol: 0,
            address: address.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(address.port().into())),
        })),
    }
}

fn http(http: &Http) -> context::HttpRequest {
    let (body, raw_body) = match &http.body {
        None => (String::new(), Vec::new()),
        Some(body) => match body.text() {
            Some(text) => (text.to_owned(), Vec::new()),
            None => (String::new(), body.bytes.clone()),
        },
    };
    context::HttpRequest {
        id: http.id.clone(),
        method: http.method.clone(),
        headers: http.headers.clone(),
        path: http.path.clone(),
        host: http.host.clone(),
        scheme: http.scheme.to_owned(),
        size: http.size,
        protocol: http.protocol.to_owned(),
        body,
        raw_body,
        ..context::HttpRequest::default()
    }
}

fn struct_value(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(0.0)),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(items) => Kind::ListValue(ListValue {
            values: items.iter().map(struct_value).collect(),
        }),
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields.iter().map(|(k, v)| (k.clone(), struct_value(v))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}
