//! `postern explain`: what the policies in force say of one request, over files or over what control holds now. The decision is
//! the proxy's own ([`Compiled::decide`]); what the question does not tell, and the documents do not either, is named.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use postern_identity::SpiffeId;
use postern_policy::document::nearest;
use postern_policy::request::is_same_field;
use postern_policy::{
    Action, AuthorizationPolicy, CanonicalHost, CanonicalPath, Compiled, Doubt, Headers, Http, Labels, Mode, MtlsMode,
    Request, User, Verdict,
};
use serde::{Deserialize, Serialize};

use crate::model::{Model, Workload, denying};
use crate::protocol::Protocol;
use crate::state::unix_ms;

mod answer;
mod door;
mod offline;

pub use answer::{Answer, Asks, Missed, Rule};
pub use offline::{Offline, OfflineError};

/// One request, as far as it is told.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Question {
    /// Who calls: an ID, `NAMESPACE/WORKLOAD` of the documents, or `plaintext`.
    pub from: String,
    /// Labels of the caller's workload, beside those that the documents give.
    pub from_labels: BTreeMap<String, String>,
    /// Who is called: an ID, or `NAMESPACE/WORKLOAD`.
    pub to: String,
    /// Labels of the workload that is called, beside those that the documents give.
    pub to_labels: BTreeMap<String, String>,
    /// The workload's port. Told by the documents if it has but one.
    pub port: Option<u16>,
    /// An HTTP request; otherwise a stream of bytes.
    pub http: Option<Asked>,
    /// Where the connection comes from.
    pub source_ip: Option<IpAddr>,
    /// The address that is called.
    pub destination_ip: Option<IpAddr>,
    /// The server name of the handshake.
    pub sni: Option<String>,
    /// Seconds since 1970; without it: now.
    pub now: Option<u64>,
}

/// The HTTP part of a question.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Asked {
    /// Case-sensitive.
    pub method: String,
    /// As a client would send it, without the query.
    pub path: String,
    /// `name` or `name:port`.
    pub host: Option<String>,
    /// Name and value, in order.
    pub headers: Vec<(String, String)>,
    /// The claims of the end user's token, taken as verified.
    pub claims: Option<serde_json::Map<String, serde_json::Value>>,
}

/// A question that has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unanswerable(String);

/// The workload that is called, as far as it is known.
struct Called<'m> {
    namespace: &'m str,
    labels: BTreeMap<String, String>,
    /// Are these all of its labels?
    all_labels: bool,
    workload: Option<&'m Workload>,
}

#[derive(Debug)]
struct Given<'a>(&'a [(String, String)]);

impl Headers for Given<'_> {
    fn each(&self, name: &str, found: &mut dyn FnMut(&[u8])) -> bool {
        for (_, value) in self.0.iter().filter(|(given, _)| is_same_field(given, name)) {
            found(value.trim().as_bytes());
        }
        true
    }
}

