//! Random policies and requests from small pools, so that they meet often.
//!
//! Everything is built from a list of bytes, each a choice; proptest makes the bytes and shrinks them. A list that is used up
//! chooses 0, the simplest, so that a shorter list is a simpler case. One policy costs microseconds, not proptest trees.
#![allow(dead_code)] // Each test binary uses its part.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use postern_identity::SpiffeId;
use postern_policy::document::Place;
use postern_policy::{
    Action, AuthorizationPolicy, CanonicalHost, CanonicalPath, Doubt, Http, Labels, Operation, Request, Rule, Source,
    StringMatch, User,
};
use proptest::prelude::*;

/// Peers that are easily taken for one another (Z-5).
const PEERS: [&str; 14] = [
    "spiffe://cluster.local/ns/shop/sa/web",
    "spiffe://cluster.local/ns/shop/sa/cart",
    "spiffe://cluster.local/ns/pay/sa/web",
    "spiffe://cluster.local/ns/shop-eu/sa/web",
    "spiffe://cluster.local/ns/sa/sa/sa",
    "spiffe://cluster-local/ns/shop/sa/web",
    "spiffe://other.org/ns/shop/sa/web",
    "spiffe://cluster.local/ns/Shop/sa/web",
    "spiffe://cluster.local/ns/shop/sa/web.v2",
    "spiffe://cluster.local/ns/shop/sa/web-v2",
    // Without namespace and account:
    "spiffe://cluster.local/shop/web",
    "spiffe://cluster.local/ns/shop/sa/web/x",
    "spiffe://cluster.local/x/ns/shop/sa/web",
    "spiffe://cluster.local/ns/shop",
];
const NAMESPACES: [&str; 9] = ["shop", "pay", "sa", "Shop", "s*p", "shop*", "*-eu", "*o*", "*"];
const ACCOUNTS: [&str; 11] = [
    "shop/web",
    "shop/cart",
    "pay/web",
    "sa/sa",
    "shop/web.v2",
    "shop/*",
    "*/web",
    "s*p/w*b",
    "sh*/*v2",
    "*/*",
    "*",
];
const METHODS: [&str; 5] = ["GET", "POST", "DELETE", "get", "GETX"];
const HOSTS: [&str; 6] = [
    "example.com",
    "example.com:8080",
    "example.com.evil.org",
    "api.example.com",
    "[::1]:80",
    "shop",
];
const SEGMENTS: [&str; 9] = ["a", "b", "ab", "admin", "c", "z", "a*b", "x;v=1", "A"];
const ACTIONS: [Action; 8] = [
    Action::Allow,
    Action::Deny,
    Action::Allow,
    Action::Deny,
    Action::Allow,
    Action::Allow,
    Action::Audit,
    Action::Custom,
];
const PROVIDERS: [&str; 2] = ["opa", "other"];
const PORTS: [u16; 5] = [8080, 80, 443, 1, 65535];

const ADDRESSES: [&str; 6] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.1.0.1",
    "192.0.2.1",
    "fd00::1",
    "::ffff:10.0.0.1",
];
const BLOCKS: [(&str, u8); 7] = [
    ("10.0.0.0", 8),
    ("10.0.0.1", 32),
    ("10.0.0.0", 31),
    ("0.0.0.0", 0),
    ("::", 0),
    ("fd00::", 8),
    ("fd00::1", 128),
];
const ISSUERS: [&str; 4] = ["https://sso", "https://sso/a", "https://other", "sso"];
const SUBJECTS: [&str; 4] = ["alice", "bob", "a/alice", "al"];

mod conditions;

pub(crate) use conditions::{Fields, NOW};

/// One choice a byte.
pub(crate) struct Choices<'b>(std::slice::Iter<'b, u8>);

/// A request that owns its parts.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) peer: Option<SpiffeId>,
    pub(crate) port: u16,
    pub(crate) http: Option<(&'static str, CanonicalHost, CanonicalPath)>,
    pub(crate) fields: Fields,
    pub(crate) user: Option<User>,
    /// Of the peer's workload and namespace; `Err`: nobody can tell (`true`), or there are none.
    pub(crate) labels: [Result<BTreeMap<String, String>, bool>; 2],
    pub(crate) addresses: [Option<IpAddr>; 3],
    pub(crate) sni: Option<&'static str>,
}

/// What proptest makes and shrinks.
pub(crate) fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..600)
}

