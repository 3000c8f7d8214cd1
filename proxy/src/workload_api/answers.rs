//! Messages of the Workload API, made of one revision each.

use std::collections::HashMap;
use std::sync::Arc;

use postern_api::workload_api::{JwtBundlesResponse, X509BundlesResponse, X509svid, X509svidResponse};
use postern_identity::TrustBundle;
use prost_types::Struct;
use prost_types::value::Kind;
use rustls::pki_types::CertificateDer;
use serde_json::{Map, Value};

use super::Material;

/// The SVID with its key, and all bundles: the full state, every time.
pub(super) fn x509_svid(material: &Material) -> X509svidResponse {
    let own = material.svid.id().trust_domain();
    let others = material
        .bundles
        .iter()
        .filter(|bundle| bundle.trust_domain().as_str() != own);
    X509svidResponse {
        svids: vec![X509svid {
            spiffe_id: material.svid.id().to_string(),
            x509_svid: concatenated(material.svid.chain()),
            x509_svid_key: material.key.to_vec(),
            bundle: material
                .bundles
                .get(own)
                .map_or_else(Vec::new, |own| concatenated(own.roots())),
            hint: String::new(),
        }],
        // We have none: identities are cut off by short lives, bundles and quarantine.
        crl: Vec::new(),
        federated_bundles: others.map(|bundle| by_name(bundle)).collect(),
    }
}

/// The bundles alone, that of our own trust domain among them.
pub(super) fn x509_bundles(material: &Material) -> X509BundlesResponse {
    let bundles: HashMap<_, _> = material.bundles.iter().map(|bundle| by_name(bundle)).collect();
    X509BundlesResponse {
        crl: Vec::new(),
        bundles,
    }
}

/// The keys of JWT-SVIDs alone, by trust domain, each a JWKS document.
pub(super) fn jwt_bundles(material: &Material) -> JwtBundlesResponse {
    let jwks = |bundle: &Arc<TrustBundle>| (format!("spiffe://{}", bundle.trust_domain()), bundle.jwks());
    JwtBundlesResponse {
        bundles: material.bundles.iter().map(jwks).collect(),
    }
}

/// JSON as protobuf has it.
pub(super) fn structure(claims: Map<String, Value>) -> Struct {
    Struct {
        fields: claims
            .into_iter()
            .map(|(name, value)| (name, protobuf(value)))
            .collect(),
    }
}

fn protobuf(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(truth),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => Kind::ListValue(prost_types::ListValue {
            values: values.into_iter().map(protobuf).collect(),
        }),
        Value::Object(fields) => Kind::StructValue(structure(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}

/// By the SPIFFE ID of its trust domain.
fn by_name(bundle: &TrustBundle) -> (String, Vec<u8>) {
    (
        format!("spiffe://{}", bundle.trust_domain()),
        concatenated(bundle.roots()),
    )
}

fn concatenated(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates.iter().flat_map(|der| der.iter().copied()).collect()
}
