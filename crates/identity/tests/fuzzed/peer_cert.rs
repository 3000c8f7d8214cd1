//! A peer's certificate: what passes the leaf rules has one ID that stands in it, and nothing of it is read in two ways.

use postern_identity::leaf;
use rustls_pki_types::CertificateDer;

/// Panics where it does not hold; is it a leaf?
pub fn check(data: &[u8]) -> bool {
    let certificate = CertificateDer::from(data.to_vec());
    let leaf = match leaf::inspect(&certificate) {
        Ok(leaf) => leaf,
        Err(error) => {
            // Each refusal has its word and its sentence.
            assert!(error.reason().starts_with("leaf_") && !error.to_string().is_empty());
            return false;
        }
    };
    assert!(holds(data, leaf.id.as_str().as_bytes()), "{:?} is not in it", leaf.id);
    assert!(leaf.not_before <= leaf.not_after);
    assert!(!leaf.serial.is_empty() && holds(data, &leaf.serial));
    if let Some(instance) = &leaf.instance {
        assert!(holds(data, &leaf::instance_extension_der(instance)), "{instance:?}");
    }
    // Its end is its end.
    let longer = CertificateDer::from([data, &[0]].concat());
    assert!(leaf::inspect(&longer).is_err());
    // The same, each time.
    let again = leaf::inspect(&certificate).expect("it passed");
    assert_eq!((again.id, again.serial), (leaf.id, leaf.serial));
    true
}

fn holds(data: &[u8], part: &[u8]) -> bool {
    data.windows(part.len()).any(|window| window == part)
}