/// Answers a question over a model.
pub(crate) fn answer(model: &Model, question: &Question) -> Result<Answer, Unanswerable> {
    let called = called(model, question)?;
    let caller = caller(model, question)?;
    let mode = called
        .workload
        .map_or_else(|| model.mode_of(called.namespace), |workload| workload.mode);
    let simple = |verdict, because: String| Answer::simple(verdict, because, mode);
    let pools = Pools::of(model, &called);
    let port = match (question.port, called.workload.map(|workload| &workload.ports[..])) {
        (Some(port), _) => port,
        (None, Some([only])) => only.number,
        (None, _) => match pools.rule_with(|rule| rule.looks_at_ports()) {
            Some(rule) => {
                return Ok(simple(
                    None,
                    format!("undecided: the port is not told, and {rule} looks at it"),
                ));
            }
            None => 0,
        },
    };
    let door = match door::of(model, &called, mode, port) {
        Ok(door) => door,
        Err(undecided) => return Ok(simple(None, undecided)),
    };
    if caller.id.is_none() && door.taken == MtlsMode::Strict {
        return Ok(Answer {
            reason: Some(answer::AT_THE_DOOR.to_owned()),
            ..simple(Some(Verdict::Deny), format!("denied: {}", door.says))
        });
    }
    // Where plaintext alone is taken nobody has an identity, whoever it is.
    let in_clear = door.taken == MtlsMode::Disable;
    let caller = if in_clear { Caller::default() } else { caller };
    let http = question.http.as_ref().map(Parsed::of).transpose()?;
    if let Some(Parsed { host: None, .. }) = &http
        && let Some(rule) = pools.rule_with(|rule| rule.looks_at_hosts())
    {
        return Ok(simple(
            None,
            format!("undecided: the host is not told, and {rule} looks at it"),
        ));
    }
    let unnamed = CanonicalHost::parse("unnamed").map_err(|error| Unanswerable(error.to_string()))?;
    let given = Given(question.http.as_ref().map_or(&[], |asked| &asked.headers));
    let request = Request {
        peer: caller.id.as_ref(),
        peer_labels: known(caller.labels.as_ref()),
        peer_namespace_labels: known(caller.namespace_labels),
        source_ip: question.source_ip,
        remote_ip: question.source_ip,
        destination_ip: question.destination_ip,
        port,
        sni: question.sni.as_deref(),
        now: question.now.unwrap_or_else(|| unix_ms(SystemTime::now()) / 1_000),
        doubt: Doubt::Closed,
        http: http.as_ref().map(|http| Http {
            method: http.method,
            host: http.host.as_ref().unwrap_or(&unnamed),
            path: http.path.as_ref(),
            headers: &given,
            user: http.user.as_ref(),
        }),
    };
    if http.is_none() && !called.speaks_bytes(port) && pools.closed.needs_http(port) {
        let because = format!("denied: rules for port {port} read HTTP, and what is not HTTP is refused there");
        return Ok(simple(Some(Verdict::Deny), because));
    }
    let mut answer = pools.explain(&request, mode);
    if in_clear {
        answer.because = format!("{} ({}: nobody has an identity there)", answer.because, door.says);
    }
    Ok(answer)
}

fn known(labels: Option<&BTreeMap<String, String>>) -> Labels<'_> {
    labels.map_or(Labels::Unknown, Labels::Known)
}

/// The HTTP part, in the one form that is decided on.
struct Parsed<'q> {
    method: &'q str,
    host: Option<CanonicalHost>,
    path: CanonicalPath,
    user: Option<User>,
}

impl<'q> Parsed<'q> {
    fn of(asked: &'q Asked) -> Result<Self, Unanswerable> {
        let wrong =
            |what: &str, text: &str, why: String| Unanswerable(format!("the {what} `{text}` is refused: {why}"));
        let path = asked.path.split(['?', '#']).next().unwrap_or_default();
        let path = CanonicalPath::parse(path).map_err(|error| wrong("path", &asked.path, error.to_string()))?;
        let host = asked
            .host
            .as_deref()
            .map(|host| CanonicalHost::parse(host).map_err(|error| wrong("host", host, error.to_string())));
        let user = asked.claims.clone().map(User::of_verified).transpose();
        Ok(Self {
            method: &asked.method,
            host: host.transpose()?,
            path,
            user: user.map_err(|error| Unanswerable(format!("the claims: {error}")))?,
        })
    }
}

#[derive(Default)]
struct Caller<'m> {
    id: Option<SpiffeId>,
    labels: Option<BTreeMap<String, String>>,
    namespace_labels: Option<&'m BTreeMap<String, String>>,
}

