//! The data path: every connection of one workload, both ways.
//!
//! ```text
//! inbound   listen -> original_dst -> detect -> inbound/terminate (mTLS, VerifiedPeer) -> http or opaque
//!           -> inbound/authenticate -> canonical request -> inbound/authorize (-> Permit)
//!           -> inbound/sanitize -> inbound/forward (needs the Permit) -> app
//! outbound  listen -> original_dst or outbound/explicit -> outbound/resolve -> detect
//!           -> outbound/balance -> outbound/pool -> outbound/originate (mTLS, expected ID) -> outbound/forward
//! beside    workload (key, CSR, renewal), control_client (subscriptions, last good), metrics, access_log, drain
//! ```
//!
//! Invariants: only `inbound::authorize` makes a `Permit` and nothing is forwarded to the app without one; a request
//! never rides a connection admitted for someone else; every queue, buffer and wait has a named bound in `limits`.
//! Shared nothing: N workers, each one thread with its own pools; what they share is read through [`snapshot`].

pub mod access_log;
pub mod detect;
pub mod drain;
pub mod exchange;
pub mod http;
pub mod inbound;
pub mod limits;
pub mod metrics;
pub mod opaque;
pub mod outbound;
pub mod outcome;
pub mod redirect;
pub mod snapshot;
pub mod stream;
pub mod supervise;
pub mod worker;
