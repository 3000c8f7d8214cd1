//! Only this module makes a [`Permit`].

/// Proof that policy lets one request or stream through. Consumed by `forward`.
#[derive(Debug)]
pub struct Permit {
    _private: (),
}
