//! `v1 Namespace`: its labels are what we read.

use std::collections::BTreeMap;

use postern_policy::Mode;
use postern_policy::document::{DocumentError, Fields, Object, Place};

use super::{ALLOW_LOOSENING, INJECT, MODE, check_ours, done, mode_label, one_of};

/// A namespace that a document describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Namespace {
    pub(crate) place: Place,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// `None`: the default, protect.
    pub(crate) mode: Option<Mode>,
    /// `postern.dev/inject`.
    pub(crate) inject: Option<bool>,
    /// May a workload be looser than its namespace?
    pub(crate) allow_loosening: bool,
}

impl Namespace {
    pub(crate) fn decode(object: &Object) -> Result<Self, Vec<DocumentError>> {
        let mut errors = Vec::new();
        if let Some(namespace) = &object.namespace {
            errors.push(object.error(
                "metadata.namespace",
                format!("a Namespace lies in no namespace, not in `{namespace}`"),
            ));
        }
        check_ours(
            object,
            "metadata.labels",
            object.labels.keys(),
            &[MODE, INJECT, ALLOW_LOOSENING],
            &mut errors,
        );
        check_ours(
            object,
            "metadata.annotations",
            object.annotations.keys(),
            &[ALLOW_LOOSENING],
            &mut errors,
        );
        if let Some(spec) = &object.spec {
            match Fields::of(spec, "spec") {
                Ok(mut fields) => {
                    // The API server writes it.
                    fields.take("finalizers");
                    fields.finish(&mut errors);
                }
                Err(error) => errors.push(error),
            }
        }
        let mode = mode_label(object, &mut errors);
        let label = |name: &str| object.labels.get(name);
        let inject_path = format!("metadata.labels[{INJECT}]");
        let inject = one_of(
            object,
            &inject_path,
            label(INJECT),
            ["enabled", "disabled"],
            &mut errors,
        );
        // As of a cluster's namespace: a label counts before an annotation.
        let mut says = |value| one_of(object, ALLOW_LOOSENING, value, ["true", "false"], &mut errors);
        let by_label = says(label(ALLOW_LOOSENING));
        let by_annotation = says(object.annotations.get(ALLOW_LOOSENING));
        let namespace = Self {
            place: object.place.clone(),
            name: object.name.clone(),
            labels: object.labels.clone(),
            mode,
            inject,
            allow_loosening: by_label.or(by_annotation) == Some(true),
        };
        done(namespace, errors)
    }
}
