//! Columns for people: `meta.k8s.io/v1 Table`, as `kubectl get` asks for them.

use serde::Serialize;
use serde_json::{Value, json};

use super::objects::{Direction, Edge, End, Identity, Object, Proxy, Replica};
use super::routes::Include;

/// A column: its heading, its type, whether only `-o wide` shows it, and what it means.
pub(super) struct Column {
    name: &'static str,
    kind: &'static str,
    wide: bool,
    description: &'static str,
}

const fn text(name: &'static str, description: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        wide: false,
        description,
    }
}

const fn count(name: &'static str, description: &'static str) -> Column {
    Column {
        name,
        kind: "integer",
        wide: false,
        description,
    }
}

impl Column {
    const fn wide(mut self) -> Self {
        self.wide = true;
        self
    }
}

/// What a row of this kind says; as many cells as there are columns.
pub(super) trait Row {
    const COLUMNS: &'static [Column];
    fn cells(&self, name: &str) -> Vec<Value>;
}

pub(super) fn table<T: Row + Serialize>(objects: &[Object<T>], include: Include) -> Value {
    let columns: Vec<Value> = T::COLUMNS
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": if column.name == "Name" { "name" } else { "" },
                "description": column.description,
                "priority": i32::from(column.wide),
            })
        })
        .collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells = object.body.cells(object.metadata.name.as_deref().unwrap_or_default());
            let shown = match include {
                Include::None => Value::Null,
                Include::Metadata => json!({
                    "kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": object.metadata,
                }),
                Include::Object => json!(object),
            };
            json!({ "cells": cells, "object": shown })
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": columns,
        "rows": rows,
    })
}

impl Row for Edge {
    const COLUMNS: &'static [Column] = &[
        text("Source", "Who calls: namespace and service account of its SPIFFE ID"),
        text(
            "Destination",
            "Who is called, or the Service that was asked for outside of the mesh",
        ),
        count("Port", "The port that was called"),
        text("Secured", "Mutual TLS with two verified identities"),
        count("Allowed", "Requests and streams that were let in"),
        count("Denied", "Requests and streams that policy refused"),
        text("Rate", "Allowed per second, over about half a minute"),
        text("Denied/s", "Denied per second, over about half a minute"),
        text("Protocol", "As the proxy understood it").wide(),
        text("Seen", "By the called side (inbound) or by the caller (outbound)").wide(),
        count("Failed", "Allowed, and came to nothing").wide(),
        count("Would-Deny", "Let in, and would not be in protect").wide(),
        text("Source-Id", "SPIFFE ID of who calls").wide(),
        text("Destination-Id", "SPIFFE ID of who is called").wide(),
        text("Name", "Of this edge").wide(),
    ];

    fn cells(&self, name: &str) -> Vec<Value> {
        let destination = match (&self.destination.service_account, &*self.service) {
            (None, service) if !service.is_empty() => service.to_owned(),
            _ => short(&self.destination),
        };
        vec![
            json!(short(&self.source)),
            json!(destination),
            json!(self.port),
            json!(if self.secured { "mTLS" } else { "no" }),
            json!(self.allowed),
            json!(self.denied),
            json!(rate(self.allowed_per_second)),
            json!(rate(self.denied_per_second)),
            json!(self.protocol),
            json!(match self.direction {
                Direction::Inbound => "inbound",
                Direction::Outbound => "outbound",
            }),
            json!(self.failed),
            json!(self.would_deny),
            json!(self.source.spiffe_id),
            json!(self.destination.spiffe_id),
            json!(name),
        ]
    }
}

impl Row for Identity {
    const COLUMNS: &'static [Column] = &[
        text("Name", "The pod"),
        text("Spiffe-Id", "Who it is"),
        text("Not-After", "Last instant of its certificate"),
        count("Renewals", "Since its proxy started"),
        count("Failures", "Renewals that failed since its proxy started"),
        text("Serial", "Of its certificate").wide(),
        text("Instance", "The pod's UID, as the certificate has it").wide(),
        text("Last-Error", "Why the last renewal failed").wide(),
    ];

    fn cells(&self, name: &str) -> Vec<Value> {
        vec![
            json!(name),
            json!(self.spiffe_id),
            json!(self.not_after.as_deref().unwrap_or("<none>")),
            json!(self.renewals),
            json!(self.renewal_failures),
            json!(self.serial),
            json!(self.instance),
            json!(self.last_renewal_error),
        ]
    }
}

impl Row for Proxy {
    const COLUMNS: &'static [Column] = &[
        text("Name", "The pod"),
        text("Ready", "Connected, and everything of control's is in force"),
        text("Mode", "discover, monitor or protect"),
        text("Version", "Of the proxy"),
        text("Policies", "Are its policies the newest"),
        text("Bundle", "Is its trust bundle the newest"),
        text("Reason", "Why it is not ready"),
        text("Replica", "The replica of control that serves it").wide(),
        text("Spiffe-Id", "Who it is").wide(),
    ];

    fn cells(&self, name: &str) -> Vec<Value> {
        let current = |current| if current { "current" } else { "behind" };
        vec![
            json!(name),
            json!(self.ready.to_string()),
            json!(self.mode),
            json!(self.version),
            json!(current(self.policy_current)),
            json!(current(self.bundle_current)),
            json!(self.reason),
            json!(self.replica),
            json!(self.spiffe_id),
        ]
    }
}

impl Row for Replica {
    const COLUMNS: &'static [Column] = &[
        text("Name", "The process"),
        text("Version", "Of control"),
        count("Proxies", "Connected to it"),
        text("CA", "Is the CA's stream open"),
        count("Bundle", "Sequence of its trust bundle"),
        count("Issuer", "Epoch of the issuing certificate"),
        count("Faults", "Between documents, and documents that are refused"),
        text("Not-After", "Last instant of its own certificate").wide(),
        count("Policies", "Version that last changed a policy").wide(),
    ];

    fn cells(&self, name: &str) -> Vec<Value> {
        vec![
            json!(name),
            json!(self.version),
            json!(self.connected_proxies),
            json!(if self.ca_connected { "connected" } else { "away" }),
            json!(self.bundle_sequence),
            json!(self.issuer_epoch),
            json!(self.conditions.len() + self.refused_documents.len()),
            json!(self.not_after.as_deref().unwrap_or("<none>")),
            json!(self.policy_version),
        ]
    }
}

/// `shop/cart`: what tells identities of one trust domain apart.
fn short(end: &End) -> String {
    match (&end.namespace, &end.service_account) {
        (Some(namespace), Some(account)) => format!("{namespace}/{account}"),
        _ if end.spiffe_id.is_empty() => "<anonymous>".to_owned(),
        _ => end.spiffe_id.clone(),
    }
}

fn rate(per_second: f64) -> String {
    format!("{per_second:.1}")
}
