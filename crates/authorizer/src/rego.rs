//! Embedded Rego: modules are compiled once, each worker has an engine of its own, every evaluation has a limit.
//!
//! `regorus` finds out only while it evaluates that a function does not exist, recurses without a bound, and reads the
//! clock as it likes. So a policy is looked at before it is taken (`lint`), and the built-ins in `builtins` stand
//! in front of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, LimitError, PolicyLengthConfig};

use crate::{Check, Failure, Verdict};

mod builtins;
mod lint;
mod nesting;
mod result;

/// What OPA-Envoy asks unless told otherwise.
pub const DEFAULT_QUERY: &str = "data.envoy.authz.allow";
/// Modules of one policy.
pub const MAX_MODULES: usize = 32;
/// Text of all modules, and the data document as JSON: every proxy that the policy selects gets both.
pub const MAX_BYTES: usize = 256 * 1024;
/// An evaluation holds up the worker's other connections.
pub const DEFAULT_LIMIT: Duration = Duration::from_millis(2);
/// The most that may be asked for.
pub const MAX_LIMIT: Duration = Duration::from_millis(5);
/// Steps of the interpreter between looks at the clock: some microseconds.
const CHECK_INTERVAL: NonZeroU32 = NonZeroU32::new(16).expect("not zero");

/// A policy as a document gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Text by name.
    pub modules: BTreeMap<String, String>,
    /// `data.` and the path of a rule.
    pub query: String,
    /// Merged under `data`.
    pub data: serde_json::Map<String, serde_json::Value>,
    /// Rego before OPA 1.0 (`allow { .. }` without `if`).
    pub v0: bool,
    /// Of one evaluation.
    pub limit: Duration,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            modules: BTreeMap::new(),
            query: DEFAULT_QUERY.to_owned(),
            data: serde_json::Map::new(),
            v0: false,
            limit: DEFAULT_LIMIT,
        }
    }
}

/// Why a policy is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct RegoError {
    /// The module; `None`: the policy as a whole.
    pub module: Option<String>,
    /// Line and column in it, from 1.
    pub place: Option<(u32, u32)>,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// A compiled policy. Cheap to share; evaluates nothing itself.
#[derive(Clone)]
pub struct RegoPolicy {
    engine: Arc<Engine>,
    query: String,
}

/// An engine with the policy in it, for one worker.
pub struct Evaluator {
    engine: Engine,
    query: String,
    now: Arc<AtomicI64>,
}

impl RegoPolicy {
    /// Parses, looks at and compiles a policy.
    pub fn load(source: &Source) -> Result<Self, RegoError> {
        let whole = |message: String| RegoError {
            module: None,
            place: None,
            message,
        };
        check_bounds(source).map_err(whole)?;
        nesting::check(source.modules.iter())?;
        let mut engine = Engine::new();
        engine.set_rego_v0(source.v0);
        // As OPA: a built-in that fails is undefined, and does not end the evaluation.
        engine.set_strict_builtin_errors(false);
        // Else `print` writes to our standard error.
        engine.set_gather_prints(true);
        engine.set_policy_length_config(PolicyLengthConfig {
            max_file_bytes: NonZeroUsize::new(MAX_BYTES).expect("not zero"),
            ..PolicyLengthConfig::default()
        });
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit: source.limit,
            check_interval: CHECK_INTERVAL,
        });
        for (name, text) in &source.modules {
            engine
                .add_policy(name.clone(), text.clone())
                .map_err(|error| RegoError::of(name, &error))?;
        }
        lint::check(engine.get_modules())?;
        let data = serde_json::Value::Object(source.data.clone());
        engine
            .add_data(data.into())
            .map_err(|error| whole(format!("data: {error}")))?;
        engine
            .compile_with_entrypoint(&source.query.as_str().into())
            .map_err(|error| {
                let text = error.to_string();
                if text.contains("not a valid rule path") {
                    whole(format!("query `{}` names no rule of these modules", source.query))
                } else {
                    RegoError::of("", &error)
                }
            })?;
        Ok(Self {
            engine: Arc::new(engine),
            query: source.query.clone(),
        })
    }

    /// An engine for one worker.
    #[must_use]
    pub fn evaluator(&self) -> Evaluator {
        let now = Arc::new(AtomicI64::new(0));
        let mut engine = Engine::clone(&self.engine);
        builtins::add(&mut engine, &now);
        Evaluator {
            engine,
            query: self.query.clone(),
            now,
        }
    }
}

