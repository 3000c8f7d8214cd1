//! Steady calls, and what became of them. Nothing is retried: a call that fails is counted as failed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use crate::through::Way;
use crate::{Args, Service};

pub(crate) mod grpc;
pub(crate) mod http;
pub(crate) mod tcp;

/// Latencies that are kept for quantiles, per kind of call; past it every second one is dropped.
const MAX_SAMPLES: usize = 65_536;

/// What became of one kind of call.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Calls {
    /// Answered as if allowed.
    pub allowed: u64,
    /// Refused by policy.
    pub denied: u64,
    /// Neither.
    pub failed: u64,
    /// The last failure, for people.
    pub last_failure: String,
    /// Latencies of allowed calls, microseconds.
    pub latencies_us: Vec<u32>,
    /// Of this kind all calls should be refused.
    pub expect_denied: bool,
}

/// How a call ended.
#[derive(Debug)]
pub(crate) enum End {
    Allowed,
    Denied,
    Failed(String),
}

/// A service's calls, by kind (`web>cart`, ...).
#[derive(Debug, Clone, Default)]
pub struct Load(Arc<Mutex<BTreeMap<String, Calls>>>);

impl Load {
    pub(crate) fn record(&self, kind: &str, expect_denied: bool, end: End, took: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = all.entry(kind.to_owned()).or_default();
        calls.expect_denied = expect_denied;
        match end {
            End::Allowed => {
                calls.allowed += 1;
                if calls.latencies_us.len() >= MAX_SAMPLES {
                    let mut keep = false;
                    calls.latencies_us.retain(|_| {
                        keep = !keep;
                        keep
                    });
                }
                calls
                    .latencies_us
                    .push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
            }
            End::Denied => calls.denied += 1,
            End::Failed(why) => {
                calls.failed += 1;
                calls.last_failure = why;
            }
        }
    }

    /// All kinds.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<String, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Starts the calls of a service.
pub(crate) fn start(args: &Args, way: Way, load: &Load) {
    let (often, rarely) = (args.rate, 1);
    match args.service {
        Service::Web => {
            let cart = args
                .insecure_bypass_cart
                .map_or(http::Target::Cart(way), http::Target::Direct);
            http::repeat(load, "web>cart", often * 2, cart, "/items", false);
            http::repeat(load, "web>cart admin", rarely, http::Target::Cart(way), "/admin", true);
            if let Some(direct) = args.direct_cart {
                http::repeat(
                    load,
                    "direct",
                    often,
                    http::Target::Direct(direct),
                    crate::cart::DIRECT_PROBE,
                    false,
                );
            }
            grpc::repeat_pay(load, "web>payments", often, way, false);
            grpc::follow(load, "web>payments stream", way);
        }
        Service::Cart => grpc::repeat_pay(load, "cart>payments", often, way, false),
        Service::Payments => tcp::repeat(load, "payments>ledger", often, way, false),
        Service::Ledger => {}
        Service::Mallory => {
            http::repeat(load, "mallory>cart", rarely, http::Target::Cart(way), "/items", true);
            grpc::repeat_pay(load, "mallory>payments", rarely, way, true);
            tcp::repeat(load, "mallory>ledger", rarely, way, true);
        }
    }
}

/// Calls `call` `rate` times a second, one at a time, and records how each ended.
pub(crate) fn every<C, F>(load: &Load, kind: &str, rate: u32, expect_denied: bool, mut call: C)
where
    C: FnMut() -> F + Send + 'static,
    F: Future<Output = End> + Send,
{
    let (load, kind) = (load.clone(), kind.to_owned());
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let started = Instant::now();
            let end = tokio::time::timeout(crate::through::DEADLINE, call())
                .await
                .unwrap_or_else(|_| End::Failed(format!("no answer in {:?}", crate::through::DEADLINE)));
            load.record(&kind, expect_denied, end, started.elapsed());
        }
    });
}
