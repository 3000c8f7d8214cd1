//! `postern explain`: what the policies in force say of one request, over files or over what control holds now. The decision is
//! the proxy's own ([`Compiled::decide`]); what the question does not tell, and the documents do not either, is named.

use std::collections::BTreeMap;
use std::time::SystemTime;

use postern_identity::SpiffeId;
use postern_policy::request::is_same_field;
use postern_policy::{
    Action, AuthorizationPolicy, CanonicalHost, CanonicalPath, Compiled, Doubt, Headers, Http, Labels, Mode, MtlsMode,
    Request, User, Verdict,
};

use crate::model::{Model, Workload, denying};
use crate::protocol::Protocol;
use crate::state::unix_ms;

mod answer;
mod door;
mod offline;
mod question;

pub use answer::{Answer, Asks, Missed, Rule};
pub use offline::{Offline, OfflineError};
use question::split;
pub use question::{Asked, Question, Unanswerable};
#[cfg(feature = "kubernetes")]
pub(crate) use question::{MAX_QUESTION, misshapen};

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
    // Within, 0 is a port that is not told.
    if question.port == Some(0) {
        return Err(Unanswerable::because("--port: there is no port 0".to_owned()));
    }
    let sni = question.sni.as_deref().map(str::to_ascii_lowercase);
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
    let unnamed = CanonicalHost::parse("unnamed").map_err(|error| Unanswerable::because(error.to_string()))?;
    let given = Given(question.http.as_ref().map_or(&[], |asked| &asked.headers));
    let request = Request {
        peer: caller.id.as_ref(),
        peer_labels: known(caller.labels.as_ref()),
        peer_namespace_labels: known(caller.namespace_labels),
        source_ip: question.source_ip,
        remote_ip: question.source_ip,
        destination_ip: question.destination_ip,
        port,
        sni: sni.as_deref(),
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
    if http.is_none()
        && let Some(answered) = no_bytes(model, &called, &pools, port)
    {
        return Ok(simple(answered.0, answered.1));
    }
    let mut answer = pools.explain(&request, mode);
    if in_clear {
        answer.because = format!("{} ({}: nobody has an identity there)", answer.because, door.says);
    }
    Ok(answer)
}

/// What is said of a stream of bytes where HTTP is expected: `None`, nothing.
fn no_bytes(model: &Model, called: &Called<'_>, pools: &Pools, port: u16) -> Option<(Option<Verdict>, String)> {
    let denied = |why: String| {
        let because = format!("denied: {why}, and what is not HTTP is refused there");
        Some((Some(Verdict::Deny), because))
    };
    match called.protocol(port) {
        Protocol::Tcp => return None,
        Protocol::Http1 | Protocol::Http2 => return denied(format!("port {port} is declared HTTP")),
        Protocol::Detect if pools.closed.needs_http(port) => {
            return denied(format!("rules for port {port} read HTTP"));
        }
        Protocol::Detect => {}
    }
    let mut doubtful = None;
    for document in &model.authentications {
        if document.foreign_target || !called.is_in_scope_of(model, &document.namespace) {
            continue;
        }
        let shown = || format!("RequestAuthentication {}/{}", document.namespace, document.name);
        match called.matches(&document.selector) {
            Some(true) => return denied(format!("{} looks for tokens", shown())),
            Some(false) => {}
            None => doubtful = Some(shown()),
        }
    }
    let says = |shown| format!("undecided: whether {shown} selects the workload hangs on a label that is not told");
    doubtful.map(|shown| (None, says(shown)))
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
        let wrong = |what: &str, text: &str, why: String| {
            Unanswerable::because(format!("the {what} `{text}` is refused: {why}"))
        };
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
            user: user.map_err(|error| Unanswerable::because(format!("the claims: {error}")))?,
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
            let id =
                SpiffeId::parse(&question.from).map_err(|error| Unanswerable::because(format!("--from: {error}")))?;
            // Its labels are known if the documents know just one with this ID.
            let only = match model.with_id(&id)[..] {
                [only] => Some(only),
                _ => None,
            };
            (id, only)
        }
        Some(name) => {
            let workload = described(model, "--from", name)?;
            let unknown = || Unanswerable::because(format!("--from: nobody knows the identity of {}", question.from));
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
            let id = SpiffeId::parse(&question.to).map_err(|error| Unanswerable::because(format!("--to: {error}")))?;
            match model.with_id(&id)[..] {
                [only] => Ok(of(only)),
                [one, ..] if told.is_empty() => {
                    let example = &one.document;
                    Err(Unanswerable::because(format!(
                        "--to: several workloads have this identity: name one, such as {}/{}",
                        example.namespace, example.name
                    )))
                }
                _ => question.called_namespace().map(undescribed),
            }
        }
    }
}

fn described<'m>(
    model: &'m Model,
    option: &str,
    (namespace, name): (&str, &str),
) -> Result<&'m Workload, Unanswerable> {
    model.workload(namespace, name).ok_or_else(|| {
        let all = model.workloads.keys().map(|(namespace, name)| (&**namespace, &**name));
        Unanswerable::undescribed(option, (namespace, name), all)
    })
}

impl Called<'_> {
    /// Whether a policy selects it; `None` if that hangs on a label that is not told.
    fn selected_by(&self, model: &Model, policy: &AuthorizationPolicy) -> Option<bool> {
        let in_scope = !policy.foreign_target && self.is_in_scope_of(model, &policy.namespace);
        if in_scope {
            self.matches(&policy.selector)
        } else {
            Some(false)
        }
    }

    fn is_in_scope_of(&self, model: &Model, namespace: &str) -> bool {
        namespace == self.namespace || namespace == model.root_namespace
    }

    /// `None`: that hangs on a label that is not told.
    fn matches(&self, selector: &BTreeMap<String, String>) -> Option<bool> {
        let mut told = true;
        for (key, wanted) in selector {
            match self.labels.get(key) {
                Some(value) if value != wanted => return Some(false),
                Some(_) => {}
                None if self.all_labels => return Some(false),
                None => told = false,
            }
        }
        told.then_some(true)
    }

    /// As the port is declared.
    fn protocol(&self, port: u16) -> Protocol {
        let mut ports = self.workload.iter().flat_map(|workload| &workload.ports);
        let known = ports.find(|known| known.number == port);
        known.map_or(Protocol::Detect, |known| known.protocol)
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
        let compiled = |policies| match &model.home {
            Some(home) => Compiled::at_home_in(home, policies),
            None => Compiled::new(policies),
        };
        Self {
            closed: compiled(closed),
            open: compiled(open),
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
