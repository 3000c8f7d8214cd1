//! A JSON Patch in the making. Operations are made one by one, so that a reader of an audit log sees what was done, and
//! a list or map that is not there yet is added whole.

use json_patch::jsonptr::{PointerBuf, Token};
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation};
use serde_json::{Map, Value, json};

/// Operations in order.
#[derive(Default)]
pub(crate) struct Operations(Vec<PatchOperation>);

/// A step of a path: a name or an index.
pub(crate) enum Step<'a> {
    Name(&'a str),
    At(usize),
}

impl<'a> From<&'a str> for Step<'a> {
    fn from(name: &'a str) -> Self {
        Self::Name(name)
    }
}

impl From<usize> for Step<'_> {
    fn from(index: usize) -> Self {
        Self::At(index)
    }
}

impl Operations {
    pub(crate) fn add(&mut self, path: &[Step<'_>], value: Value) {
        let path = pointer(path);
        self.0.push(PatchOperation::Add(AddOperation { path, value }));
    }

    pub(crate) fn replace(&mut self, path: &[Step<'_>], value: Value) {
        let path = pointer(path);
        self.0.push(PatchOperation::Replace(ReplaceOperation { path, value }));
    }

    pub(crate) fn remove(&mut self, path: &[Step<'_>]) {
        let path = pointer(path);
        self.0.push(PatchOperation::Remove(RemoveOperation { path }));
    }

    /// Sets entries of `metadata.annotations`, where they are not so already.
    pub(crate) fn annotate(&mut self, pod: &Value, entries: impl IntoIterator<Item = (String, String)>) {
        let there = pod["metadata"]["annotations"].as_object();
        let wanted = |entry: &(String, String)| {
            there.and_then(|there| there.get(&entry.0)).and_then(Value::as_str) != Some(&entry.1)
        };
        let entries: Vec<_> = entries.into_iter().filter(wanted).collect();
        if entries.is_empty() {
            return;
        }
        if pod["metadata"].is_null() {
            self.add(&["metadata".into()], json!({}));
        }
        if there.is_none() {
            self.add(&["metadata".into(), "annotations".into()], Value::Object(Map::new()));
        }
        for (key, value) in entries {
            self.add(&["metadata".into(), "annotations".into(), (&*key).into()], value.into());
        }
    }

    pub(crate) fn done(self) -> Patch {
        Patch(self.0)
    }
}

fn pointer(path: &[Step<'_>]) -> PointerBuf {
    PointerBuf::from_tokens(path.iter().map(|step| match step {
        Step::Name(name) => Token::new(*name),
        Step::At(index) => Token::from(*index),
    }))
}
