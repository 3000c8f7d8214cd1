//! Rows 34 to 43: the leaf itself.

use postern_identity::leaf::{INSTANCE_OID, LeafError, instance_extension_der};
use postern_identity::{Instance, VerifyError};
use rcgen::{KeyPair, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateDer;

use super::{WEB, World, chain, judge};
use crate::mint::der::{self, basic, extended, tlv, uri, usage};
use crate::mint::{self, BASIC, CRL_SIGN, DIGITAL_SIGNATURE, EXTENDED, FOREIGN, KEY_CERT_SIGN, NAMES, SAN, USAGE};

const OTHER: &str = "spiffe://cluster.local/ns/shop/sa/ledger";

#[test]
fn spec_034_a_valid_leaf_gives_its_identity_and_what_bounds_its_connection() {
    let world = World::new();
    let value = instance_extension_der(&Instance::parse("web-1").unwrap());
    let leaf = mint::leaf(WEB).and(INSTANCE_OID, false, value);
    let peer = world.judge(&leaf).unwrap();
    assert_eq!(peer.id().as_str(), WEB);
    assert_eq!(peer.instance().unwrap().as_str(), "web-1");
    assert_eq!(peer.not_after(), mint::at(3_600));
    assert_eq!(*peer.anchor(), postern_identity::bundle::fingerprint(&world.root.der));
    assert!(!peer.serial().is_empty());
    assert_eq!(world.judge(&mint::leaf(WEB)).unwrap().instance(), None);
}

#[test]
fn spec_034_nothing_garbage_and_trailing_bytes_are_refused() {
    let world = World::new();
    assert_eq!(judge(&[], &world.trust), Err(VerifyError::NoCertificate));
    for garbage in [
        &b""[..],
        b"\0",
        b"0\x80",
        b"-----BEGIN CERTIFICATE-----",
        &[0x30, 0x82, 0xff, 0xff],
    ] {
        let chain = [CertificateDer::from(garbage)];
        assert_eq!(
            judge(&chain, &world.trust),
            Err(VerifyError::Leaf(LeafError::Malformed))
        );
    }
    let good = chain(&[&world.issuer.sign(&mint::leaf(WEB)), &world.issuer]);
    let mut longer = good.clone();
    longer[0] = [&good[0][..], b"\0"].concat().into();
    assert_eq!(
        judge(&longer, &world.trust),
        Err(VerifyError::Leaf(LeafError::Trailing))
    );
    // Cut anywhere, it is no certificate.
    for length in (0..good[0].len()).step_by(7) {
        let mut cut = good.clone();
        cut[0] = good[0][..length].to_vec().into();
        assert_eq!(judge(&cut, &world.trust), Err(VerifyError::Leaf(LeafError::Malformed)));
    }
}

#[test]
fn spec_034_a_flipped_bit_anywhere_is_noticed() {
    let world = World::new();
    let good = chain(&[&world.issuer.sign(&mint::leaf(WEB)), &world.issuer]);
    for (i, byte) in good[0].iter().enumerate() {
        let mut flipped = good[0].to_vec();
        flipped[i] = byte ^ 0x01;
        let verdict = judge(&[flipped.into(), good[1].clone()], &world.trust);
        assert!(verdict.is_err(), "byte {i} of {:02x?}", &good[0]);
    }
}

#[test]
fn spec_035_without_a_spiffe_uri_nobody_is_named() {
    let world = World::new();
    assert_eq!(world.leaf_error(&mint::leaf(WEB).without(SAN)), LeafError::NoSan);
    // A common name is no identity.
    let named = mint::leaf(WEB).without(SAN).subject(WEB);
    assert_eq!(world.leaf_error(&named), LeafError::NoSan);
    let no_uri = LeafError::UriSans(0);
    assert_eq!(world.leaf_error(&mint::leaf(WEB).named(&[])), no_uri);
    // A DNS name that spells an ID is none.
    assert_eq!(
        world.leaf_error(&mint::leaf(WEB).named(&[der::dns("web.shop"), der::dns(WEB)])),
        no_uri
    );
    for text in [
        "https://cluster.local/ns/shop/sa/web",
        "urn:uuid:0d1c0e0a",
        "",
        "spiffe:",
        "SPIFFE://cluster.local/p",
    ] {
        let error = world.leaf_error(&mint::leaf(text));
        assert!(matches!(error, LeafError::Id(_)), "{text}: {error:?}");
    }
}

#[test]
fn spec_035_names_of_other_kinds_beside_the_uri_are_no_matter() {
    let world = World::new();
    let names = [
        der::dns("web.shop"),
        tlv(0x81, b"web@shop"),
        uri(WEB),
        tlv(0x87, &[127, 0, 0, 1]),
        tlv(0xa4, &tlv(0x30, &[])),
    ];
    assert_eq!(world.judge(&mint::leaf(WEB).named(&names)).unwrap().id().as_str(), WEB);
}

#[test]
fn spec_036_two_uris_are_no_identity_also_when_they_are_the_same() {
    let world = World::new();
    for second in [OTHER, WEB, "https://web.shop/", "", "spiffe://cluster.local"] {
        for names in [[uri(WEB), uri(second)], [uri(second), uri(WEB)]] {
            assert_eq!(world.leaf_error(&mint::leaf(WEB).named(&names)), LeafError::UriSans(2));
        }
    }
    let many = vec![uri(WEB); 300];
    assert_eq!(world.leaf_error(&mint::leaf(WEB).named(&many)), LeafError::UriSans(300));
}

#[test]
fn spec_037_a_second_uri_that_cannot_be_read_counts() {
    let world = World::new();
    let hidden = [
        tlv(der::URI, b"\xff"),
        tlv(der::URI, b"spiffe://cluster.local/\xff"),
        // Constructed, as BER may write a string: in pieces, or as nothing.
        tlv(0xa6, &tlv(0x16, OTHER.as_bytes())),
        tlv(0xa6, OTHER.as_bytes()),
        tlv(0xa6, b""),
        tlv(der::URI, b""),
    ];
    for second in hidden {
        for names in [[uri(WEB), second.clone()], [second.clone(), uri(WEB)]] {
            assert_eq!(
                world.leaf_error(&mint::leaf(WEB).named(&names)),
                LeafError::UriSans(2),
                "{second:02x?}"
            );
        }
    }
}

#[test]
fn spec_037_a_name_that_is_not_der_or_no_general_name_spoils_the_san() {
    let world = World::new();
    let spoilt = [
        // Tag 6 in the form for large tags; a length in too many bytes; an indefinite length; a name cut short.
        vec![0x9f, 6, 1, b's'],
        vec![0x86, 0x81, 1, b's'],
        vec![0x86, 0x82, 0, 0x81],
        vec![0x86, 0x80, 0, 0],
        vec![0x86, 5, b's'],
        vec![0x86],
        // Not of the context class, or of no kind that a GeneralName has.
        tlv(0x06, OTHER.as_bytes()),
        tlv(0x16, OTHER.as_bytes()),
        tlv(0x46, OTHER.as_bytes()),
        tlv(0xc6, OTHER.as_bytes()),
        tlv(0x89, OTHER.as_bytes()),
    ];
    for second in spoilt {
        let error = world.leaf_error(&mint::leaf(WEB).named(&[uri(WEB), second.clone()]));
        assert_eq!(error, LeafError::MalformedSan, "{second:02x?}");
    }
    let names = [
        tlv(0x31, &uri(WEB)),
        uri(WEB),
        Vec::new(),
        [der::san(&[uri(WEB)]), vec![0]].concat(),
    ];
    for value in names {
        let error = world.leaf_error(&mint::leaf(WEB).with(SAN, true, value.clone()));
        assert_eq!(error, LeafError::MalformedSan, "{value:02x?}");
    }
}

#[test]
fn spec_037_the_only_uri_must_be_a_primitive_ascii_string() {
    let world = World::new();
    for only in [
        tlv(0xa6, &uri(WEB)),
        tlv(0xa6, WEB.as_bytes()),
        tlv(der::URI, "spiffe://td/é".as_bytes()),
    ] {
        assert_eq!(
            world.leaf_error(&mint::leaf(WEB).named(&[only])),
            LeafError::MalformedSan
        );
    }
}

#[test]
fn spec_038_nul_percent_and_overlong_uris_are_refused() {
    let world = World::new();
    let head = "spiffe://cluster.local/";
    let longest = format!("{head}{}", "p".repeat(2048 - head.len()));
    for text in [
        "spiffe://cluster.local/ns/shop/sa/web\0",
        "spiffe://cluster.local\0.example/ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/%2e",
        "spiffe://cluster.local/ns/shop/sa/..",
        &format!("{longest}p"),
    ] {
        let error = world.leaf_error(&mint::leaf(text));
        assert!(matches!(error, LeafError::Id(_)), "{text}: {error:?}");
    }
    assert_eq!(world.judge(&mint::leaf(&longest)).unwrap().id().as_str(), longest);
}

#[test]
fn spec_039_an_id_without_a_path_is_no_workloads() {
    let world = World::new();
    for text in ["spiffe://cluster.local", "spiffe://cluster.local/"] {
        let error = world.leaf_error(&mint::leaf(text));
        assert!(matches!(error, LeafError::Id(_)), "{error:?}");
    }
}

#[test]
fn spec_040_a_leaf_that_may_sign_is_refused() {
    let world = World::new();
    for (ca, path_len) in [(true, None), (true, Some(0))] {
        let leaf = mint::leaf(WEB).with(BASIC, true, basic(ca, path_len));
        assert_eq!(world.leaf_error(&leaf), LeafError::IsCa);
    }
    for (bits, why) in [
        (DIGITAL_SIGNATURE | KEY_CERT_SIGN, "allows keyCertSign"),
        (KEY_CERT_SIGN, "allows keyCertSign"),
        (DIGITAL_SIGNATURE | CRL_SIGN, "allows cRLSign"),
        (CRL_SIGN, "allows cRLSign"),
    ] {
        let leaf = mint::leaf(WEB).with(USAGE, true, usage(bits));
        assert_eq!(world.leaf_error(&leaf), LeafError::KeyUsage(why));
    }
}

#[test]
fn spec_031_a_signing_certificate_is_nobodys() {
    let world = World::new();
    let id = der::san(&[uri(WEB)]);
    let signing = mint::authority("issuer", None).with(SAN, false, id.clone());
    assert_eq!(world.leaf_error(&signing), LeafError::IsCa);
    // The root itself, with a workload's name.
    let root = mint::root(&mint::authority("root", None).with(SAN, false, id));
    let trust = mint::trust(&[("cluster.local", &[&root])]);
    assert_eq!(judge(&chain(&[&root]), &trust), Err(VerifyError::Leaf(LeafError::IsCa)));
}

#[test]
fn spec_041_key_usage_must_be_there_be_critical_and_sign() {
    let world = World::new();
    let absent = mint::leaf(WEB).without(USAGE);
    assert_eq!(world.leaf_error(&absent), LeafError::KeyUsage("is absent"));
    let idle = mint::leaf(WEB).with(USAGE, false, usage(DIGITAL_SIGNATURE));
    assert_eq!(world.leaf_error(&idle), LeafError::KeyUsage("is not critical"));
    // keyEncipherment, keyAgreement: allowed, and not enough.
    for bits in [0x20, 0x08] {
        let leaf = mint::leaf(WEB).with(USAGE, true, usage(bits));
        assert_eq!(world.leaf_error(&leaf), LeafError::KeyUsage("lacks digitalSignature"));
        world
            .judge(&mint::leaf(WEB).with(USAGE, true, usage(bits | DIGITAL_SIGNATURE)))
            .unwrap();
    }
    for value in [vec![3, 1, 0], vec![3, 2, 7]] {
        let leaf = mint::leaf(WEB).with(USAGE, true, value);
        assert!(matches!(world.leaf_error(&leaf), LeafError::KeyUsage(_)));
    }
    for value in [
        vec![],
        tlv(4, &[DIGITAL_SIGNATURE]),
        [usage(DIGITAL_SIGNATURE), usage(KEY_CERT_SIGN)].concat(),
    ] {
        let leaf = mint::leaf(WEB).with(USAGE, true, value.clone());
        assert_eq!(
            world.leaf_error(&leaf),
            LeafError::KeyUsage("is malformed"),
            "{value:02x?}"
        );
    }
}

#[test]
fn spec_042_basic_constraints_must_be_there_and_readable() {
    let world = World::new();
    let absent = mint::leaf(WEB).without(BASIC);
    assert_eq!(world.leaf_error(&absent), LeafError::BasicConstraints("absent"));
    let malformed = [
        vec![],
        vec![0x30],
        vec![0x30, 3, 1, 1],
        tlv(0x31, &[]),
        tlv(0x30, &tlv(4, b"x")),
        tlv(0x30, &[tlv(1, &[0xff]), tlv(2, &[0]), tlv(2, &[0])].concat()),
        // Two of them in one value: the second must not hide behind the first.
        [basic(false, None), basic(true, None)].concat(),
    ];
    for value in malformed {
        for critical in [true, false] {
            let leaf = mint::leaf(WEB).with(BASIC, critical, value.clone());
            assert_eq!(
                world.leaf_error(&leaf),
                LeafError::BasicConstraints("malformed"),
                "{value:02x?}"
            );
        }
    }
    world
        .judge(&mint::leaf(WEB).with(BASIC, false, basic(false, None)))
        .unwrap();
}

#[test]
fn spec_042_no_extension_may_occur_twice() {
    let world = World::new();
    let leaf = || mint::leaf(WEB);
    for twice in [
        leaf().and(BASIC, true, basic(false, None)),
        leaf().and(BASIC, true, basic(true, None)),
        leaf().and(USAGE, true, usage(DIGITAL_SIGNATURE)),
        leaf().and(SAN, true, der::san(&[uri(OTHER)])),
        leaf().and(SAN, true, der::san(&[der::dns("web.shop")])),
        leaf().and(EXTENDED, false, extended(&[der::SERVER_AUTH, der::CLIENT_AUTH])),
        leaf().and(FOREIGN, false, [5, 0]).and(FOREIGN, false, [5, 0]),
    ] {
        assert_eq!(world.leaf_error(&twice), LeafError::DuplicateExtension);
    }
}

#[test]
fn spec_043_extended_key_usage_is_both_or_absent() {
    let world = World::new();
    let with = |purposes: &[&[u8]]| mint::leaf(WEB).with(EXTENDED, false, extended(purposes));
    for purposes in [
        &[der::SERVER_AUTH][..],
        &[der::CLIENT_AUTH],
        &[der::CODE_SIGNING],
        &[der::ANY],
        &[],
    ] {
        let error = world.leaf_error(&with(purposes));
        assert!(matches!(error, LeafError::ExtendedKeyUsage(_)), "{error:?}");
    }
    world.judge(&mint::leaf(WEB).without(EXTENDED)).unwrap();
    world
        .judge(&with(&[der::CODE_SIGNING, der::CLIENT_AUTH, der::SERVER_AUTH]))
        .unwrap();
    let both = extended(&[der::SERVER_AUTH, der::CLIENT_AUTH]);
    let mistagged = tlv(0x30, &[tlv(6, der::SERVER_AUTH), tlv(7, der::CLIENT_AUTH)].concat());
    let behind = [extended(&[der::SERVER_AUTH]), both.clone()].concat();
    for value in [
        vec![],
        tlv(0x31, &[]),
        tlv(0x30, b"\x06"),
        [both, vec![5, 0]].concat(),
        mistagged,
        behind,
    ] {
        let leaf = mint::leaf(WEB).with(EXTENDED, false, value.clone());
        assert_eq!(
            world.leaf_error(&leaf),
            LeafError::ExtendedKeyUsage("is malformed"),
            "{value:02x?}"
        );
    }
}

#[test]
fn spec_021_an_empty_subject_makes_the_san_critical() {
    let world = World::new();
    let names = der::san(&[uri(WEB)]);
    let leaf = mint::leaf(WEB).with(SAN, false, names);
    assert_eq!(world.leaf_error(&leaf), LeafError::SanNotCritical);
    world.judge(&leaf.subject("web")).unwrap();
}

#[test]
fn spec_051_a_leaf_with_an_extension_that_nobody_here_understands_is_refused() {
    let world = World::new();
    let unknown = |critical| mint::leaf(WEB).and(FOREIGN, critical, [5, 0]);
    assert!(matches!(
        world.leaf_error(&unknown(true)),
        LeafError::UnknownCritical(_)
    ));
    world.judge(&unknown(false)).unwrap();
    for critical in [true, false] {
        let constraint = der::uri_constraint(false, "cluster.local");
        world
            .judge(&mint::leaf(WEB).and(NAMES, critical, constraint))
            .unwrap_err();
    }
}

#[test]
fn an_instance_that_is_no_instance_is_refused() {
    let world = World::new();
    let longest = Instance::parse(&"i".repeat(253)).unwrap();
    for instance in [
        Instance::parse("i").unwrap(),
        Instance::parse(&"i".repeat(127)).unwrap(),
        longest,
    ] {
        let leaf = mint::leaf(WEB).and(INSTANCE_OID, false, instance_extension_der(&instance));
        assert_eq!(world.judge(&leaf).unwrap().instance(), Some(&instance));
    }
    let utf8 = |text: &[u8]| tlv(0x0c, text);
    let values = [
        utf8(b""),
        utf8(b"a/b"),
        utf8(b"\xff"),
        utf8(&[b'i'; 254]),
        tlv(0x16, b"web-1"),
        vec![],
        [utf8(b"web-1"), utf8(b"web-2")].concat(),
    ];
    for value in values {
        let leaf = mint::leaf(WEB).and(INSTANCE_OID, false, value.clone());
        assert_eq!(world.leaf_error(&leaf), LeafError::Instance, "{value:02x?}");
    }
    let twice = mint::leaf(WEB)
        .and(INSTANCE_OID, false, utf8(b"web-1"))
        .and(INSTANCE_OID, false, utf8(b"web-2"));
    assert_eq!(world.leaf_error(&twice), LeafError::DuplicateExtension);
}

#[test]
fn weak_and_unknown_keys_are_refused() {
    let world = World::new();
    let judge_key = |spki: &[u8]| {
        let key = SubjectPublicKeyInfo::from_der(spki).unwrap();
        let leaf = world.issuer.sign_for(&mint::leaf(WEB), &key);
        judge(&[leaf, world.issuer.der.clone()], &world.trust)
    };
    judge_key(&rsa(256)).unwrap();
    for bytes in [64, 128, 255] {
        assert!(
            matches!(judge_key(&rsa(bytes)), Err(VerifyError::Leaf(LeafError::Key(_)))),
            "{bytes}"
        );
    }
    for (algorithm, good) in [
        (&rcgen::PKCS_ECDSA_P256_SHA256, true),
        (&rcgen::PKCS_ECDSA_P384_SHA384, true),
        (&rcgen::PKCS_ED25519, true),
        (&rcgen::PKCS_ECDSA_P521_SHA512, false),
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let leaf = world.issuer.sign_for(&mint::leaf(WEB), &key);
        assert_eq!(
            judge(&[leaf, world.issuer.der.clone()], &world.trust).is_ok(),
            good,
            "{algorithm:?}"
        );
    }
}

/// The SubjectPublicKeyInfo of an RSA key with a modulus of so many bytes.
fn rsa(bytes: usize) -> Vec<u8> {
    let modulus = [vec![0], vec![0xff; bytes]].concat();
    let key = der::sequence(&[tlv(2, &modulus), tlv(2, &[1, 0, 1])]);
    let rsa_encryption = tlv(6, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1]);
    let bits = [vec![0], key].concat();
    der::sequence(&[der::sequence(&[rsa_encryption, tlv(5, &[])]), tlv(3, &bits)])
}
