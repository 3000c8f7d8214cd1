//! Connections to peers, keyed by (own identity generation, accepted peer identities, address, protocol).

/// A worker's pool.
#[derive(Debug, Default)]
pub struct Pool {}
