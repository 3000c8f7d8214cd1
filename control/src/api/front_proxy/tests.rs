#![allow(clippy::unwrap_used)]

use http::HeaderValue;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use super::*;

struct World {
    ca: String,
    issuer: Issuer<'static, KeyPair>,
}

impl World {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "front-proxy-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap().pem();
        Self {
            ca,
            issuer: Issuer::new(params, key),
        }
    }

    fn signed(&self, names: &[&str], usage: ExtendedKeyUsagePurpose, seconds: i64) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::default();
        for (i, name) in names.iter().enumerate() {
            // rcgen keeps one value per type; a second one goes in under the same OID.
            let kind = if i == 0 {
                DnType::CommonName
            } else {
                DnType::CustomDnType(vec![2, 5, 4, 3])
            };
            params.distinguished_name.push(kind, *name);
        }
        params.extended_key_usages = vec![usage];
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::seconds(3600);
        params.not_after = now + time::Duration::seconds(seconds);
        let key = KeyPair::generate().unwrap();
        vec![params.signed_by(&key, &self.issuer).unwrap().der().clone()]
    }

    fn proxy(&self) -> Vec<CertificateDer<'static>> {
        self.signed(&["front-proxy-client"], ExtendedKeyUsagePurpose::ClientAuth, 3600)
    }

    fn map(&self, more: &[(&str, &str)]) -> ConfigMap {
        let mut data = BTreeMap::from([("requestheader-client-ca-file".to_owned(), self.ca.clone())]);
        data.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        ConfigMap {
            data: Some(data),
            ..ConfigMap::default()
        }
    }

    fn believed(&self, more: &[(&str, &str)]) -> FrontProxy {
        FrontProxy::from_config_map(&self.map(more)).unwrap()
    }
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    headers
}

const NAMES: (&str, &str) = ("requestheader-allowed-names", "[\"front-proxy-client\", \"other\"]");

#[test]
fn only_a_certificate_of_the_ca_for_clients_with_an_allowed_name_and_life_left_is_the_front_proxys() {
    let (world, stranger) = (World::new(), World::new());
    let front = world.believed(&[NAMES]);
    let client = || ExtendedKeyUsagePurpose::ClientAuth;
    let asked = headers(&[("x-remote-user", "ann")]);
    for (chain, refused) in [
        (world.proxy(), None),
        (world.signed(&["other"], client(), 3600), None),
        (Vec::new(), Some(Unauthenticated::NoCertificate)),
        (stranger.proxy(), Some(Unauthenticated::Untrusted)),
        (
            world.signed(&["front-proxy-client"], ExtendedKeyUsagePurpose::ServerAuth, 3600),
            Some(Unauthenticated::Untrusted),
        ),
        (
            world.signed(&["front-proxy-client"], client(), -60),
            Some(Unauthenticated::Untrusted),
        ),
        (world.signed(&["somebody"], client(), 3600), Some(Unauthenticated::Name)),
        (
            world.signed(&["front-proxy-client", "somebody"], client(), 3600),
            Some(Unauthenticated::Name),
        ),
        (world.signed(&[], client(), 3600), Some(Unauthenticated::Name)),
    ] {
        assert_eq!(front.user(&chain, &asked, UnixTime::now()).err(), refused);
    }
}

#[test]
fn without_allowed_names_any_certificate_of_the_ca_is() {
    let world = World::new();
    for names in [&[][..], &[("requestheader-allowed-names", "[]")]] {
        let chain = world.signed(&["whoever"], ExtendedKeyUsagePurpose::ClientAuth, 3600);
        let user = world
            .believed(names)
            .user(&chain, &headers(&[("x-remote-user", "ann")]), UnixTime::now());
        assert_eq!(user.unwrap().name, "ann");
    }
}

#[test]
fn the_config_map_says_which_headers_count() {
    let world = World::new();
    let front = world.believed(&[
        ("requestheader-username-headers", "[\"X-User-A\", \"X-User-B\"]"),
        ("requestheader-uid-headers", "[\"X-Uid\"]"),
        ("requestheader-group-headers", "[\"X-Groups\", \"X-More-Groups\"]"),
        ("requestheader-extra-headers-prefix", "[\"X-Extra-\"]"),
    ]);
    let asked = headers(&[
        ("x-remote-user", "forged"),
        ("x-remote-group", "system:masters"),
        ("x-user-b", "ann"),
        ("x-uid", "42"),
        ("x-groups", "dev"),
        ("x-groups", "ops"),
        ("x-more-groups", "staff"),
        ("x-extra-scopes%2fa", "one"),
        ("x-extra-scopes%2fa", "two"),
    ]);
    let user = front.user(&world.proxy(), &asked, UnixTime::now()).unwrap();
    assert_eq!(
        user,
        User {
            name: "ann".to_owned(),
            uid: Some("42".to_owned()),
            groups: vec!["dev".to_owned(), "ops".to_owned(), "staff".to_owned()],
            extra: BTreeMap::from([("scopes/a".to_owned(), vec!["one".to_owned(), "two".to_owned()])]),
        }
    );
}

#[test]
fn what_a_user_may_bring_is_bounded() {
    let world = World::new();
    let front = world.believed(&[]);
    let many = |groups: usize, extra: usize, length: usize| {
        let mut asked = headers(&[("x-remote-user", &"u".repeat(length))]);
        for i in 0..groups {
            asked.append("x-remote-group", HeaderValue::from_str(&format!("g{i}")).unwrap());
        }
        for i in 0..extra {
            asked.append("x-remote-extra-k", HeaderValue::from_str(&format!("v{i}")).unwrap());
        }
        front.user(&world.proxy(), &asked, UnixTime::now())
    };
    assert!(many(MAX_GROUPS, MAX_EXTRA, MAX_VALUE).is_ok());
    for asked in [
        many(MAX_GROUPS + 1, 0, 1),
        many(0, MAX_EXTRA + 1, 1),
        many(0, 0, MAX_VALUE + 1),
    ] {
        assert_eq!(asked, Err(Unauthenticated::Headers));
    }
}

#[test]
fn a_config_map_that_does_not_say_who_the_front_proxy_is_believes_nobody() {
    let world = World::new();
    assert!(FrontProxy::from_config_map(&ConfigMap::default()).is_err());
    assert!(FrontProxy::from_config_map(&world.map(&[("requestheader-client-ca-file", "no PEM")])).is_err());
    for key in [
        "requestheader-allowed-names",
        "requestheader-username-headers",
        "requestheader-group-headers",
    ] {
        assert!(
            FrontProxy::from_config_map(&world.map(&[(key, "front-proxy-client")])).is_err(),
            "{key}"
        );
    }
    assert!(FrontProxy::from_config_map(&world.map(&[("requestheader-username-headers", "[\"a b\"]")])).is_err());
}

#[test]
fn escapes_are_decoded_or_refused() {
    for (text, decoded) in [
        ("plain", Some("plain")),
        ("a%2Fb", Some("a/b")),
        ("%C3%A4", Some("ä")),
        ("%", None),
        ("%2", None),
        ("%zz", None),
        ("%ff", None),
    ] {
        assert_eq!(percent_decoded(text).as_deref(), decoded, "{text}");
    }
}
