//! The screen: one frame from one [`Model`]. Every state has a word; colour only repeats it.
//!
//! ```text
//! status     who runs, which policy is in force
//! edges      from, to, protocol, lock, rates
//! certificates | attacks
//! denials    by kind, newest first
//! events     newest last
//! footer     what to mind, the file to edit, the keys
//! ```

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::model::{Model, Stage};

mod attacks;
mod certificates;
mod edges;
mod footer;
mod help;
mod log;
mod starting;
mod theme;

pub(super) use theme::Theme;

/// Processes of the world: CA, control, a proxy and an app for each of five workloads.
const PROCESSES: usize = 12;
/// Edges of the demo's ordinary traffic; more only if somebody does something unusual.
const USUAL_EDGES: u16 = 7;
/// A title, then one line per attack.
const MIDDLE: u16 = 7;
const FOOTER: u16 = 3;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, theme: Theme) {
    let edges = model.edges.now();
    let rows = rows(frame.area(), edges.len());
    frame.render_widget(status(model, theme), rows.status);
    match &model.stage {
        Stage::Starting(done) => starting::draw(frame, rows.edges, done, theme),
        Stage::Running => edges::draw(frame, rows.edges, &edges, theme),
    }
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(rows.middle);
    certificates::draw(frame, left, model, theme);
    attacks::draw(frame, right, model, theme);
    log::draw_denials(frame, rows.denials, model, theme);
    log::draw_events(frame, rows.events, model, theme);
    footer::draw(frame, rows.footer, model, theme);
    if model.help {
        help::draw(frame, frame.area(), theme);
    }
}

/// Where things stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rows {
    status: Rect,
    edges: Rect,
    middle: Rect,
    denials: Rect,
    events: Rect,
    footer: Rect,
}

/// What is left beyond the fixed parts goes to denials and events, denials first.
fn rows(area: Rect, edges: usize) -> Rows {
    let edges = u16::try_from(edges).unwrap_or(u16::MAX).max(USUAL_EDGES);
    let most = area.height.saturating_sub(1 + MIDDLE + FOOTER + 4).max(1);
    let edges = (edges + 1).min(most);
    let rest = area.height.saturating_sub(1 + edges + MIDDLE + FOOTER);
    let [status, edges, middle, denials, events, footer] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(edges),
        Constraint::Length(MIDDLE),
        Constraint::Length(rest.div_ceil(2)),
        Constraint::Length(rest / 2),
        Constraint::Length(FOOTER),
    ])
    .areas(area);
    Rows {
        status,
        edges,
        middle,
        denials,
        events,
        footer,
    }
}

fn status(model: &Model, theme: Theme) -> Paragraph<'static> {
    let mut spans = vec![Span::styled(" POSTERN ", theme.title()), Span::raw("  ")];
    match (&model.stage, &model.picture) {
        (Stage::Starting(done), _) => spans.push(Span::raw(format!(
            "starting a mesh: {} of {PROCESSES} processes are ready",
            done.len()
        ))),
        (Stage::Running, None) => spans.push(Span::raw("everything runs; waiting for the first picture")),
        (Stage::Running, Some(picture)) => {
            spans.push(if model.ca_runs {
                Span::styled("CA up", theme.good())
            } else {
                Span::styled("CA DOWN (s starts it)", theme.bad())
            });
            let of = picture.workloads.len();
            let connected = picture.workloads.iter().filter(|workload| workload.connected).count();
            let version = picture.policy_version;
            let in_force = picture
                .workloads
                .iter()
                .filter(|w| w.policy_version_acknowledged >= version)
                .count();
            spans.push(Span::raw(format!(
                "  proxies {connected}/{of}  policy at {in_force}/{of}"
            )));
            spans.push(Span::raw(format!("  issuer {}", picture.issuer_epoch)));
            let requests: u64 = model.edges.now().iter().map(|edge| edge.allowed).sum();
            spans.push(Span::raw(format!("  {requests} requests")));
        }
    }
    Paragraph::new(Line::from(spans))
}

/// Cut to what fits; what is cut is marked.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}~")
}

#[cfg(test)]
mod tests;