impl<'b> Choices<'b> {
    pub(crate) fn new(bytes: &'b [u8]) -> Self {
        Self(bytes.iter())
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or_default()) % bound
    }

    fn of<T: Copy>(&mut self, pool: &[T]) -> T {
        pool[self.below(pool.len())]
    }

    fn some<T>(&mut self, least: usize, most: usize, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = least + self.below(most - least + 1);
        (0..count).map(|_| one(self)).collect()
    }

    /// Up to four policies that a decoder could have made.
    pub(crate) fn policies(&mut self) -> Vec<AuthorizationPolicy> {
        let count = self.below(5);
        (0..count).map(|number| self.policy(number)).collect()
    }

    fn policy(&mut self, number: usize) -> AuthorizationPolicy {
        let action = self.of(&ACTIONS);
        let least = usize::from(matches!(action, Action::Deny | Action::Custom));
        let file: Arc<str> = format!("p{number}.yaml").into();
        let mut index = 0;
        let rules = self.some(least, 4, |choices| {
            let rule = choices.rule(&file, index);
            index += 1;
            rule
        });
        AuthorizationPolicy {
            namespace: "shop".to_owned(),
            name: format!("p{number}"),
            place: place(&file, 1),
            selector: std::collections::BTreeMap::new(),
            action,
            provider: match action {
                Action::Custom => self.of(&PROVIDERS).to_owned(),
                Action::Allow | Action::Deny | Action::Audit => String::new(),
            },
            foreign_target: false,
            rules,
        }
    }

    fn rule(&mut self, file: &Arc<str>, index: u32) -> Rule {
        Rule {
            place: place(file, 10 + index),
            index,
            from: self.some(0, 3, |choices| Arc::new(choices.source())),
            to: self.some(0, 3, |choices| Arc::new(choices.operation())),
            when: match self.below(3) {
                0 => self.some(1, 3, Self::condition),
                _ => Vec::new(),
            },
        }
    }

    fn source(&mut self) -> Source {
        let mut source = Source::default();
        let fields = 1 + self.below(255);
        let mut list = |bit: usize, one: fn(&mut Self) -> StringMatch| {
            let wanted = fields & bit != 0 && self.below(3) > 0;
            if wanted { self.some(1, 3, one) } else { Vec::new() }
        };
        // Accounts exclude principals and namespaces, as in Istio, but not their negations.
        if fields & 1 == 0 {
            source.service_accounts = list(2, Self::account);
            source.not_service_accounts = list(4, Self::account);
        } else {
            source.principals = list(2, Self::principal);
            source.namespaces = list(4, Self::namespace);
        }
        source.not_principals = list(8, Self::principal);
        source.not_namespaces = list(16, Self::namespace);
        let of_trust = fields & 32 != 0 && self.below(4) == 0;
        if of_trust {
            let domain = |choices: &mut Self| choices.cut(&["cluster.local", "cluster-local", "other.org"]);
            source.trust_domains = self.some(0, 2, domain);
            source.not_trust_domains = self.some(0, 2, domain);
        }
        if fields & 64 != 0 && self.below(3) == 0 {
            source.request_principals = self.some(0, 2, Self::user_match);
            source.not_request_principals = self.some(0, 1, Self::user_match);
        }
        if fields & 128 != 0 && self.below(4) == 0 {
            source.ip_blocks = self.some(0, 2, Self::block);
            source.not_ip_blocks = self.some(0, 1, Self::block);
            source.remote_ip_blocks = self.some(0, 2, Self::block);
            source.not_remote_ip_blocks = self.some(0, 1, Self::block);
        }
        if source == Source::default() {
            source.principals.push(self.principal());
        }
        source
    }

    fn operation(&mut self) -> Operation {
        let mut operation = Operation::default();
        let fields = 1 + self.below(255);
        let mut list = |bit: usize, one: fn(&mut Self) -> StringMatch| {
            let wanted = fields & bit != 0 && self.below(3) > 0;
            if wanted { self.some(1, 3, one) } else { Vec::new() }
        };
        operation.paths = list(1, Self::path_pattern);
        operation.not_paths = list(2, Self::path_pattern);
        operation.methods = list(4, |choices| choices.cut(&METHODS));
        operation.not_methods = list(8, |choices| choices.cut(&METHODS));
        operation.hosts = list(16, |choices| choices.cut(&HOSTS));
        operation.not_hosts = list(32, |choices| choices.cut(&HOSTS));
        if fields & 64 != 0 && self.below(2) == 0 {
            operation.ports = self.some(1, 3, |choices| choices.of(&PORTS));
        }
        if fields & 128 != 0 && self.below(2) == 0 {
            operation.not_ports = self.some(1, 2, |choices| choices.of(&PORTS));
        }
        if operation == Operation::default() {
            operation.paths.push(self.path_pattern());
        }
        operation
    }

    fn principal(&mut self) -> StringMatch {
        let id = self.of(&PEERS);
        self.cut(&[id.trim_start_matches("spiffe://")])
    }

    fn namespace(&mut self) -> StringMatch {
        wildcard(self.of(&NAMESPACES))
    }

    fn account(&mut self) -> StringMatch {
        wildcard(self.of(&ACCOUNTS))
    }

    /// Exact, a prefix, a suffix, or `*`.
    fn cut(&mut self, pool: &[&str]) -> StringMatch {
        let text = self.of(pool);
        match self.below(8) {
            0..=3 => StringMatch::Exact(text.to_owned()),
            4 | 5 => StringMatch::Prefix(text[..=self.below(text.len())].to_owned()),
            6 => StringMatch::Suffix(text[self.below(text.len())..].to_owned()),
            _ => StringMatch::Present,
        }
    }

    fn path(&mut self) -> String {
        let mut path = String::new();
        for _ in 0..self.below(5) {
            path.push('/');
            path.push_str(self.of(&SEGMENTS));
        }
        if path.is_empty() || self.below(4) == 0 {
            path.push('/');
        }
        path
    }

    fn path_pattern(&mut self) -> StringMatch {
        let path = self.path();
        if self.below(3) > 0 {
            return self.cut(&[&path]);
        }
        let mut segments: Vec<&str> = path.split('/').skip(1).collect();
        segments.retain(|segment| !segment.is_empty() && !segment.contains('*'));
        let open = self.below(segments.len() + 1);
        for segment in segments.iter_mut().take(open) {
            if self.below(2) == 0 {
                *segment = "{*}";
            }
        }
        if self.below(2) == 0 || !segments.contains(&"{*}") {
            segments.insert(open, "{**}");
        }
        if self.below(4) == 3 {
            segments.push("");
        }
        StringMatch::Template(format!("/{}", segments.join("/")))
    }

    /// A request: one in four opaque, one in eight anonymous.
    pub(crate) fn asked(&mut self) -> Asked {
        let anonymous = self.below(8) == 7;
        let peer = SpiffeId::parse(self.of(&PEERS)).unwrap();
        let opaque = self.below(4) == 3;
        let http = (!opaque).then(|| {
            let host = CanonicalHost::parse(self.of(&HOSTS)).unwrap();
            let path = CanonicalPath::parse(&self.path()).unwrap();
            (self.of(&METHODS), host, path)
        });
        Asked {
            peer: (!anonymous).then_some(peer),
            port: self.of(&PORTS),
            http,
            fields: self.fields(),
            user: (self.below(3) > 0).then(|| self.user()),
            labels: [self.labels(), self.labels()],
            addresses: [self.address(), self.address(), self.address()],
            sni: (self.below(4) > 0).then(|| self.of(&["shop", "cart.shop"])),
        }
    }
}

