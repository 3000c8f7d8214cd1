//! Webhooks over real TLS sockets, as an API server calls them: ADVERSARIAL.md I-1, I-4, I-5 and I-6.
#![allow(clippy::unwrap_used, missing_docs)]

mod caller;
mod changing;
mod malformed;
mod pods;
mod strangers;
mod world;
