#![allow(clippy::unwrap_used)]
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData as _, SignatureAlgorithm,
};
use rustls_pki_types::PrivatePkcs8KeyDer;

use super::*;

/// `openssl ecparam -name secp384r1 -genkey | openssl req -new -sha256 -subj / -outform DER`
const OPENSSL_P384_SHA256: &str = "MIH3MH8CAQAwADB2MBAGByqGSM49AgEGBSuBBAAiA2IABAyRPOdEWYDxwVX5jCPFPH6y3WbaLAYv56i0ZVY\
    3gHRzjfBWX/a9ldkX+sUuDGpaiEnVs73b0FKUvjXpwiP+3QfmYFJQ+K9nyWKIdIx5GYNZWYyJ/GKBxasdxLHQFNgjsKAAMAoGCCqGSM49BAMCA2gAM\
    GUCMQCcWGiuFlVP8EmP8a0LHH2SB8C50MDVtvOheBto4c/5EkdgwtxbqgzF2LrCT92xN90CMEDrlsckEFOhHt3IRsGQGlJaOb0MTHpV1yDY/K6FFej\
    I9mOJWbFG5H1Vzs7l1wUrKA==";

fn csr_over(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(key).unwrap().der().to_vec()
}

fn csr_of(algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
    csr_over(&KeyPair::generate_for(algorithm).unwrap())
}

fn reason(der: &[u8]) -> RefusalReason {
    ProvenKey::from_csr(der).unwrap_err().reason()
}

fn position(haystack: &[u8], needle: &[u8]) -> usize {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
        .unwrap()
}

#[test]
fn spec_027_the_three_kinds_of_key_are_taken() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let proven = ProvenKey::from_csr(&csr_over(&key)).unwrap();
        assert_eq!(proven.spki().subject_public_key_info(), key.subject_public_key_info());
    }
}

#[test]
fn spec_027_a_p384_key_signed_with_sha256_keeps_its_own_curve() {
    let der = STANDARD.decode(OPENSSL_P384_SHA256.replace(' ', "")).unwrap();
    let proven = ProvenKey::from_csr(&der).unwrap();
    assert_eq!(proven.spki().algorithm(), &PKCS_ECDSA_P384_SHA384);
    let (_, csr) = X509CertificationRequest::from_der(&der).unwrap();
    assert_eq!(
        proven.spki().subject_public_key_info(),
        csr.certification_request_info.subject_pki.raw
    );
}

#[test]
fn c_02_keys_of_other_kinds_are_refused() {
    assert_eq!(reason(&csr_of(&PKCS_RSA_SHA256)), RefusalReason::CsrKey);
    assert_eq!(reason(&csr_of(&PKCS_ECDSA_P521_SHA512)), RefusalReason::CsrKey);
    // secp384r1 is 1.3.132.0.34, secp224r1 is 1.3.132.0.33.
    let mut p224 = csr_of(&PKCS_ECDSA_P384_SHA384);
    let at = position(&p224, &[0x06, 5, 0x2b, 0x81, 0x04, 0, 34]);
    p224[at + 6] = 33;
    assert_eq!(reason(&p224), RefusalReason::CsrKey);
}

#[test]
fn c_02_a_point_that_is_not_on_the_curve_is_refused() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut der = csr_over(&key);
    let at = position(&der, key.der_bytes());
    der[at + 64] ^= 1;
    assert_eq!(reason(&der), RefusalReason::CsrKey);
}

#[test]
fn c_02_a_signature_of_another_key_is_refused() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let other = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut der = csr_over(&key);
    let at = position(&der, key.der_bytes());
    der[at..at + 65].copy_from_slice(other.der_bytes());
    assert_eq!(reason(&der), RefusalReason::CsrSignature);
}

#[test]
fn c_02_a_signature_algorithm_of_another_key_kind_is_refused() {
    let mut der = csr_of(&PKCS_ECDSA_P256_SHA256);
    // ecdsa-with-SHA256 becomes ecdsa-with-SHA224.
    let at = position(&der, &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]);
    der[at + 9] = 1;
    assert_eq!(reason(&der), RefusalReason::CsrSignature);
}

