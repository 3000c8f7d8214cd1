//! A certificate request from a stranger: one that passes proves a key that stands in it, and no bit of it can be another.

/// Panics where it does not hold; does it prove a key?
pub fn check(data: &[u8]) -> bool {
    let key = match postern_ca::proven_key(data) {
        Ok(key) => key,
        Err(reason) => {
            assert!(reason.starts_with("csr_"), "{reason}");
            return false;
        }
    };
    assert_eq!(postern_ca::proven_key(data), Ok(key));
    assert!(
        postern_ca::proven_key(&[data, &[0]].concat()).is_err(),
        "its end is its end"
    );
    // One bit of it, and which one is up to the input.
    let sum: usize = data.iter().map(|byte| usize::from(*byte)).sum();
    let mut changed = data.to_vec();
    if let Some(byte) = changed.get_mut(sum % data.len()) {
        *byte ^= 1 << (sum % 8);
    }
    assert!(
        postern_ca::proven_key(&changed).is_err(),
        "bit {} of {}",
        sum % 8,
        sum % data.len()
    );
    true
}
