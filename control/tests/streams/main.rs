//! Control as proxies and viewers see it: real streams over mTLS, a directory on disk, identities minted by the test.

#![allow(clippy::unwrap_used)]

#[cfg(feature = "kubernetes")]
mod api;
mod bounds;
mod bundle;
mod changes;
#[cfg(feature = "kubernetes")]
mod cluster;
mod doors;
mod federation;
mod keys;
mod labels;
#[cfg(feature = "kubernetes")]
mod pod_identity;
mod replicas;
mod reports;
mod snapshots;
mod who;
mod world;
