//! Policy: documents in, decisions out.
//!
//! ```text
//! YAML --document--> Object (kind, name, labels, spec; every node knows its line) --model--> AuthorizationPolicy
//! [PeerAuthentication] + one workload --effective--> what each port takes (mutual TLS, plaintext, either)
//! [AuthorizationPolicy] + one workload --compile--> Compiled (an index over identity, port, path)
//! raw target, Host --canonical--> CanonicalPath, CanonicalHost   (the bytes matched are the bytes forwarded)
//! Compiled + Request --decide--> Decision (verdict, reason, policy, rule, place)   no lock, no allocation
//! Compiled + Request --explain--> the same decision in words, with the nearest rule and the field that missed
//! Compiled + Request --step_up--> what of a denial a login would change
//! ```
//!
//! Pure: no sockets, files, clock or randomness. Everything unknown or malformed is an error with a place
//! and the nearest valid name; what cannot be understood never allows.

pub mod authorizer;
pub mod canonical;
pub mod compile;
pub mod decide;
pub mod document;
pub mod explain;
pub mod feature;
pub mod lint;
pub mod model;
pub mod request;
pub mod schema;
pub mod step_up;
pub mod turns;
pub mod user;

pub use authorizer::Authorizer;
pub use canonical::{CanonicalError, CanonicalHost, CanonicalPath};
pub use compile::{Compiled, Needs};
pub use decide::{Decision, Matched, Reason, Verdict};
pub use explain::{Explanation, Missing, NamedRule};
pub use feature::{Feature, FeatureSet};
pub use model::authentication::{self, RequestAuthentication};
pub use model::peer_authentication::{self, MtlsMode, PeerAuthentication};
pub use model::{
    Action, AddressKey, Aliases, AuthorizationPolicy, Condition, IpBlock, Mode, Operation, Rule, Source, StringMatch,
    TextKey, UserMatch, Values,
};
pub use request::{Doubt, Headers, Http, Labels, NoHeaders, Request};
pub use step_up::StepUp;
pub use user::{User, UserError};
