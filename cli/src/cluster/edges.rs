//! `postern edges`: who talks to whom, by which identities, secured or not, allowed, denied, and how often.

use std::collections::HashSet;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use postern_control::api::objects::{Direction, Edge, End, Object, Resource};

use super::columns::{Align, columns};
use super::connect::ClusterArgs;
use super::{CommandError, Output, Scope, view};

/// Between two looks: control's pictures are not older than a second.
const AGAIN: Duration = Duration::from_secs(2);
/// ANSI: to the upper left, and nothing below.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Arguments of `postern edges`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    scope: Scope,
    /// Again every 2 seconds, until stopped
    #[arg(long, short)]
    watch: bool,
    /// How the result is shown; wide has whole SPIFFE IDs
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CommandError> {
    let cluster = args.cluster.connect().await?;
    let namespace = args.scope.namespace(&cluster);
    let clear = args.watch && args.output != Output::Json && std::io::stdout().is_terminal();
    loop {
        let edges: Vec<Object<Edge>> = view::list(&cluster.client, Resource::Edges, namespace.as_deref()).await?;
        let text = shown(once(edges), namespace.as_deref(), args.output)?;
        super::print(&if clear { format!("{CLEAR}{text}") } else { text })?;
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn shown(edges: Vec<Object<Edge>>, namespace: Option<&str>, output: Output) -> Result<String, CommandError> {
    Ok(match output {
        Output::Json => super::json(&edges)?,
        Output::Text | Output::Wide if edges.is_empty() => format!("{}\n", nothing(namespace)),
        Output::Text => table(&edges, false),
        Output::Wide => table(&edges, true),
    })
}

/// Over all namespaces, an edge from one to another is there twice: as the caller saw it, and as the called side did, whose
/// word counts.
fn once(mut edges: Vec<Object<Edge>>) -> Vec<Object<Edge>> {
    let key = |edge: &Edge| (edge.source.spiffe_id.clone(), edge.destination.spiffe_id.clone());
    let inbound = |edge: &Edge| edge.direction == Direction::Inbound && edge.secured;
    let called: HashSet<(String, String)> = edges
        .iter()
        .filter(|edge| inbound(&edge.body))
        .map(|edge| key(&edge.body))
        .collect();
    edges.retain(|edge| edge.body.direction == Direction::Inbound || !called.contains(&key(&edge.body)));
    edges.sort_by(|a, b| {
        let order = |edge: &Object<Edge>| (short(&edge.body.source), to(&edge.body), edge.body.port);
        order(a).cmp(&order(b))
    });
    edges
}

fn nothing(namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("Nobody has talked to anybody in {namespace} since control started."),
        None => "Nobody has talked to anybody since control started.".to_owned(),
    }
}

fn table(edges: &[Object<Edge>], wide: bool) -> String {
    use Align::{Left, Right};
    let mut headings = vec![
        ("FROM", Left),
        ("TO", Left),
        ("PORT", Right),
        ("SECURED", Left),
        ("ALLOWED", Right),
        ("DENIED", Right),
        ("RATE", Right),
        ("DENIED/S", Right),
    ];
    if wide {
        headings.extend([
            ("PROTOCOL", Left),
            ("FAILED", Right),
            ("WOULD-DENY", Right),
            ("SEEN", Left),
        ]);
    }
    let rows: Vec<Vec<String>> = edges
        .iter()
        .map(|Object { body: edge, .. }| {
            let (from, to) = if wide {
                (full(&edge.source), full_to(edge))
            } else {
                (short(&edge.source), to(edge))
            };
            let mut row = vec![
                from,
                to,
                edge.port.to_string(),
                if edge.secured { "mTLS" } else { "no" }.to_owned(),
                edge.allowed.to_string(),
                edge.denied.to_string(),
                format!("{:.1}/s", edge.allowed_per_second),
                format!("{:.1}/s", edge.denied_per_second),
            ];
            if wide {
                row.extend([
                    edge.protocol.clone(),
                    edge.failed.to_string(),
                    edge.would_deny.to_string(),
                    match edge.direction {
                        Direction::Inbound => "inbound",
                        Direction::Outbound => "outbound",
                    }
                    .to_owned(),
                ]);
            }
            row
        })
        .collect();
    let mut text = columns(&headings, &rows);
    if !wide && let Some(domain) = trust_domain(edges) {
        text.push_str(&format!(
            "\nNAMESPACE/ACCOUNT is spiffe://{domain}/ns/NAMESPACE/sa/ACCOUNT. Rates: the last half minute.\n"
        ));
    }
    text
}

fn trust_domain(edges: &[Object<Edge>]) -> Option<&str> {
    let ids = edges
        .iter()
        .flat_map(|edge| [&edge.body.source.spiffe_id, &edge.body.destination.spiffe_id]);
    ids.filter_map(|id| id.strip_prefix("spiffe://")?.split('/').next())
        .next()
}

fn short(end: &End) -> String {
    match (&end.namespace, &end.service_account) {
        (Some(namespace), Some(account)) => format!("{namespace}/{account}"),
        _ => full(end),
    }
}

fn full(end: &End) -> String {
    if end.spiffe_id.is_empty() {
        "(anonymous)".to_owned()
    } else {
        end.spiffe_id.clone()
    }
}

/// Who was called; outside of the mesh only the name that was asked for is known.
fn to(edge: &Edge) -> String {
    if edge.destination.spiffe_id.is_empty() {
        outside(edge)
    } else {
        short(&edge.destination)
    }
}

fn full_to(edge: &Edge) -> String {
    if edge.destination.spiffe_id.is_empty() {
        outside(edge)
    } else {
        full(&edge.destination)
    }
}

fn outside(edge: &Edge) -> String {
    if edge.service.is_empty() {
        "(unknown)".to_owned()
    } else {
        format!("({})", edge.service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(account: &str) -> End {
        End {
            spiffe_id: format!("spiffe://cluster.local/ns/shop/sa/{account}"),
            namespace: Some("shop".to_owned()),
            service_account: Some(account.to_owned()),
        }
    }

    fn edge(source: End, destination: End, direction: Direction, secured: bool) -> Object<Edge> {
        let body = Edge {
            source,
            destination,
            service: "cart.shop".to_owned(),
            port: 8080,
            protocol: "http1".to_owned(),
            secured,
            direction,
            allowed: 1200,
            denied: 3,
            would_deny: 0,
            failed: 1,
            allowed_per_second: 12.34,
            denied_per_second: 0.04,
            bytes_sent: 0,
            bytes_received: 0,
            reporters: 1,
        };
        Object {
            api_version: "view.postern.dev/v1alpha1".to_owned(),
            kind: "Edge".to_owned(),
            metadata: Default::default(),
            body,
        }
    }

    #[test]
    fn an_edge_between_namespaces_is_shown_once_as_the_called_side_saw_it() {
        let edges = vec![
            edge(id("web"), id("cart"), Direction::Outbound, true),
            edge(id("web"), id("cart"), Direction::Inbound, true),
            edge(id("web"), End::default(), Direction::Outbound, false),
        ];
        let shown = once(edges);
        assert_eq!(shown.len(), 2);
        assert!(shown.iter().any(|edge| edge.body.direction == Direction::Inbound));
    }

    #[test]
    fn both_identities_and_all_figures_fit_into_a_hundred_columns() {
        let edges = [
            edge(id("web"), id("cart"), Direction::Inbound, true),
            edge(id("web"), End::default(), Direction::Outbound, false),
            edge(
                End::default(),
                id("a-service-with-a-long-name"),
                Direction::Inbound,
                false,
            ),
        ];
        let text = table(&edges, false);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>(),
            ["shop/web", "shop/cart", "8080", "mTLS", "1200", "3", "12.3/s", "0.0/s"]
        );
        assert!(lines[2].contains("(cart.shop)") && lines[2].contains(" no "), "{text}");
        assert!(lines[3].starts_with("(anonymous)"), "{text}");
        assert!(text.contains("spiffe://cluster.local/ns/NAMESPACE/sa/ACCOUNT"));
    }
}
