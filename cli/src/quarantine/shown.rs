//! The list, for people and for programs.

use std::time::{Duration, UNIX_EPOCH};

use postern_api::ca::v1 as pb;
use postern_api::ca::v1::quarantined::Subject;
use serde_json::{Value, json};

use super::subject_of;

pub(super) fn text(state: &pb::QuarantineState) -> String {
    if state.entries.is_empty() {
        return "Nobody is in quarantine.\n".to_owned();
    }
    let mut text = String::new();
    for entry in &state.entries {
        let subject = subject_of(entry).map_or_else(
            || "somebody whom this version cannot name".to_owned(),
            |s| s.to_string(),
        );
        let by = if entry.by.is_empty() { "" } else { ", by " };
        let reason = if entry.reason.is_empty() { "" } else { ": " };
        text.push_str(&format!(
            "{subject}\n  since {}{by}{}{reason}{}\n",
            time(entry),
            entry.by,
            entry.reason
        ));
    }
    text
}

pub(super) fn json(state: &pb::QuarantineState) -> Value {
    let entries = state.entries.iter().map(|entry| {
        let (kind, spiffe_id, instance, serial) = match &entry.subject {
            Some(Subject::SpiffeId(id)) => ("id", Some(id), None, None),
            Some(Subject::Instance(of)) => {
                let id = Some(&of.spiffe_id).filter(|id| !id.is_empty());
                ("instance", id, Some(&of.instance), None)
            }
            Some(Subject::Serial(serial)) => ("serial", None, None, Some(serial)),
            None => ("unknown", None, None, None),
        };
        json!({
            "kind": kind,
            "spiffe_id": spiffe_id,
            "instance": instance,
            "serial": serial,
            "reason": entry.reason,
            "by": entry.by,
            "since": time(entry),
        })
    });
    json!({ "version": state.version, "entries": entries.collect::<Vec<_>>() })
}

fn time(entry: &pb::Quarantined) -> String {
    let since = UNIX_EPOCH + Duration::from_secs(u64::try_from(entry.since_unix).unwrap_or_default());
    humantime::format_rfc3339_seconds(since).to_string()
}
