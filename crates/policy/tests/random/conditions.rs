//! Random conditions, and what they look at.

use std::collections::BTreeMap;
use std::net::IpAddr;

use postern_policy::request::is_same_field;
use postern_policy::{AddressKey, Condition, Headers, IpBlock, StringMatch, TextKey, User, UserMatch, Values};
use serde_json::{Value, json};

use super::{ADDRESSES, BLOCKS, Choices, ISSUERS, PORTS, SUBJECTS};

/// The time of every request.
pub(crate) const NOW: u64 = 1_800_000_000;
const FIELDS: [&str; 4] = ["x-role", "x_role", "x-tenant", "x.role"];
const VALUES: [&str; 9] = [
    "admin",
    "adm",
    "guest",
    "admin, guest",
    "guest,admin",
    "admin,admin",
    "",
    "Admin",
    "caf\u{e9}",
];
const LABELS: [&str; 3] = ["app", "region", "tier"];
const LABEL_VALUES: [&str; 4] = ["web", "eu", "eu-west", ""];
const CLAIMS: [&[&str]; 7] = [
    &["amr"],
    &["acr"],
    &["scope"],
    &["realm", "roles"],
    &["realm"],
    &["admin"],
    &["missing"],
];
const CLAIM_VALUES: [&str; 8] = ["pwd", "otp", "1", "2", "read", "write", "true", "read write"];
const AGES: [u64; 3] = [60, 900, 86_400];

/// The fields of a head.
#[derive(Debug, Default)]
pub(crate) struct Fields(pub(crate) Vec<(&'static str, &'static str)>);

impl Headers for Fields {
    fn each(&self, name: &str, found: &mut dyn FnMut(&[u8])) -> bool {
        let values = self.0.iter().filter(|(given, _)| is_same_field(given, name));
        values.for_each(|(_, value)| found(value.as_bytes()));
        // One name in this world is not told.
        name != "x-lost"
    }
}

