//! The directory as it was read: per file the documents in force, and what is wrong with what stands there now.
//!
//! ```text
//! scan (files as bytes) -> Directory::take: parse, decode; a bad file keeps its last good documents
//!                       -> Directory::load: duplicates refused, everything that is in force, the bad files
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_identity::TrustDomain;
use postern_policy::Action;
use postern_policy::authentication::Content;
use postern_policy::document::{DocumentError, parse};
use postern_token::KeySet;

use crate::documents::{
    Document, Key, believe_nobody, decode, deny_what_it_selects, refuse_tokens_of_what_it_selects,
    strict_for_what_it_selects, with_files,
};
use crate::source::Load;

mod pieces;
pub(crate) mod scan;
pub(crate) mod watch;

use scan::{Found, Scan};

/// Editors and `mv` take a file away for a moment; only what stays away is gone.
pub(crate) const GONE_AFTER: Duration = Duration::from_millis(100);
/// Errors kept per file: the first ones tell what is wrong.
const MAX_ERRORS: usize = 20;

/// All files that were seen.
#[derive(Debug)]
pub(crate) struct Directory {
    trust_domain: TrustDomain,
    files: BTreeMap<Arc<str>, File>,
    key_files: BTreeMap<Arc<str>, KeyFile>,
    /// Faults of the scan as a whole.
    errors: Vec<String>,
    /// Which file a document in force came from: the newcomer of two is the one that is refused.
    owners: HashMap<Key, Arc<str>>,
}

#[derive(Debug, Default)]
struct File {
    /// What was read last.
    found: Option<Found>,
    /// The last good documents; before there were any, what must hold nevertheless.
    in_force: Vec<Document>,
    was_good: bool,
    errors: Vec<String>,
    missing_since: Option<Instant>,
}

impl Directory {
    pub(crate) fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            files: BTreeMap::new(),
            key_files: BTreeMap::new(),
            errors: Vec::new(),
            owners: HashMap::new(),
        }
    }

    /// Takes a scan; true if anything is different now.
    pub(crate) fn take(&mut self, scan: Scan, now: Instant) -> bool {
        let mut changed = self.errors != scan.errors;
        self.errors = scan.errors;
        for (name, file) in &mut self.files {
            if scan.files.contains_key(name) {
                changed |= file.missing_since.take().is_some();
            } else if scan.complete {
                file.missing_since.get_or_insert(now);
            }
        }
        let before = self.files.len();
        self.files
            .retain(|_, file| file.missing_since.is_none_or(|since| now < since + GONE_AFTER));
        changed |= self.files.len() != before;
        for (name, found) in scan.files {
            let file = self.files.entry(Arc::clone(&name)).or_default();
            if file.found.as_ref() != Some(&found) {
                file.read(&name, &found, &self.trust_domain);
                file.found = Some(found);
                changed = true;
            }
        }
        changed | self.take_key_files(scan.key_files, scan.complete)
    }

    /// One that is gone withdraws its keys; one that cannot be used any more leaves the last good ones.
    fn take_key_files(&mut self, found: BTreeMap<Arc<str>, Found>, complete: bool) -> bool {
        let before = self.key_files.len();
        self.key_files.retain(|name, _| !complete || found.contains_key(name));
        let mut changed = self.key_files.len() != before;
        for (name, found) in found {
            let file = self.key_files.entry(name).or_default();
            if file.found.as_ref() != Some(&found) {
                file.read(&found);
                file.found = Some(found);
                changed = true;
            }
        }
        changed
    }

    /// Is a file away that may yet come back?
    pub(crate) fn waits(&self) -> bool {
        self.files.values().any(|file| file.missing_since.is_some())
    }

    /// Everything in force.
    pub(crate) fn load(&mut self) -> Load {
        let mut load = Load::default();
        let mut owners: HashMap<Key, Arc<str>> = HashMap::new();
        let mut first = HashMap::new();
        let standing: HashSet<(Key, Arc<str>)> = self.owners.drain().collect();
        let claims: Vec<(&Arc<str>, &File, &Document)> = self
            .files
            .iter()
            .flat_map(|(name, file)| file.in_force.iter().map(move |document| (name, file, document)))
            .collect();
        // First those that were in force already, then by name.
        for holds in [true, false] {
            for (name, file, document) in &claims {
                let key = document.key();
                if standing.contains(&(key.clone(), Arc::clone(name))) != holds {
                    continue;
                }
                if let Some((place, missing)) = first.get(&key) {
                    // One that is away is about to be gone: the file was renamed, and nobody is at fault.
                    if !missing {
                        let error = format!("{}: {key} is defined already, at {place}", document.place());
                        let errors = load.bad.entry(name.to_string()).or_default();
                        errors.push(error);
                    }
                    // Of two documents that deny, neither is dropped.
                    match document {
                        Document::Authentication(second) if !missing => {
                            load.documents
                                .push(Document::Authentication(Arc::new(believe_nobody(second))));
                        }
                        other => load.documents.extend(what_denies((*other).clone())),
                    }
                    continue;
                }
                first.insert(key.clone(), (document.place().clone(), file.missing_since.is_some()));
                owners.insert(key, Arc::clone(name));
                load.documents.push((*document).clone());
            }
        }
        self.owners = owners;
        self.fill_in_keys(&mut load);
        // By name, not by the time of their coming: or else the same policies would be sent again as changed ones.
        load.documents.sort_by_cached_key(Document::key);
        for (name, file) in self.files.iter().filter(|(_, file)| !file.errors.is_empty()) {
            load.bad
                .entry(name.to_string())
                .or_default()
                .extend(file.errors.iter().cloned());
        }
        if !self.errors.is_empty() {
            load.bad
                .entry(".".to_owned())
                .or_default()
                .extend(self.errors.iter().cloned());
        }
        load
    }
}