impl Evaluator {
    /// Asks the policy. The clock that it sees stands still at the request's time.
    pub fn decide(&mut self, check: &Check) -> Result<Verdict, Failure> {
        self.engine.set_input(check.input()?);
        self.now.store(nanoseconds(check.time), Ordering::Relaxed);
        let decision = self.engine.eval_rule(self.query.clone());
        // Bodies and tokens must not wait here for the next request.
        self.engine.set_input(regorus::Value::Undefined);
        let _ = self.engine.take_prints();
        match decision {
            Ok(value) => result::verdict(&value),
            Err(error) if is_time_limit(&error) => Err(Failure::Timeout),
            Err(error) => Err(Failure::Evaluation(RegoError::of("", &error).to_string())),
        }
    }
}

fn is_time_limit(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(LimitError::TimeLimitExceeded { .. }))
        // Built-ins wrap it with a place.
        || error.to_string().contains("execution exceeded time limit")
}

fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn check_bounds(source: &Source) -> Result<(), String> {
    if source.modules.is_empty() {
        return Err("there is no module".to_owned());
    }
    if source.modules.len() > MAX_MODULES {
        return Err(format!(
            "{} modules; at most {MAX_MODULES} are taken",
            source.modules.len()
        ));
    }
    let text: usize = source.modules.values().map(String::len).sum();
    if text > MAX_BYTES {
        return Err(format!("the modules have {text} bytes; at most {MAX_BYTES} are taken"));
    }
    let data = serde_json::to_string(&source.data).map_or(usize::MAX, |text| text.len());
    if data > MAX_BYTES {
        return Err(format!("data has {data} bytes as JSON; at most {MAX_BYTES} are taken"));
    }
    if source.limit > MAX_LIMIT || source.limit.is_zero() {
        return Err(format!(
            "a limit of {:?}; it is more than nothing and at most {MAX_LIMIT:?}",
            source.limit
        ));
    }
    let word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match source.query.strip_prefix("data.") {
        Some(path) if path.split('.').all(word) && source.query.len() <= 256 => Ok(()),
        _ => Err(format!(
            "query `{}` is not the path of a rule, like `{DEFAULT_QUERY}`",
            source.query
        )),
    }
}

impl RegoError {
    /// Takes regorus' message apart: `--> module:line:column`, a picture of the line, `error: words`.
    fn of(module: &str, error: &anyhow::Error) -> Self {
        let text = format!("{error:#}");
        let place = text.lines().find_map(|line| line.strip_prefix("--> "));
        let mut parts = place.unwrap_or_default().rsplitn(3, ':');
        let column = parts.next().and_then(|part| part.parse().ok());
        let line = parts.next().and_then(|part| part.parse().ok());
        let named = parts.next().filter(|name| !name.is_empty()).unwrap_or(module);
        let words = text.lines().find_map(|line| line.strip_prefix("error: "));
        Self {
            module: Some(named.to_owned()).filter(|name| !name.is_empty()),
            place: line.zip(column),
            message: words
                .unwrap_or(text.lines().next().unwrap_or_default())
                .chars()
                .take(300)
                .collect(),
        }
    }
}

impl fmt::Display for RegoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(module) = &self.module {
            write!(f, "module `{module}`")?;
            if let Some((line, column)) = self.place {
                write!(f, ", line {line}, column {column}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Debug for RegoPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegoPolicy")
            .field("query", &self.query)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Evaluator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evaluator")
            .field("query", &self.query)
            .finish_non_exhaustive()
    }
}
