//! Files instead of a running control.

use std::collections::BTreeMap;
use std::path::PathBuf;

use postern_authorizer::document::LOOKS_AT_REGO;
use postern_policy::AuthorizationPolicy;
use postern_policy::authorizer::{Asks, Authorizer};
use postern_policy::document::{DocumentError, Object, Place, parse_those};
use postern_policy::lint::{Code, Finding, Level, opaque_port};

use super::{Answer, Question, Unanswerable, answer};
use crate::Mesh;
use crate::directory::scan::{Found, scan};
use crate::documents::{Document, KINDS, decode};
use crate::model::{Fault, FaultKind, Model, Workload};
use crate::protocol::Protocol;
use crate::source::Load;

/// The documents of files.
#[derive(Debug)]
pub struct Offline {
    model: Model,
}

/// Files that cannot be read as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct OfflineError(pub Vec<DocumentError>);

impl Offline {
    /// Reads files, and the YAML files below directories. What is no kind of ours (a Deployment) is passed over.
    pub fn read(paths: &[PathBuf], mesh: &Mesh) -> Result<Self, OfflineError> {
        let (read, errors) = Self::read_what_can_be(paths, mesh);
        if errors.is_empty() {
            Ok(read)
        } else {
            Err(OfflineError(errors))
        }
    }

    /// The same, with what is wrong beside what is not.
    #[must_use]
    pub fn read_what_can_be(paths: &[PathBuf], mesh: &Mesh) -> (Self, Vec<DocumentError>) {
        let (objects, mut errors) = objects(paths);
        let mut load = Load::default();
        let mut keys = BTreeMap::new();
        for object in &objects {
            let document = match decode(object, &mesh.trust_domain) {
                Ok(document) => document,
                Err(found) => {
                    errors.extend(found);
                    continue;
                }
            };
            match keys.insert(document.key(), document.place().clone()) {
                Some(first) => {
                    let what = format!("{} is defined already, at {first}", document.key());
                    errors.push(object.error("metadata.name", what));
                }
                None => load.documents.push(document),
            }
        }
        load.documents.sort_by_cached_key(Document::key);
        let model = Model::build(&mesh.root_namespace, &mesh.aliases(), &load);
        (Self { model }, errors)
    }

    /// What is valid and yet hardly what was meant.
    #[must_use]
    pub fn lint(&self) -> Vec<Finding> {
        let model = &self.model;
        let mut findings = postern_policy::lint::lint(&model.policies, &model.root_namespace, model.home.as_ref());
        for workload in model.workloads.values() {
            let selected: Vec<&AuthorizationPolicy> = model.policies_of(workload).collect();
            let name = format!("{}/{}", workload.document.namespace, workload.document.name);
            for port in workload.ports.iter().filter(|port| port.protocol == Protocol::Tcp) {
                findings.extend(opaque_port(&selected, &name, port.number));
            }
        }
        findings.extend(model.unasked().map(|(policy, why)| Finding {
            code: Code::NoProvider,
            level: Level::Warning,
            place: policy.place.clone(),
            policy: format!("{}/{}", policy.namespace, policy.name),
            says: why,
        }));
        let rego = |asked: &&Authorizer| matches!(asked.asks, Asks::Rego(_));
        let unread = model.authorizers().filter(rego).filter(|_| !LOOKS_AT_REGO);
        findings.extend(unread.map(|authorizer| Finding {
            code: Code::UnreadRego,
            level: Level::Note,
            place: authorizer.place.clone(),
            policy: authorizer.key(),
            says: "this build of postern does not look at Rego (feature `rego`)".to_owned(),
        }));
        // Where no workload is described nobody knows whom a policy selects.
        for policy in model.policies.iter().filter(|policy| !policy.foreign_target) {
            let described = |workload: &Workload| {
                workload.document.namespace == policy.namespace || policy.namespace == model.root_namespace
            };
            let mut nearby = model
                .workloads
                .values()
                .filter(|workload| described(workload))
                .peekable();
            let selects = |workload: &Workload| {
                let document = &workload.document;
                policy.selects(&model.root_namespace, &document.namespace, &document.labels)
            };
            if nearby.peek().is_some() && !nearby.any(|workload| selects(workload)) {
                findings.push(Finding {
                    code: Code::AppliesToNothing,
                    level: Level::Note,
                    place: policy.place.clone(),
                    policy: format!("{}/{}", policy.namespace, policy.name),
                    says: "it selects none of the workloads that are described".to_owned(),
                });
            }
        }
        findings.extend(self.doors());
        findings
    }

    /// PeerAuthentications that do not do what they say.
    fn doors(&self) -> Vec<Finding> {
        let model = &self.model;
        let faults = model.idle_doors().into_iter();
        // Where no workload is described nobody knows whom a document selects.
        let known = faults.filter(|fault| fault.kind == FaultKind::NotInForce || !model.workloads.is_empty());
        let finding = |fault: Fault<'_>| {
            let (code, level) = match fault.kind {
                FaultKind::Idle => (Code::AppliesToNothing, Level::Note),
                FaultKind::NotInForce => (Code::NotInForce, Level::Warning),
            };
            Finding {
                code,
                level,
                place: fault.document.place.clone(),
                policy: format!("{}/{}", fault.document.namespace, fault.document.name),
                says: format!("it {}", fault.says),
            }
        };
        known.map(finding).collect()
    }

    /// Answers a question over them.
    pub fn answer(&self, question: &Question) -> Result<Answer, Unanswerable> {
        answer(&self.model, question)
    }
}

/// The objects of all files that policy is about, and what is wrong with the files.
fn objects(paths: &[PathBuf]) -> (Vec<Object>, Vec<DocumentError>) {
    let (mut objects, mut errors) = (Vec::new(), Vec::new());
    for (name, text) in files(paths, &mut errors) {
        match parse_those(&name, &text, is_ours) {
            Ok(found) => objects.extend(found),
            Err(found) => errors.extend(found),
        }
    }
    (objects, errors)
}

/// One of our kinds under another's group is a mistake that is told.
fn is_ours(api_version: &str, kind: &str) -> bool {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    matches!(group, "postern.dev" | "security.istio.io")
        || KINDS.iter().any(|(_, ours)| *ours == kind && kind != "Service")
}

/// Names and texts.
fn files(paths: &[PathBuf], errors: &mut Vec<DocumentError>) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for path in paths {
        let shown = path.display().to_string();
        if path.is_dir() {
            let found = scan(path);
            errors.extend(found.errors.into_iter().map(|why| of_file(&shown, why)));
            for (name, found) in found.files {
                let name = path.join(&*name).display().to_string();
                match found {
                    Found::Text(text) => files.push((name, text)),
                    Found::Unreadable(why) => errors.push(of_file(&name, why)),
                }
            }
            continue;
        }
        match std::fs::read_to_string(path) {
            Ok(text) => files.push((shown, text)),
            Err(error) => errors.push(of_file(&shown, error.to_string())),
        }
    }
    files
}

fn of_file(name: &str, what: String) -> DocumentError {
    DocumentError {
        place: Place {
            file: name.into(),
            ..Place::default()
        },
        path: String::new(),
        what,
        nearest: None,
    }
}
