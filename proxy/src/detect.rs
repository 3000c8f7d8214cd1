//! What a connection's first bytes say.
