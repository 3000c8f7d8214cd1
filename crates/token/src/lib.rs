//! End users' tokens (JWT, RFC 7519) beside the workload identity.
//!
//! ```text
//! [RequestAuthentication] + keys --Authenticator::new--> what one workload believes
//! head, query --Authenticator::find--> Token             where it stands; two tokens are an error
//! Token + now --Authenticator::verify--> Verified        signature, issuer, audience, times
//! Verified + caller --Verified::admits--> User           tokens bound to a client or a certificate stay theirs
//! Refusal, StepUp --answer--> status, WWW-Authenticate   RFC 6750, RFC 9470
//! ```
//!
//! svid: JWT-SVIDs + bundles --verify--> JwtSvid        workloads' own tokens, by the SPIFFE standard
//!
//! Pure: no sockets, files, randomness or clock (time is a parameter). The key and the list of the document say which
//! signature is believed, never the token alone; what two readers could understand in two ways is refused. Nothing here
//! prints a token.

pub mod answer;
mod compact;
mod json;
pub mod key_set;
pub mod locate;
mod refusal;
pub mod svid;
mod told;
mod verify;

pub use compact::MAX_TOKEN;
pub use key_set::KeySet;
pub use locate::{Spot, Token};
pub use refusal::Refusal;
pub use verify::{Authenticator, Caller, Keys, Verified};
