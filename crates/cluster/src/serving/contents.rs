//! What is in the Secret.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;

use super::pair::{Authority, Pair};

const ROTATED: &str = "rotated";
const OLD: &str = "old-ca.crt";

/// What is served, what will be, and what was.
#[derive(Debug, Clone)]
pub(super) struct Contents {
    /// Is served.
    pub(super) current: Pair,
    /// Is published, and not yet served.
    pub(super) next: Option<Pair>,
    /// Still published, as a replica may still serve what they signed.
    pub(super) old: Vec<Authority>,
    /// The value of the annotation that asked for the last rotation.
    pub(super) rotated: Option<String>,
}

impl Contents {
    /// `None`: it is empty, as the chart has made it.
    pub(super) fn read(data: &BTreeMap<String, ByteString>) -> Result<Option<Self>, String> {
        if data.is_empty() {
            return Ok(None);
        }
        let pair = |prefix: &str| -> Result<Option<Pair>, String> {
            let name = |key: &str| format!("{prefix}{key}");
            let get = |key: &str| data.get(&name(key)).map(|value| value.0.as_slice());
            match (get("ca.crt"), get("tls.crt"), get("tls.key")) {
                (None, None, None) => Ok(None),
                (Some(authority), Some(certificate), Some(key)) => Pair::read(authority, certificate, key)
                    .map(Some)
                    .map_err(|error| format!("{}: {error}", name("tls.crt"))),
                _ => Err(format!("{} and {} come together", name("ca.crt"), name("tls.*"))),
            }
        };
        let current = pair("")?.ok_or("there is no tls.crt")?;
        let old = data.get(OLD).map_or(Ok(Vec::new()), |pem| Authority::all(&pem.0));
        Ok(Some(Self {
            current,
            next: pair("next-")?,
            old: old.map_err(|error| format!("{OLD}: {error}"))?,
            rotated: data
                .get(ROTATED)
                .map(|value| String::from_utf8_lossy(&value.0).into_owned()),
        }))
    }

    pub(super) fn data(&self) -> BTreeMap<String, ByteString> {
        let mut data = BTreeMap::new();
        let mut put = |key: String, value: &str| data.insert(key, ByteString(value.as_bytes().to_vec()));
        for (prefix, pair) in [("", Some(&self.current)), ("next-", self.next.as_ref())] {
            let Some(pair) = pair else { continue };
            put(format!("{prefix}ca.crt"), &pair.authority.pem);
            put(format!("{prefix}tls.crt"), &pair.certificate_pem);
            put(format!("{prefix}tls.key"), &pair.key_pem);
        }
        if !self.old.is_empty() {
            let old: String = self.old.iter().map(|old| old.pem.as_str()).collect();
            put(OLD.to_owned(), &old);
        }
        if let Some(rotated) = &self.rotated {
            put(ROTATED.to_owned(), rotated);
        }
        data
    }

    /// The `caBundle`: in an order of its own, so that it stays the same when the next becomes the current one.
    pub(super) fn bundle(&self) -> Vec<u8> {
        let next = self.next.iter().map(|next| &next.authority);
        let mut all: Vec<&Authority> = next.chain([&self.current.authority]).chain(&self.old).collect();
        all.sort_unstable_by(|a, b| a.pem.cmp(&b.pem));
        all.dedup();
        all.iter().flat_map(|authority| authority.pem.bytes()).collect()
    }
}