fn caller<'m>(model: &'m Model, question: &Question) -> Result<Caller<'m>, Unanswerable> {
    if question.from == "plaintext" {
        return Ok(Caller::default());
    }
    let (id, workload) = match split(&question.from) {
        None => {
            let id = SpiffeId::parse(&question.from).map_err(|error| Unanswerable(format!("--from: {error}")))?;
            // Its labels are known if the documents know just one with this ID.
            let only = match model.with_id(&id)[..] {
                [only] => Some(only),
                _ => None,
            };
            (id, only)
        }
        Some(name) => {
            let workload = described(model, "--from", name)?;
            let unknown = || Unanswerable(format!("--from: nobody knows the identity of {}", question.from));
            (workload.document.id.clone().ok_or_else(unknown)?, Some(workload))
        }
    };
    let mut labels = workload.map(|workload| workload.document.labels.clone());
    if !question.from_labels.is_empty() {
        labels.get_or_insert_default().extend(question.from_labels.clone());
    }
    let namespace_labels = id
        .workload()
        .and_then(|(namespace, _)| model.described_labels_of(namespace));
    Ok(Caller {
        id: Some(id),
        labels,
        namespace_labels,
    })
}

fn called<'m>(model: &'m Model, question: &'m Question) -> Result<Called<'m>, Unanswerable> {
    let told = &question.to_labels;
    let of = |workload: &'m Workload| {
        let mut labels = workload.document.labels.clone();
        labels.extend(told.clone());
        Called {
            namespace: &workload.document.namespace,
            labels,
            all_labels: true,
            workload: Some(workload),
        }
    };
    let undescribed = |namespace: &'m str| Called {
        namespace,
        labels: told.clone(),
        all_labels: false,
        workload: None,
    };
    match split(&question.to) {
        // One that no document describes is known by its labels.
        Some((namespace, name)) if !told.is_empty() && model.workload(namespace, name).is_none() => {
            Ok(undescribed(namespace))
        }
        Some(name) => described(model, "--to", name).map(of),
        None => {
            let id = SpiffeId::parse(&question.to).map_err(|error| Unanswerable(format!("--to: {error}")))?;
            match model.with_id(&id)[..] {
                [only] => Ok(of(only)),
                [one, ..] if told.is_empty() => {
                    let example = &one.document;
                    Err(Unanswerable(format!(
                        "--to: several workloads have this identity: name one, such as {}/{}",
                        example.namespace, example.name
                    )))
                }
                _ => {
                    let rest = question
                        .to
                        .split("/ns/")
                        .nth(1)
                        .and_then(|rest| rest.split_once("/sa/"));
                    let (namespace, _) =
                        rest.ok_or_else(|| Unanswerable("--to: the identity has no namespace".to_owned()))?;
                    Ok(undescribed(namespace))
                }
            }
        }
    }
}

/// `NAMESPACE/WORKLOAD`.
fn split(text: &str) -> Option<(&str, &str)> {
    if text.contains(':') {
        return None;
    }
    text.split_once('/')
}

fn described<'m>(
    model: &'m Model,
    option: &str,
    (namespace, name): (&str, &str),
) -> Result<&'m Workload, Unanswerable> {
    model.workload(namespace, name).ok_or_else(|| {
        let given = format!("{namespace}/{name}");
        let known: Vec<String> = model.workloads.keys().map(|(n, w)| format!("{n}/{w}")).collect();
        let near = nearest(&given, known.iter().map(String::as_str));
        let hint = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
        let or = match option {
            "--to" => "; one that is not described is told by its labels, with --to-label",
            _ => "",
        };
        Unanswerable(format!("{option}: no document describes workload {given}{hint}{or}"))
    })
}

impl Called<'_> {
    /// Whether a policy selects it; `None` if that hangs on a label that is not told.
    fn selected_by(&self, model: &Model, policy: &AuthorizationPolicy) -> Option<bool> {
        let nowhere = BTreeMap::new();
        let mut bare = policy.clone();
        bare.selector = nowhere.clone();
        if !bare.selects(&model.root_namespace, self.namespace, &nowhere) {
            return Some(false);
        }
        let mut told = true;
        for (key, wanted) in &policy.selector {
            match self.labels.get(key) {
                Some(value) if value != wanted => return Some(false),
                Some(_) => {}
                None if self.all_labels => return Some(false),
                None => told = false,
            }
        }
        told.then_some(true)
    }

    fn speaks_bytes(&self, port: u16) -> bool {
        let ports = self.workload.map_or(&[][..], |workload| &workload.ports);
        ports
            .iter()
            .any(|known| known.number == port && known.protocol == Protocol::Tcp)
    }
}