#[test]
fn c_02_published_and_trivial_keys_are_refused() {
    let rfc_9500 = "e6cb5bdd80aa45ae9c95e8c15476679ffec953c16851e711e743939589c64fc1";
    let unhex = |text: &str| -> Vec<u8> {
        (0..32)
            .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
            .collect()
    };
    let mut one = vec![0; 32];
    one[31] = 1;
    for scalar in [one, unhex(rfc_9500)] {
        let private = PrivateKey::from_private_key(&ECDH_P256, &scalar).unwrap();
        let public = private.compute_public_key().unwrap();
        let pair =
            EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_ASN1_SIGNING, &scalar, public.as_ref())
                .unwrap();
        let pkcs8 = pair.to_pkcs8v1().unwrap();
        let der = PrivatePkcs8KeyDer::from(pkcs8.as_ref());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256).unwrap();
        assert_eq!(reason(&csr_over(&key)), RefusalReason::CsrKey);
    }
}

#[test]
fn c_02_an_ed25519_key_of_small_order_is_refused() {
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut der = csr_over(&key);
    let at = position(&der, key.der_bytes());
    der[at..at + 32].fill(0);
    der[at] = 1;
    assert_eq!(reason(&der), RefusalReason::CsrKey);
}

#[test]
fn c_02_a_compressed_point_is_refused() {
    assert_eq!(
        check_key(KeyKind::P256, &[2; 33]).unwrap_err().reason(),
        RefusalReason::CsrKey
    );
}

#[test]
fn spec_027_trailing_bytes_and_oversize_are_refused() {
    let mut der = csr_of(&PKCS_ECDSA_P256_SHA256);
    der.push(0);
    assert_eq!(reason(&der), RefusalReason::CsrMalformed);
    assert_eq!(reason(&vec![0x30; MAX_CSR]), RefusalReason::CsrMalformed);
    assert_eq!(reason(&vec![0x30; MAX_CSR + 1]), RefusalReason::CsrTooLarge);
}

#[test]
fn c_04_deeply_nested_and_truncated_der_is_refused() {
    assert_eq!(reason(&[]), RefusalReason::CsrMalformed);
    let indefinite: Vec<u8> = [0x30, 0x80].repeat(MAX_CSR / 2);
    assert_eq!(reason(&indefinite), RefusalReason::CsrMalformed);
    let mut nested = Vec::new();
    while nested.len() < MAX_CSR - 8 {
        let length = u16::try_from(nested.len()).unwrap().to_be_bytes();
        nested = [&[0x30, 0x82, length[0], length[1]], nested.as_slice()].concat();
    }
    assert_eq!(reason(&nested), RefusalReason::CsrMalformed);
    let whole = csr_of(&PKCS_ECDSA_P256_SHA256);
    for length in 0..whole.len() {
        assert_eq!(reason(&whole[..length]), RefusalReason::CsrMalformed);
    }
}

#[test]
fn the_published_keys_are_those_of_their_documents() {
    // The public half as RFC 9500 prints it.
    let public = "422548f88fb782ffb5eca3744452c72a1e558fbd6f73be5e48e93232cc45c5b1";
    let x: Vec<u8> = (0..32)
        .map(|at| u8::from_str_radix(&public[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let mut point = vec![4];
    point.extend(&x);
    point.extend([0; 32]);
    assert!(known_keys::is_known(&point));
}

proptest! {
    #[test]
    fn c_04_no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(ProvenKey::from_csr(&bytes).is_err());
    }

    #[test]
    fn c_04_no_single_changed_byte_goes_unnoticed(at in 0_usize..200, flip in 1_u8..=255) {
        let mut der = csr_of(&PKCS_ECDSA_P256_SHA256);
        let at = at % der.len();
        der[at] ^= flip;
        prop_assert!(ProvenKey::from_csr(&der).is_err());
    }
}
