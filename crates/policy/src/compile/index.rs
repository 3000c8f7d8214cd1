//! Finds the clauses that could match: by identity, then by path.

use hashbrown::HashMap;
use postern_identity::SpiffeId;

use super::clause::{Clause, without_scheme};
use super::trie::Trie;
use crate::{Action, Request, Source, StringMatch, turns};

/// A bucket up to this size is looked through as it is; a trie would cost more than it saves.
const SMALL: usize = 6;

/// The clauses of one action.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    action: Action,
    clauses: Vec<Clause>,
    by_principal: HashMap<Box<str>, Bucket>,
    /// By `/ns/<namespace>/sa/<account>`.
    by_account: HashMap<Box<str>, Bucket>,
    by_namespace: HashMap<Box<str>, Bucket>,
    anyone: Bucket,
}

/// Clause numbers, ascending; those with only exact and prefix paths in a trie.
#[derive(Debug, Clone, Default)]
struct Bucket {
    rest: Vec<u32>,
    by_path: Trie,
}

impl Default for Index {
    fn default() -> Self {
        Self::new(Vec::new(), Action::Allow)
    }
}

impl Index {
    pub(super) fn new(clauses: Vec<Clause>, action: Action) -> Self {
        let mut index = Self {
            action,
            clauses: Vec::new(),
            by_principal: HashMap::new(),
            by_account: HashMap::new(),
            by_namespace: HashMap::new(),
            anyone: Bucket::default(),
        };
        index.make_room_for(&clauses);
        for (number, clause) in clauses.iter().enumerate() {
            turns::next();
            index.place(u32::try_from(number).unwrap_or(u32::MAX), clause);
        }
        index.clauses = clauses;
        for map in [&mut index.by_principal, &mut index.by_account, &mut index.by_namespace] {
            fit(map);
        }
        let Self {
            by_principal,
            by_account,
            by_namespace,
            anyone,
            clauses,
            ..
        } = &mut index;
        let named = by_principal
            .values_mut()
            .chain(by_account.values_mut())
            .chain(by_namespace.values_mut());
        named.chain([anyone]).for_each(|bucket| bucket.sort_by_path(clauses));
        index
    }

    /// A map that grows moves all that it has at once, milliseconds of it.
    fn make_room_for(&mut self, clauses: &[Clause]) {
        // Those of one source, an operation each, follow each other.
        let mut sources: Vec<&Source> = clauses.iter().map(|clause| &*clause.source).collect();
        sources.dedup_by(|one, other| std::ptr::eq(*one, *other));
        let names = |of: fn(&Source) -> &[StringMatch]| {
            let of_source = |source: &&Source| {
                turns::next();
                all_exact(of(source)).map_or(0, Iterator::count)
            };
            sources.iter().map(of_source).sum()
        };
        self.by_principal.reserve(names(|source| &source.principals));
        self.by_account.reserve(names(|source| &source.service_accounts));
        self.by_namespace.reserve(names(|source| &source.namespaces));
    }

    fn place(&mut self, number: u32, clause: &Clause) {
        let source = &clause.source;
        if let Some(names) = all_exact(&source.principals) {
            names.for_each(|name| push(&mut self.by_principal, name.into(), number));
        } else if let Some(names) = all_exact(&source.service_accounts) {
            for name in names {
                // The decoder gives each account its namespace.
                let (namespace, account) = name.split_once('/').unwrap_or_default();
                push(
                    &mut self.by_account,
                    format!("/ns/{namespace}/sa/{account}").into(),
                    number,
                );
            }
        } else if let Some(names) = all_exact(&source.namespaces) {
            names.for_each(|name| push(&mut self.by_namespace, name.into(), number));
        } else {
            self.anyone.rest.push(number);
        }
    }

    pub(super) fn free(self) {
        let named = [self.by_principal, self.by_account, self.by_namespace];
        let named = named.into_iter().flat_map(HashMap::into_values);
        named.chain([self.anyone]).for_each(Bucket::free);
        turns::free(self.clauses);
    }

    pub(crate) fn clauses(&self) -> &[Clause] {
        &self.clauses
    }

