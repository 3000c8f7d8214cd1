//! The app's own probes and lifecycle hooks, which the injector pointed at us: a kubelet has no certificate, so under
//! default deny it cannot ask the app itself.
//!
//! ```text
//! kubelet --GET /probe/<token>/<container>/<which>--> endpoint (15020) -> token -> target -> http | tcp | grpc -> app
//! ```
//!
//! What is asked comes from the pod's own manifest (`POSTERN_PROBES`), never from the request: this is a list of targets,
//! not a forwarder. Who does not know the token learns nothing, 404 like any other path. Probes do not wait for an
//! identity or for control: whether the app is well is not for the mesh to say.

mod grpc;
mod http;
pub(crate) mod parse;
mod tcp;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use ::http::header::{HeaderValue, USER_AGENT};
use ::http::request::Parts;
use postern_telemetry::endpoint::{HangUp, More, Pending};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use self::parse::ProbesError;

/// Probes in progress: more than one kubelet has for a pod with many containers. Each takes a descriptor.
const MAX_AT_ONCE: usize = 64;
/// Text of ours or of the app's in an answer.
const MAX_REASON: usize = 256;
/// A kubelet names itself to the app; longer texts are not its name.
const MAX_USER_AGENT: usize = 128;

/// What may be asked.
#[derive(Debug)]
pub(crate) struct Probes {
    token: Token,
    targets: HashMap<Box<str>, Arc<Target>>,
    at_once: Arc<Semaphore>,
}

/// 128 random bits in 32 hexadecimal digits, made by the injector for this pod.
struct Token(Box<str>);

/// One probe or hook.
#[derive(Debug)]
struct Target {
    asks: Asks,
    hook: bool,
    timeout: Duration,
}

/// What is asked of the app.
#[derive(Debug)]
enum Asks {
    Http(http::Probe),
    Tcp(tcp::Probe),
    Grpc(grpc::Probe),
}

impl Probes {
    /// Reads `POSTERN_PROBES`.
    pub(crate) fn parse(text: &str, pod: IpAddr) -> Result<Self, ProbesError> {
        parse::probes(text, pod)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.targets.len()
    }

    fn target(&self, request: &Parts) -> Option<(&str, &Arc<Target>)> {
        let (token, name) = request.uri.path().strip_prefix("/probe/")?.split_once('/')?;
        if !self.token.is(token) || request.uri.query().is_some() {
            return None;
        }
        self.targets.get_key_value(name).map(|(name, target)| (&**name, target))
    }
}

impl More for Probes {
    fn answer(&self, request: &Parts) -> Option<Pending> {
        let (name, target) = self.target(request)?;
        let (name, target) = (name.to_owned(), Arc::clone(target));
        let agent = request.headers.get(USER_AGENT).filter(|a| a.len() <= MAX_USER_AGENT);
        let agent = agent.cloned();
        let at_once = Arc::clone(&self.at_once);
        Some(Box::pin(async move {
            let outcome = match at_once.try_acquire() {
                Ok(_permit) => target.probe(agent).await,
                Err(_) => Err(format!("{MAX_AT_ONCE} probes are in progress")),
            };
            if let Err(why) = &outcome {
                // The kubelet makes an event of it.
                tracing::debug!(
                    probe = name,
                    reason = one_line(why).trim_end(),
                    "a probe of the app failed"
                );
            }
            match outcome {
                Ok(()) => Ok((StatusCode::OK, "ok\n".to_owned())),
                // A kubelet takes any answer to a hook for a success (pkg/kubelet/lifecycle); a broken connection it does not.
                Err(_) if target.hook => Err(HangUp),
                Err(why) => Ok((StatusCode::SERVICE_UNAVAILABLE, one_line(&why))),
            }
        }))
    }

    fn longest(&self) -> Duration {
        self.targets
            .values()
            .map(|target| target.timeout)
            .max()
            .unwrap_or_default()
    }
}

impl Target {
    /// `Err` says why it failed.
    async fn probe(&self, agent: Option<HeaderValue>) -> Result<(), String> {
        let asked = async {
            match &self.asks {
                Asks::Http(probe) => probe.run(agent, self.hook).await,
                Asks::Tcp(probe) => probe.run().await,
                Asks::Grpc(probe) => probe.run(agent).await,
            }
        };
        timeout(self.timeout, asked)
            .await
            .unwrap_or_else(|_| Err(format!("the app took longer than {:?}", self.timeout)))
    }
}

impl Token {
    /// In a time that does not depend on how much of it is right.
    fn is(&self, other: &str) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.0.as_bytes(), other.as_bytes()).is_ok()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

fn one_line(text: &str) -> String {
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    line.take(MAX_REASON).chain(['\n']).collect()
}
