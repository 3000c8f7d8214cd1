//! What the port takes, before any rule is asked.

use std::sync::Arc;

use postern_policy::peer_authentication::{Effective, Scope, Workload, effective};
use postern_policy::{Mode, MtlsMode, PeerAuthentication};

use super::Called;
use crate::documents::Capture;
use crate::model::Model;

/// What is taken, and why.
pub(super) struct Door {
    pub(super) taken: MtlsMode,
    pub(super) says: String,
}

/// `port` is 0 if it is not told. The error says what it hangs on.
pub(super) fn of(model: &Model, called: &Called<'_>, mode: Mode, port: u16) -> Result<Door, String> {
    let foreign = called
        .workload
        .is_some_and(|workload| workload.document.capture == Capture::Foreign);
    // It has no proxy of ours, which could go by them.
    let all: Vec<&PeerAuthentication> = match foreign {
        true => Vec::new(),
        false => model.peer_authentications.iter().map(Arc::as_ref).collect(),
    };
    let told = Workload {
        root_namespace: &model.root_namespace,
        namespace: called.namespace,
        labels: &called.labels,
        mode,
    };
    let holds = effective(all.iter().copied(), &told, port);
    for document in all.iter().copied() {
        let shown = || format!("{}/{} ({})", document.namespace, document.name, document.place);
        let mut labels = called.labels.clone();
        if !called.all_labels && document.scope(&model.root_namespace) == Scope::Workload {
            // As if it were selected, unless what is told says otherwise.
            for (key, value) in &document.selector {
                labels.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        let maybe = Workload {
            labels: &labels,
            ..told
        };
        if effective(all.iter().copied(), &maybe, port).mode != holds.mode {
            let label = document
                .selector
                .iter()
                .find(|(key, _)| !called.labels.contains_key(*key));
            let label = label.map_or_else(String::new, |(key, value)| format!(" {key}={value}"));
            return Err(format!(
                "undecided: whether {} selects the workload hangs on its label{label}",
                shown()
            ));
        }
        let selects = document.selects(&model.root_namespace, called.namespace, &labels);
        let differs = |of: u16| effective(all.iter().copied(), &maybe, of).mode != holds.mode;
        if port == 0 && selects && document.ports.keys().any(|of| differs(*of)) {
            return Err(format!("undecided: the port is not told, and {} looks at it", shown()));
        }
    }
    Ok(Door {
        taken: holds.mode,
        says: says(&holds, mode, port),
    })
}

fn says(holds: &Effective<'_>, mode: Mode, port: u16) -> String {
    let at = match port {
        0 => String::new(),
        port => format!(" on port {port}"),
    };
    let by = holds
        .by
        .map(|by| format!("{}/{} ({})", by.namespace, by.name, by.place));
    match (holds.mode, by) {
        (MtlsMode::Strict, None) => format!("in {} nobody is served without mutual TLS", mode.as_str()),
        (MtlsMode::Strict, Some(by)) => format!("{by} takes mutual TLS alone{at}"),
        (MtlsMode::Disable, Some(by)) => format!("{by} takes plaintext alone{at}"),
        (MtlsMode::Permissive | MtlsMode::Disable, _) => "mutual TLS and plaintext are taken".to_owned(),
    }
}
