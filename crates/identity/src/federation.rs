//! Bundles of other trust domains, as somebody whom we do not control publishes them (SPIFFE Trust Domain and Bundle section
//! 4, SPIFFE Federation section 5): read strictly, and never under another name than the one that was asked for.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::bundle::{self, BundleError, JwtKey};
use crate::{TrustBundle, TrustDomain};

/// Where a document does not say how often to look (SPIFFE Trust Domain and Bundle section 4.1.2).
pub const DEFAULT_REFRESH: Duration = Duration::from_secs(5 * 60);
/// Trust domains of one bundle map; a mesh federates with a few.
pub const MAX_MAP: usize = 256;

/// A bundle document. It does not say whose it is: whoever asked for it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    sequence: u64,
    refresh_hint: Option<Duration>,
    roots: Vec<CertificateDer<'static>>,
    jwt_keys: Vec<JwtKey>,
}

/// Reads a SPIFFE bundle document of at most 256 KiB. No name may stand twice in any object: two readers could take two
/// different bundles from it. Entries that are no roots and no keys are left out; without any left the bundle believes nobody.
pub fn parse_document(json: &[u8]) -> Result<Document, BundleError> {
    bounded(json)?;
    no_name_twice(json)?;
    let read = bundle::read_document(json)?;
    Ok(Document {
        sequence: read.sequence,
        refresh_hint: read.refresh_hint,
        roots: read.roots,
        jwt_keys: read.jwt_keys,
    })
}

/// Reads a SPIFFE bundle map (SPIFFE Trust Domain and Bundle section 4.4): bundles by trust domain, each of which keeps a hint
/// of its own that says nothing of how often the map changes.
pub fn parse_map(json: &[u8]) -> Result<BTreeMap<TrustDomain, Document>, BundleError> {
    #[derive(Deserialize)]
    struct Map {
        trust_domains: BTreeMap<String, Value>,
    }
    bounded(json)?;
    no_name_twice(json)?;
    let map: Map = serde_json::from_slice(json).map_err(|error| BundleError::Document(error.to_string()))?;
    if map.trust_domains.len() > MAX_MAP {
        return Err(BundleError::Document(format!("more than {MAX_MAP} trust domains")));
    }
    let read = |(name, document): (String, Value)| {
        Ok((
            TrustDomain::parse(&name)?,
            parse_document(document.to_string().as_bytes())?,
        ))
    };
    map.trust_domains.into_iter().map(read).collect()
}

/// The bundle of `trust_domain` from either: its document, or a map that holds it.
pub fn parse_for(trust_domain: &TrustDomain, json: &[u8]) -> Result<Document, BundleError> {
    #[derive(Deserialize)]
    struct Shape {
        trust_domains: Option<IgnoredAny>,
    }
    bounded(json)?;
    match serde_json::from_slice(json) {
        Ok(Shape { trust_domains: Some(_) }) => {
            let found = parse_map(json)?.remove(trust_domain);
            found.ok_or_else(|| BundleError::Document(format!("the bundle map holds no trust domain `{trust_domain}`")))
        }
        Ok(Shape { trust_domains: None }) | Err(_) => parse_document(json),
    }
}

impl Document {
    /// `spiffe_sequence`; 0 if it is left out.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// `spiffe_refresh_hint`, if it is a positive number of whole seconds.
    #[must_use]
    pub fn refresh_hint(&self) -> Option<Duration> {
        self.refresh_hint
    }

    /// The bundle that it is of this trust domain at `now`: roots that are no authorities, or have expired, are left out.
    #[must_use]
    pub fn into_bundle(self, trust_domain: TrustDomain, now: UnixTime) -> TrustBundle {
        TrustBundle::new(trust_domain, self.sequence, self.roots, now).with_jwt_keys(self.jwt_keys)
    }
}

fn bounded(json: &[u8]) -> Result<(), BundleError> {
    if json.len() > bundle::MAX_DOCUMENT {
        return Err(BundleError::Document(format!(
            "longer than {} bytes",
            bundle::MAX_DOCUMENT
        )));
    }
    Ok(())
}

fn no_name_twice(json: &[u8]) -> Result<(), BundleError> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let looked = Unique.deserialize(&mut reader).and_then(|()| reader.end());
    looked.map_err(|error| BundleError::Document(error.to_string()))
}

/// Reads any JSON, keeps nothing of it, and fails where an object has a name twice. The depth is bounded by serde_json.
#[derive(Clone, Copy)]
struct Unique;

impl<'de> DeserializeSeed<'de> for Unique {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = entries.next_key::<String>()? {
            if names.contains(&name) {
                let shown: String = name.chars().take(64).collect();
                return Err(A::Error::custom(format_args!("an object has the name {shown:?} twice")));
            }
            names.insert(name);
            entries.next_value_seed(self)?;
        }
        Ok(())
    }
}