impl Choices<'_> {
    pub(super) fn fields(&mut self) -> Fields {
        Fields(self.some(0, 3, |choices| (choices.of(&FIELDS), choices.of(&VALUES))))
    }

    pub(super) fn user(&mut self) -> User {
        let scalar = |choices: &mut Self| match choices.below(7) {
            0 => json!("otp"),
            1 => json!("pwd"),
            2 => json!(2),
            3 => json!(true),
            4 => json!(1.5),
            5 => json!(null),
            _ => json!({"a": "otp"}),
        };
        let claim = |choices: &mut Self| match choices.below(3) {
            0 => Value::Array(choices.some(0, 3, scalar)),
            1 => scalar(choices),
            _ => json!(choices.of(&CLAIM_VALUES)),
        };
        let mut claims = serde_json::Map::new();
        claims.insert("iss".to_owned(), json!(self.of(&ISSUERS)));
        claims.insert("sub".to_owned(), json!(self.of(&SUBJECTS)));
        for name in ["amr", "acr", "scope", "admin"] {
            if self.below(3) > 0 {
                claims.insert(name.to_owned(), claim(self));
            }
        }
        if self.below(2) == 0 {
            claims.insert("realm".to_owned(), json!({"roles": claim(self)}));
        }
        if self.below(3) > 0 {
            let audiences = self.some(0, 2, |choices| choices.of(&["shop", "pay", "shop-eu"]));
            claims.insert("aud".to_owned(), json!(audiences));
        }
        if self.below(3) > 0 {
            claims.insert("azp".to_owned(), json!(self.of(&["web", "cart"])));
        }
        match self.below(6) {
            0 => {}
            1 => _ = claims.insert("auth_time".to_owned(), json!(NOW + 30)),
            2 => _ = claims.insert("auth_time".to_owned(), json!(NOW + 3600)),
            3 => _ = claims.insert("auth_time".to_owned(), json!("yesterday")),
            4 => _ = claims.insert("auth_time".to_owned(), json!(NOW - 900)),
            _ => _ = claims.insert("auth_time".to_owned(), json!(NOW - 901)),
        }
        User::of_verified(claims).unwrap()
    }

    pub(super) fn labels(&mut self) -> Result<BTreeMap<String, String>, bool> {
        match self.below(6) {
            0 => Err(true),
            1 => Err(false),
            _ => {
                let labels = self.some(0, 3, |choices| (choices.of(&LABELS), choices.of(&LABEL_VALUES)));
                Ok(labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
            }
        }
    }

    pub(super) fn address(&mut self) -> Option<IpAddr> {
        (self.below(5) > 0).then(|| self.of(&ADDRESSES).parse().unwrap())
    }

    pub(super) fn block(&mut self) -> IpBlock {
        let (network, prefix) = self.of(&BLOCKS);
        IpBlock::new(network.parse().unwrap(), prefix).unwrap()
    }

    pub(super) fn user_match(&mut self) -> UserMatch {
        UserMatch {
            issuer: self.cut(&ISSUERS),
            subject: self.cut(&SUBJECTS),
        }
    }

    fn values<T>(&mut self, one: impl Fn(&mut Self) -> T) -> Values<T> {
        let kinds = self.below(3);
        let any = if kinds != 1 { self.some(1, 2, &one) } else { Vec::new() };
        let none = if kinds != 0 { self.some(1, 2, &one) } else { Vec::new() };
        Values { any, none }
    }

    pub(super) fn condition(&mut self) -> Condition {
        let text =
            |choices: &mut Self, pool: &'static [&'static str]| choices.values(|choices| choices.cut_or_all(pool));
        match self.below(20) {
            0..=3 => {
                let name = self.of(&["x-role", "x-tenant", "x_role", "x-lost"]).to_owned();
                Condition::Text(TextKey::Header(name), text(self, &VALUES))
            }
            4 => Condition::Text(TextKey::SourcePrincipal, self.values(Self::principal)),
            5 => Condition::Text(TextKey::SourceNamespace, self.values(Self::namespace)),
            6 => Condition::Text(TextKey::SourceServiceAccount, self.values(Self::account)),
            7 => Condition::Text(TextKey::SourceTrustDomain, text(self, &["cluster.local", "other.org"])),
            8 => Condition::Text(
                TextKey::SourceLabel(self.of(&LABELS).to_owned()),
                text(self, &LABEL_VALUES[..3]),
            ),
            9 => {
                let name = self.of(&LABELS).to_owned();
                Condition::Text(TextKey::SourceNamespaceLabel(name), text(self, &LABEL_VALUES[..3]))
            }
            10 => Condition::Text(TextKey::Sni, text(self, &["shop", "cart.shop"])),
            11 => Condition::Text(TextKey::UserAudiences, text(self, &["shop", "pay"])),
            12 => Condition::Text(TextKey::UserPresenter, text(self, &["web", "cart"])),
            13..=15 => {
                let path = self.of(&CLAIMS).iter().map(|&name| name.to_owned()).collect();
                Condition::Text(TextKey::UserClaim(path), text(self, &CLAIM_VALUES))
            }
            16 => {
                let key = self.of(&[AddressKey::Source, AddressKey::Remote, AddressKey::Destination]);
                Condition::Address(key, self.values(Self::block))
            }
            17 => Condition::Port(self.values(|choices| choices.of(&PORTS))),
            18 => Condition::User(self.values(Self::user_match)),
            _ => Condition::Age(self.values(|choices| choices.of(&AGES))),
        }
    }

    /// As [`Choices::cut`], of texts that may be empty.
    fn cut_or_all(&mut self, pool: &[&'static str]) -> StringMatch {
        let text = self.of(pool);
        if text.is_empty() || !text.is_ascii() {
            StringMatch::Present
        } else {
            self.cut(&[text])
        }
    }
}