impl Asked {
    pub(crate) fn request(&self) -> Request<'_> {
        let http = self.http.as_ref().map(|(method, host, path)| Http {
            method,
            host,
            path: path.as_ref(),
            headers: &self.fields,
            user: self.user.as_ref(),
        });
        let labels = |at: usize| match &self.labels[at] {
            Ok(labels) => Labels::Known(labels),
            Err(true) => Labels::Unknown,
            Err(false) => Labels::None,
        };
        let [source_ip, remote_ip, destination_ip] = self.addresses;
        Request {
            peer: self.peer.as_ref(),
            peer_labels: labels(0),
            peer_namespace_labels: labels(1),
            source_ip,
            remote_ip,
            destination_ip,
            port: self.port,
            sni: self.sni,
            now: NOW,
            doubt: Doubt::Closed,
            http,
        }
    }
}

fn wildcard(text: &str) -> StringMatch {
    match text {
        "*" => StringMatch::Present,
        _ if text.contains('*') => StringMatch::Wildcard(text.split('*').map(str::to_owned).collect()),
        _ => StringMatch::Exact(text.to_owned()),
    }
}

fn place(file: &Arc<str>, line: u32) -> Place {
    Place {
        file: Arc::clone(file),
        line,
        column: 5,
    }
}

/// As a document writes it.
pub(crate) fn text_of(value: &StringMatch) -> String {
    match value {
        StringMatch::Exact(text) | StringMatch::Template(text) => text.clone(),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Suffix(text) => format!("*{text}"),
        StringMatch::Present => "*".to_owned(),
        StringMatch::Wildcard(pieces) => pieces.join("*"),
    }
}