impl Directory {
    /// Puts the key sets of files into the documents that name them. What is wrong with such a file is said of it.
    fn fill_in_keys(&self, load: &mut Load) {
        for document in &mut load.documents {
            let Document::Authentication(document) = document else {
                continue;
            };
            let filled = with_files(document, |name| {
                let file = self.key_files.get(name)?;
                if let Some(error) = &file.error {
                    load.bad.insert(name.to_owned(), vec![format!("{name}: {error}")]);
                }
                file.in_force.clone()
            });
            *document = filled;
        }
    }
}

/// A key set beside the documents.
#[derive(Debug, Default)]
struct KeyFile {
    found: Option<Found>,
    /// The last good one.
    in_force: Option<String>,
    error: Option<String>,
}

impl KeyFile {
    fn read(&mut self, found: &Found) {
        let read = match found {
            Found::Unreadable(why) => Err(why.clone()),
            Found::Text(text) => match KeySet::parse(text.as_bytes()) {
                Ok(set) if set.is_empty() => Err("no key of the set can be used".to_owned()),
                Ok(_) => Ok(text.clone()),
                Err(error) => Err(error.to_string()),
            },
        };
        match read {
            Ok(text) => (self.in_force, self.error) = (Some(text), None),
            Err(error) => self.error = Some(error),
        }
    }
}

/// What of a document takes something away, whatever else is there.
fn what_denies(document: Document) -> Option<Document> {
    match &document {
        Document::Policy(policy) => matches!(policy.action, Action::Deny | Action::Custom).then_some(document),
        Document::Authentication(it) => matches!(it.content, Content::Unreadable { .. }).then_some(document),
        Document::PeerAuthentication(peer) => peer.only_strict().map(|it| Document::PeerAuthentication(Arc::new(it))),
        // Without an Authorizer the policies that ask it deny.
        Document::Namespace(_) | Document::Service(_) | Document::Workload(_) | Document::Authorizer(_) => None,
    }
}

impl File {
    fn read(&mut self, name: &Arc<str>, found: &Found, trust_domain: &TrustDomain) {
        let text = match found {
            Found::Text(text) => text,
            Found::Unreadable(why) => {
                self.errors = vec![format!("{name}: {why}")];
                return;
            }
        };
        // A truncated file is one that somebody is about to write.
        if text.trim().is_empty() && !self.in_force.is_empty() {
            self.errors = vec![format!(
                "{name}:1:1: the file is empty; delete it to withdraw its documents"
            )];
            return;
        }
        let read = documents(name, text, trust_domain);
        self.errors = read.errors.iter().take(MAX_ERRORS).map(ToString::to_string).collect();
        if let Some(more) = read.errors.len().checked_sub(MAX_ERRORS).filter(|more| *more > 0) {
            self.errors.push(format!("{name}: and {more} more"));
        }
        if self.errors.is_empty() {
            self.in_force = read.documents;
            // One without documents is one that is about to be written: what comes then never was good.
            self.was_good = !self.in_force.is_empty();
        } else if !self.was_good {
            self.in_force = denials(read);
        }
    }
}

struct Read {
    documents: Vec<Document>,
    /// What stands in for documents that cannot be decoded and would deny.
    instead: Vec<Document>,
    errors: Vec<DocumentError>,
}

fn documents(name: &str, text: &str, trust_domain: &TrustDomain) -> Read {
    let mut read = Read {
        documents: Vec::new(),
        instead: Vec::new(),
        errors: Vec::new(),
    };
    let objects = match parse(name, text) {
        Ok(objects) => objects,
        Err(errors) => {
            read.errors = errors;
            // What stands beside the mistake is read by itself: it may deny.
            pieces::objects(name, text)
        }
    };
    let mut seen = HashMap::new();
    for object in &objects {
        match decode(object, trust_domain) {
            Ok(document) => {
                if let Some(first) = seen.insert(document.key(), object.place.clone()) {
                    let what = format!("{} is defined already, at {first}", document.key());
                    read.errors.push(object.error("metadata.name", what));
                }
                read.documents.push(document);
            }
            Err(errors) => {
                read.errors.extend(errors);
                read.instead.extend(deny_what_it_selects(object).map(Document::Policy));
                let refusing = refuse_tokens_of_what_it_selects(object).map(Arc::new);
                read.instead.extend(refusing.map(Document::Authentication));
                read.instead
                    .extend(strict_for_what_it_selects(object).map(Document::PeerAuthentication));
            }
        }
    }
    read
}

/// Of a file that was never good only what denies is in force: its own denials, and one for each document that nobody
/// understands and that might deny. Whose tokens its documents believe is as doubtful as the file.
fn denials(read: Read) -> Vec<Document> {
    let own = read.documents.into_iter().map(|document| match document {
        Document::Authentication(document) => Document::Authentication(Arc::new(believe_nobody(&document))),
        other => other,
    });
    own.filter_map(what_denies).chain(read.instead).collect()
}

#[cfg(test)]
mod tests;
