//! The roots that new sidecars pin: ConfigMap `postern-ca-roots`, which the CA writes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use tokio::time::{sleep, timeout};

use crate::error_chain;

const NAME: &str = "postern-ca-roots";
const KEY: &str = "roots.sha256";
/// A new root is pinned by new pods after this.
const POLL: Duration = Duration::from_secs(2);
/// One small object.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// A bundle has two roots while one takes over from the other.
const MAX_ROOTS: usize = 16;

/// SHA-256 of each root, in lower-case hexadecimal; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    shared: Arc<ArcSwap<Vec<String>>>,
}

impl Roots {
    /// As they are now; empty while the CA has written none.
    #[must_use]
    pub fn now(&self) -> Arc<Vec<String>> {
        self.shared.load_full()
    }

    /// Takes the text of `roots.sha256`. `Err`: it is none, and what was known stays.
    pub fn take(&self, text: &str) -> Result<(), String> {
        let roots: Vec<String> = text.split(',').map(|root| root.trim().to_owned()).collect();
        let digits = |root: &String| root.len() == 64 && root.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if roots.len() > MAX_ROOTS || !roots.iter().all(digits) {
            return Err(format!("{KEY} is no list of at most {MAX_ROOTS} SHA-256 sums"));
        }
        if **self.shared.load() != roots {
            tracing::info!(count = roots.len(), "new pods pin these roots");
            self.shared.store(Arc::new(roots));
        }
        Ok(())
    }

    /// Follows the ConfigMap until dropped. (It is read by its name: to watch it would need a right to list others.)
    pub async fn follow(self, client: Client, namespace: String) -> Infallible {
        let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
        let mut last = String::new();
        loop {
            let read = timeout(READ_DEADLINE, maps.get_opt(NAME)).await;
            let outcome = match read {
                Err(_) => Err("the API server does not answer".to_owned()),
                Ok(Err(error)) => Err(error_chain(&error)),
                Ok(Ok(map)) => match map.and_then(|map| map.data).and_then(|mut data| data.remove(KEY)) {
                    None => Err("the CA has not written its roots".to_owned()),
                    Some(text) => self.take(&text),
                },
            };
            let message = outcome.err().unwrap_or_default();
            // Once per reason, not once per look.
            if message != last && !message.is_empty() {
                tracing::warn!(reason = "roots", "ConfigMap {NAME}: {message}");
            }
            last = message;
            sleep(POLL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sums_are_taken_and_what_is_none_leaves_what_was_known() {
        let roots = Roots::default();
        assert!(roots.now().is_empty());
        let (a, b) = ("a".repeat(64), "0".repeat(64));
        roots.take(&format!("{a}, {b}")).unwrap();
        assert_eq!(*roots.now(), [a.clone(), b]);
        for wrong in [
            "",
            "a",
            &"A".repeat(64),
            &format!("{a},"),
            &vec![a.as_str(); 17].join(","),
        ] {
            assert!(roots.take(wrong).is_err(), "{wrong}");
            assert_eq!(roots.now().len(), 2);
        }
    }
}
