//! Keys whose private half anybody knows: small scalars, keys printed in standards, and points that prove nothing.

use std::collections::HashSet;
use std::sync::LazyLock;

use aws_lc_rs::agreement::{self, ECDH_P256, ECDH_P384, PrivateKey};

/// Scalars 1 to this are tried first by whoever looks for weak keys.
const SMALL_SCALARS: u16 = 64;

/// P-256 private keys printed in public documents.
const PUBLISHED_P256: &[[u8; 32]] = &[
    // RFC 6979, A.2.5.
    hex("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721"),
    // RFC 9500, testECCP256.
    hex("e6cb5bdd80aa45ae9c95e8c15476679ffec953c16851e711e743939589c64fc1"),
    // RFC 7515, A.3 (ES256).
    hex("8e9b109e719098bf980487df1f5d77e9cb29606ebed2263b5f57c213df84f4b2"),
];

/// Encodings of the eight points of small order on Curve25519 and their non-canonical twins: a signature "by" such a
/// key holds for any message, so it proves no possession.
const SMALL_ORDER_ED25519: &[[u8; 32]] = &[
    hex("0000000000000000000000000000000000000000000000000000000000000000"),
    hex("0000000000000000000000000000000000000000000000000000000000000080"),
    hex("0100000000000000000000000000000000000000000000000000000000000000"),
    hex("0100000000000000000000000000000000000000000000000000000000000080"),
    hex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    hex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"),
    hex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    hex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"),
    hex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    hex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"),
    hex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    hex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"),
    hex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    hex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"),
];

/// X coordinates of the known points (the negated scalar has the same one), and whole Ed25519 keys.
static KNOWN: LazyLock<HashSet<Vec<u8>>> = LazyLock::new(|| {
    let mut known: HashSet<Vec<u8>> = SMALL_ORDER_ED25519.iter().map(|key| key.to_vec()).collect();
    let mut add = |curve: &'static agreement::Algorithm, scalar: &[u8]| {
        let point = PrivateKey::from_private_key(curve, scalar).and_then(|key| Ok(key.compute_public_key()?));
        if let Ok(point) = point {
            known.insert(x_coordinate(point.as_ref()).to_vec());
        }
    };
    for scalar in PUBLISHED_P256 {
        add(&ECDH_P256, scalar);
    }
    for n in 1..=SMALL_SCALARS {
        let mut scalar = [0; 48];
        scalar[46..].copy_from_slice(&n.to_be_bytes());
        add(&ECDH_P384, &scalar);
        add(&ECDH_P256, &scalar[16..]);
    }
    known
});

/// `key`: the raw bits of a SubjectPublicKeyInfo (an uncompressed point, or 32 bytes of Ed25519).
pub(super) fn is_known(key: &[u8]) -> bool {
    KNOWN.contains(x_coordinate(key))
}

fn x_coordinate(key: &[u8]) -> &[u8] {
    match key {
        [4, xy @ ..] if key.len() > 32 => &xy[..xy.len() / 2],
        whole => whole,
    }
}

const fn hex(text: &str) -> [u8; 32] {
    const fn digit(byte: u8) -> u8 {
        match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => panic!("a hex digit"),
        }
    }
    let text = text.as_bytes();
    assert!(text.len() == 64);
    let mut out = [0; 32];
    let mut at = 0;
    while at < 32 {
        out[at] = digit(text[2 * at]) << 4 | digit(text[2 * at + 1]);
        at += 1;
    }
    out
}
