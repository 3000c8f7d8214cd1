//! A KMS plugin (Kubernetes KMS v2, on a Unix socket) whose keys are in a PKCS#11 token: an HSM, a smart card, SoftHSM.
//!
//! ```text
//! CA --KMS v2, Unix socket--> plugin -> keeper --lines on a socket pair--> session (a process of its own)
//!                                                                            token: the vendor's module, dlopened
//! ```
//!
//! Why it is a program beside the CA and no part of it: a module is somebody else's native code, and here it is never in the
//! process that holds the issuing keys; the CA stays a static binary, which could not load one; a module that hangs or crashes
//! takes a `session` with it, which is ended and started again, and nothing else.
//!
//! Invariants: the PIN is in a file, and in the memory of a session; it is never an argument, in the environment or in a log,
//! and one that a token refused is not tried again before its file changes (tokens lock after a few). A key that can leave its
//! token is not used. What wraps is seeds of the CA (32 bytes): its records never come here.

mod args;
mod keeper;
mod kms_v2;
mod pin;
mod plugin;
mod session;
mod token;

pub use args::{Cli, run};
