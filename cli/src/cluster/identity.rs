//! `postern identity`: which certificate each proxy has.

use std::process::ExitCode;

use postern_control::api::objects::{API_VERSION, Identity, Object, Resource};

use super::check::span;
use super::columns::{Align, columns};
use super::connect::ClusterArgs;
use super::{CommandError, Output, Scope, view};

/// Arguments of `postern identity`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One pod, in full
    #[arg(value_name = "POD")]
    pod: Option<String>,
    #[command(flatten)]
    scope: Scope,
    /// How the result is shown
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CommandError> {
    let cluster = args.cluster.connect().await?;
    let now = super::now();
    if let Some(pod) = &args.pod {
        let namespace = args.scope.one_namespace(&cluster)?;
        let path = format!("/apis/{API_VERSION}/namespaces/{namespace}/identities/{pod}");
        let identity: Object<Identity> = view::get(&cluster.client, &path).await?;
        super::print(&match args.output {
            Output::Json => super::json(&identity)?,
            Output::Text | Output::Wide => in_full(&identity, now),
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let namespace = args.scope.namespace(&cluster);
    let identities: Vec<Object<Identity>> =
        view::list(&cluster.client, Resource::Identities, namespace.as_deref()).await?;
    super::print(&match args.output {
        Output::Json => super::json(&identities)?,
        Output::Text | Output::Wide if identities.is_empty() => "No proxy is here.\n".to_owned(),
        Output::Text => table(&identities, now, false),
        Output::Wide => table(&identities, now, true),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn table(identities: &[Object<Identity>], now: i64, wide: bool) -> String {
    use Align::{Left, Right};
    let headings = [
        ("POD", Left),
        ("IDENTITY", Left),
        ("SERIAL", Left),
        ("LEFT", Right),
        ("RENEWALS", Right),
        ("FAILED", Right),
    ];
    let rows: Vec<Vec<String>> = identities
        .iter()
        .map(|Object { metadata, body, .. }| {
            vec![
                metadata.name.clone().unwrap_or_default(),
                // The trust domain is the same for all, and the whole is shown with POD.
                if wide {
                    body.spiffe_id.clone()
                } else {
                    short(&body.spiffe_id)
                },
                body.serial.chars().take(if wide { usize::MAX } else { 8 }).collect(),
                left(body, now),
                body.renewals.to_string(),
                body.renewal_failures.to_string(),
            ]
        })
        .collect();
    columns(&headings, &rows)
}

fn short(id: &str) -> String {
    match postern_identity::SpiffeId::parse(id) {
        Ok(parsed) => parsed
            .workload()
            .map_or_else(|| id.to_owned(), |(space, account)| format!("{space}/{account}")),
        Err(_) => id.to_owned(),
    }
}

fn left(identity: &Identity, now: i64) -> String {
    match seconds(identity.not_after.as_deref()) {
        _ if !identity.connected => "away".to_owned(),
        None => "-".to_owned(),
        Some(end) if end <= now => "expired".to_owned(),
        Some(end) => span(end - now),
    }
}

fn in_full(identity: &Object<Identity>, now: i64) -> String {
    let Object { metadata, body, .. } = identity;
    let or_none = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.to_owned()
        }
    };
    let fields = [
        (
            "Pod",
            format!(
                "{}/{}",
                metadata.namespace.as_deref().unwrap_or_default(),
                metadata.name.as_deref().unwrap_or_default()
            ),
        ),
        ("SPIFFE ID", body.spiffe_id.clone()),
        ("Instance", or_none(&body.instance)),
        ("Serial", or_none(&body.serial)),
        ("Issued", or_none(body.issued.as_deref().unwrap_or_default())),
        (
            "Not after",
            format!(
                "{} ({})",
                or_none(body.not_after.as_deref().unwrap_or_default()),
                left(body, now)
            ),
        ),
        (
            "Renewals",
            format!("{}, {} failed", body.renewals, body.renewal_failures),
        ),
        ("Last error", or_none(&body.last_renewal_error)),
        ("Connected", if body.connected { "yes" } else { "no" }.to_owned()),
    ];
    fields
        .iter()
        .map(|(name, value)| format!("{:<11} {value}\n", format!("{name}:")))
        .collect()
}

fn seconds(rfc3339: Option<&str>) -> Option<i64> {
    let parsed = rfc3339?.parse::<k8s_openapi::jiff::Timestamp>().ok()?;
    Some(parsed.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_shows_id_serial_life_and_renewals_in_a_hundred_columns() {
        let body = Identity {
            spiffe_id: "spiffe://cluster.local/ns/shop/sa/recommendations".to_owned(),
            instance: "7c8a9fd5-6d7a-4f0b-8c9e-0b1f2c3d4e5f".to_owned(),
            serial: "0123456789abcdef0123456789abcdef".to_owned(),
            issued: Some("2026-11-28T08:00:00Z".to_owned()),
            not_after: Some("2026-11-28T12:00:00Z".to_owned()),
            renewals: 3,
            renewal_failures: 1,
            last_renewal_error: String::new(),
            connected: true,
        };
        let mut identity = Object {
            api_version: API_VERSION.to_owned(),
            kind: "Identity".to_owned(),
            metadata: Default::default(),
            body,
        };
        identity.metadata.name = Some("recommendations-7d4b9c6f5d-x2x7k".to_owned());
        identity.metadata.namespace = Some("shop".to_owned());
        let now = seconds(Some("2026-11-28T09:00:00Z")).unwrap_or_default();
        let text = table(std::slice::from_ref(&identity), now, false);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(
            text.contains("shop/recommendations  01234567   3 h         3       1"),
            "{text}"
        );
        let full = in_full(&identity, now);
        assert!(
            full.contains("SPIFFE ID:  spiffe://cluster.local/ns/shop/sa/recommendations\n"),
            "{full}"
        );
        assert!(full.contains("Not after:  2026-11-28T12:00:00Z (3 h)\n"), "{full}");
    }
}