/// The policies that select the workload, with those that may: once as it denies most, once as it allows most.
struct Pools {
    closed: Compiled,
    open: Compiled,
    /// Those that may, with the label that it hangs on.
    maybe: Vec<(String, String)>,
    /// CUSTOM policies whose provider is not there, `namespace/name`, and why: they deny.
    unasked: Vec<(String, String)>,
}

impl Pools {
    fn of(model: &Model, called: &Called<'_>) -> Self {
        let (mut closed, mut open, mut maybe, mut unasked) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let namespace_labels = model.described_labels_of(called.namespace);
        for policy in &model.policies {
            let selected = called.selected_by(model, policy);
            if selected == Some(false) {
                continue;
            }
            // What hangs on labels of the workload is settled where they are all known.
            let mut policy = match namespace_labels {
                Some(of_namespace) if called.all_labels => policy.resolved(&called.labels, of_namespace),
                _ => policy.clone(),
            };
            if policy.action == Action::Custom
                && let Err(why) = model.provider_of(&policy)
            {
                unasked.push((format!("{}/{}", policy.namespace, policy.name), why));
                policy = denying(policy);
            }
            if selected.is_none() {
                let label = policy
                    .selector
                    .iter()
                    .find(|(key, _)| !called.labels.contains_key(*key));
                let label = label.map_or_else(String::new, |(key, value)| format!("{key}={value}"));
                maybe.push((
                    format!("{}/{} ({})", policy.namespace, policy.name, policy.place),
                    label,
                ));
            }
            let allows = policy.action == Action::Allow;
            if selected.is_some() || allows {
                open.push(policy.clone());
            }
            if selected.is_some() || !allows {
                closed.push(policy);
            }
        }
        Self {
            closed: Compiled::new(closed),
            open: Compiled::new(open),
            maybe,
            unasked,
        }
    }

    /// The first rule of which this holds.
    fn rule_with(&self, holds: impl Fn(&postern_policy::Rule) -> bool) -> Option<String> {
        let pools = [&self.closed, &self.open];
        pools.iter().flat_map(|pool| pool.policies()).find_map(|policy| {
            let rule = policy.rules.iter().find(|rule| holds(rule))?;
            Some(format!(
                "rule {} of {}/{} ({})",
                rule.index, policy.namespace, policy.name, rule.place
            ))
        })
    }

    fn explain(&self, request: &Request<'_>, mode: Mode) -> Answer {
        let (closed, open) = (self.closed.explain(request), self.open.explain(request));
        let told = |explanation, verdict, because| Answer::of(explanation, verdict, because, mode);
        let chosen = match (closed.verdict, open.verdict) {
            (Some(Verdict::Allow), Some(Verdict::Allow)) => closed,
            (Some(Verdict::Deny), Some(Verdict::Deny)) => open,
            (None, _) => {
                let because = closed.to_string();
                return told(closed, None, because);
            }
            (_, None) => {
                let because = open.to_string();
                return told(open, None, because);
            }
            (Some(_), Some(_)) => {
                let because = self.maybe.first().map_or_else(
                    || "undecided".to_owned(),
                    |(policy, label)| {
                        format!("undecided: whether {policy} selects the workload hangs on its label {label}")
                    },
                );
                return told(open, None, because);
            }
        };
        // Whom CUSTOM policies ask may yet say no.
        match (chosen.verdict, chosen.asks.first()) {
            (Some(Verdict::Allow), Some((provider, rule))) => {
                let because = format!("undecided: provider {provider} is asked by {rule}; else {chosen}");
                told(chosen, None, because)
            }
            (verdict, _) => {
                let mut because = chosen.to_string();
                let by = chosen.by.as_ref().map(|by| format!("{}/{}", by.namespace, by.name));
                if let Some((_, why)) = self.unasked.iter().find(|(policy, _)| Some(policy) == by.as_ref()) {
                    because.push_str(&format!("; {why}"));
                }
                told(chosen, verdict, because)
            }
        }
    }
}

#[cfg(test)]
mod tests;
