//! After all other webhooks: is what was injected still whole?

use serde_json::Value;

use crate::inject::{PodContext, Settings};

/// Checks a pod that is about to be stored. `Ok` has the warnings, `Err` says what was changed.
pub fn verify(_pod: &Value, _context: &PodContext<'_>, _settings: &Settings) -> Result<Vec<String>, String> {
    Ok(Vec::new())
}

/// Checks the ephemeral (debugging) containers of a pod.
pub fn verify_ephemeral(_pod: &Value, _context: &PodContext<'_>, _settings: &Settings) -> Result<Vec<String>, String> {
    Ok(Vec::new())
}