    /// The first clause that matches. No allocation.
    pub(crate) fn first_match(&self, request: &Request<'_>) -> Option<&Clause> {
        let mut best = u32::MAX;
        self.anyone.find(self, request, &mut best);
        if let Some(id) = request.peer {
            self.look_up(id, request, &mut best);
        }
        self.clauses.get(usize::try_from(best).ok()?)
    }

    fn look_up(&self, id: &SpiffeId, request: &Request<'_>, best: &mut u32) {
        if let Some(bucket) = self.by_principal.get(without_scheme(id)) {
            bucket.find(self, request, best);
        }
        if let Some((namespace, _)) = id.workload() {
            if let Some(bucket) = self.by_account.get(id.path()) {
                bucket.find(self, request, best);
            }
            if let Some(bucket) = self.by_namespace.get(namespace) {
                bucket.find(self, request, best);
            }
        }
    }
}

impl Bucket {
    fn sort_by_path(&mut self, clauses: &[Clause]) {
        if self.rest.len() <= SMALL {
            return;
        }
        let all = std::mem::take(&mut self.rest);
        for number in all {
            turns::next();
            let paths = clauses
                .get(number as usize)
                .map_or(&[][..], |clause| &clause.operation.paths);
            let simple = |path: &StringMatch| matches!(path, StringMatch::Exact(_) | StringMatch::Prefix(_));
            if paths.is_empty() || !paths.iter().all(simple) {
                self.rest.push(number);
                continue;
            }
            for path in paths {
                match path {
                    StringMatch::Exact(text) => self.by_path.insert_exact(text, number),
                    StringMatch::Prefix(text) => self.by_path.insert_prefix(text, number),
                    StringMatch::Suffix(_)
                    | StringMatch::Present
                    | StringMatch::Wildcard(_)
                    | StringMatch::Template(_) => {}
                }
            }
        }
    }

    fn free(self) {
        turns::next();
        self.by_path.free();
    }

    fn find(&self, index: &Index, request: &Request<'_>, best: &mut u32) {
        search(&self.rest, index, request, best);
        match request.http {
            Some(http) => {
                self.by_path
                    .walk(http.path.as_str(), &mut |numbers| search(numbers, index, request, best));
            }
            // Opaque: any but an ALLOW rule loses its HTTP fields, so each clause may match whatever its paths are.
            None if index.action != Action::Allow => {
                self.by_path
                    .walk_all(&mut |numbers| search(numbers, index, request, best));
            }
            None => {}
        }
    }
}

/// Numbers ascend: the first match is the best of the list, and nothing past the best so far is looked at.
fn search(numbers: &[u32], index: &Index, request: &Request<'_>, best: &mut u32) {
    for &number in numbers {
        if number >= *best {
            return;
        }
        if index
            .clauses
            .get(number as usize)
            .is_some_and(|clause| clause.matches(request, index.action))
        {
            *best = number;
            return;
        }
    }
}

/// Gives back the room of names that came again and again.
fn fit(map: &mut HashMap<Box<str>, Bucket>) {
    if map.capacity() / 2 <= map.len() {
        return;
    }
    let mut fitting = HashMap::with_capacity(map.len());
    for (name, bucket) in map.drain() {
        turns::next();
        fitting.insert(name, bucket);
    }
    *map = fitting;
}

fn push(map: &mut HashMap<Box<str>, Bucket>, key: Box<str>, number: u32) {
    let bucket = map.entry(key).or_default();
    if bucket.rest.last() != Some(&number) {
        bucket.rest.push(number);
    }
}

/// The texts, if there are any and all are exact.
fn all_exact(values: &[StringMatch]) -> Option<impl Iterator<Item = &str>> {
    let all = !values.is_empty() && values.iter().all(|value| exact(value).is_some());
    all.then(|| values.iter().filter_map(exact))
}

fn exact(value: &StringMatch) -> Option<&str> {
    match value {
        StringMatch::Exact(text) => Some(text),
        StringMatch::Prefix(_)
        | StringMatch::Suffix(_)
        | StringMatch::Present
        | StringMatch::Wildcard(_)
        | StringMatch::Template(_) => None,
    }
}
