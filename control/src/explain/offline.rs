//! Files instead of a running control.

use std::collections::BTreeMap;
use std::path::PathBuf;

use postern_identity::TrustDomain;
use postern_policy::document::{Object, parse_those};

use super::{Answer, Question, Unanswerable, answer};
use crate::directory::scan::{Found, scan};
use crate::documents::{Document, KINDS, decode};
use crate::model::Model;
use crate::source::Load;

/// The documents of files.
#[derive(Debug)]
pub struct Offline {
    model: Model,
}

/// Files that cannot be read as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct OfflineError(pub Vec<String>);

impl Offline {
    /// Reads files, and the YAML files below directories. What is no kind of ours (a Deployment) is passed over.
    pub fn read(paths: &[PathBuf], root_namespace: &str, trust_domain: &TrustDomain) -> Result<Self, OfflineError> {
        let (objects, mut errors) = objects(paths);
        let mut load = Load::default();
        let mut keys = BTreeMap::new();
        for object in &objects {
            let document = match decode(object, trust_domain) {
                Ok(document) => document,
                Err(found) => {
                    errors.extend(found.iter().map(ToString::to_string));
                    continue;
                }
            };
            let key = document.key();
            match keys.insert(document.key(), document.place().clone()) {
                Some(first) => errors.push(format!("{}: {key} is defined already, at {first}", document.place())),
                None => load.documents.push(document),
            }
        }
        load.documents.sort_by_cached_key(Document::key);
        if errors.is_empty() {
            Ok(Self {
                model: Model::build(root_namespace, &load),
            })
        } else {
            Err(OfflineError(errors))
        }
    }

    /// Answers a question over them.
    pub fn answer(&self, question: &Question) -> Result<Answer, Unanswerable> {
        answer(&self.model, question)
    }
}

/// The objects of all files that policy is about, and what is wrong with the files.
pub(super) fn objects(paths: &[PathBuf]) -> (Vec<Object>, Vec<String>) {
    let (mut objects, mut errors) = (Vec::new(), Vec::new());
    for (name, text) in files(paths, &mut errors) {
        match parse_those(&name, &text, is_ours) {
            Ok(found) => objects.extend(found),
            Err(found) => errors.extend(found.iter().map(ToString::to_string)),
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
fn files(paths: &[PathBuf], errors: &mut Vec<String>) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let found = scan(path);
            errors.extend(found.errors);
            for (name, found) in found.files {
                let name = path.join(&*name).display().to_string();
                match found {
                    Found::Text(text) => files.push((name, text)),
                    Found::Unreadable(why) => errors.push(format!("{name}: {why}")),
                }
            }
            continue;
        }
        match std::fs::read_to_string(path) {
            Ok(text) => files.push((path.display().to_string(), text)),
            Err(error) => errors.push(format!("{}: {error}", path.display())),
        }
    }
    files
}
