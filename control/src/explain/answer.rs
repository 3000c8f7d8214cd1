//! Question and answer as JSON: the same on control's socket, in `view.postern.dev` and in what `postern explain --output json`
//! prints.

use std::fmt;

use postern_policy::{Explanation, Missing, Mode, NamedRule, Verdict};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What is said of a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// `allowed` or `denied`; `null`: it cannot be told, and `because` says what is missing.
    #[serde(serialize_with = "said", deserialize_with = "verdict")]
    pub verdict: Option<Verdict>,
    /// One line.
    pub because: String,
    /// In `monitor` a denial is only reported; in `discover` nobody asks.
    #[serde(serialize_with = "word", deserialize_with = "mode")]
    pub mode: Mode,
    /// As in the proxy's metrics.
    pub reason: Option<String>,
    /// The rule that decided.
    pub rule: Option<Rule>,
    /// For a denial without a DENY rule: the ALLOW rule that came closest.
    pub nearest: Option<Missed>,
    /// Whom CUSTOM policies ask before all this.
    pub asks: Vec<Asks>,
    /// What an AUDIT rule marks.
    pub audit: Option<Rule>,
    /// If there is no verdict: the rule that hangs on something, and on what.
    pub hangs_on: Option<Missed>,
}

/// A rule, as a reader finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// The policy's namespace.
    pub namespace: String,
    /// The policy's name.
    pub policy: String,
    /// Its index in the document.
    pub index: u32,
    /// File and line, or the object and its JSON path.
    pub place: String,
}

/// A rule, and the field or condition of it that does not match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Missed {
    /// The rule.
    pub rule: Rule,
    /// `paths`, or `when request.headers[x-role]`.
    pub field: String,
}

/// A CUSTOM rule, and whom it asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Asks {
    /// The provider's name.
    pub provider: String,
    /// The rule.
    pub rule: Rule,
}

impl Answer {
    /// Where policies were not asked.
    pub(super) fn simple(verdict: Option<Verdict>, because: String, mode: Mode) -> Self {
        Self {
            verdict,
            because,
            mode,
            reason: None,
            rule: None,
            nearest: None,
            asks: Vec::new(),
            audit: None,
            hangs_on: None,
        }
    }

    pub(super) fn of(explanation: Explanation, verdict: Option<Verdict>, because: String, mode: Mode) -> Self {
        let asks = explanation.asks.into_iter().map(|(provider, rule)| Asks {
            provider,
            rule: rule.into(),
        });
        Self {
            verdict,
            because,
            mode,
            reason: Some(explanation.reason.as_str().to_owned()),
            rule: explanation.by.map(Rule::from),
            nearest: explanation.nearest.map(Missed::from),
            asks: asks.collect(),
            audit: explanation.audit.map(Rule::from),
            hangs_on: explanation.hangs_on.map(Missed::from),
        }
    }
}

impl From<NamedRule> for Rule {
    fn from(rule: NamedRule) -> Self {
        Self {
            namespace: rule.namespace,
            policy: rule.name,
            index: rule.index,
            place: rule.place.to_string(),
        }
    }
}

impl From<Missing> for Missed {
    fn from(missing: Missing) -> Self {
        Self {
            rule: missing.rule.into(),
            field: missing.field,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            namespace,
            policy,
            index,
            place,
        } = self;
        write!(f, "rule {index} of {namespace}/{policy} ({place})")
    }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: `{}` does not match", self.rule, self.field)
    }
}

#[allow(clippy::ref_option)] // As serde calls it.
fn said<S: Serializer>(verdict: &Option<Verdict>, to: S) -> Result<S::Ok, S::Error> {
    let word = verdict.map(|verdict| match verdict {
        Verdict::Allow => "allowed",
        Verdict::Deny => "denied",
    });
    word.serialize(to)
}

fn verdict<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Verdict>, D::Error> {
    match Option::<String>::deserialize(from)?.as_deref() {
        None => Ok(None),
        Some("allowed") => Ok(Some(Verdict::Allow)),
        Some("denied") => Ok(Some(Verdict::Deny)),
        Some(other) => Err(de::Error::unknown_variant(other, &["allowed", "denied"])),
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As serde calls it.
fn word<S: Serializer>(mode: &Mode, to: S) -> Result<S::Ok, S::Error> {
    mode.as_str().serialize(to)
}

fn mode<'de, D: Deserializer<'de>>(from: D) -> Result<Mode, D::Error> {
    Mode::parse(&String::deserialize(from)?).map_err(de::Error::custom)
}
