//! Namespaces: their labels under `postern.dev/`. A mistake in one must not make the namespace vanish: it is told, and the
//! stricter reading holds.

use k8s_openapi::api::core::v1::Namespace as Object;
use postern_policy::Mode;
use postern_policy::document::nearest;

use crate::documents::{ALLOW_LOOSENING, INJECT, MODE, Namespace, OURS};

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NamespaceItem {
    pub(super) document: Namespace,
    pub(super) conditions: Vec<String>,
}

impl NamespaceItem {
    pub(super) fn keep(object: Object) -> Self {
        let name = object.metadata.name.unwrap_or_default();
        let labels = object.metadata.labels.unwrap_or_default();
        let annotations = object.metadata.annotations.unwrap_or_default();
        let place = super::place("Namespace", "", &name);
        let mut conditions = Vec::new();
        let mut condition = |what: String| conditions.push(format!("{}: {what}", place.file));
        let known: [(_, &[&str]); 2] = [
            (&labels, &[MODE, INJECT, ALLOW_LOOSENING]),
            (&annotations, &[ALLOW_LOOSENING]),
        ];
        for (names, known) in known {
            let unknown = names.keys().filter(|name| name.starts_with(OURS));
            for name in unknown.filter(|name| !known.contains(&name.as_str())) {
                let nearest = nearest(name, known.iter().copied());
                let hint = nearest.map_or_else(String::new, |nearest| format!("; did you mean `{nearest}`?"));
                condition(format!("`{name}` means nothing here{hint}"));
            }
        }
        let mode = labels.get(MODE).map(|text| {
            Mode::parse(text).unwrap_or_else(|why| {
                condition(format!("label {MODE}: {why}; protect is assumed"));
                Mode::Protect
            })
        });
        let inject = match labels.get(INJECT).map(String::as_str) {
            None | Some("disabled") => false,
            Some("enabled") => true,
            Some(other) => {
                condition(format!(
                    "label {INJECT}: `{other}` is neither `enabled` nor `disabled`; nothing is injected, and what has no \
                     identity here is not reached from the mesh"
                ));
                true
            }
        };
        // As the injector reads it: what the one loosens the other must know of. A label counts before an annotation.
        let loosening = labels.get(ALLOW_LOOSENING).or_else(|| annotations.get(ALLOW_LOOSENING));
        let allow_loosening = match loosening.map(String::as_str) {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                condition(format!(
                    "{ALLOW_LOOSENING}: `{other}` is neither `true` nor `false`: it loosens nothing"
                ));
                false
            }
        };
        let document = Namespace {
            place: place.clone(),
            name,
            labels,
            mode,
            inject: Some(inject),
            allow_loosening,
        };
        Self { document, conditions }
    }
}
