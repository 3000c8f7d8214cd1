//! While the world starts: what stands already.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};

use super::super::documents::{NAMESPACE, TRUST_DOMAIN};
use super::{PROCESSES, Theme};

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, done: &[String], theme: Theme) {
    let identity = format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/<name>");
    let [full, empty] = theme.gauge();
    let missing = PROCESSES.saturating_sub(done.len());
    let lines = vec![
        Line::styled("STARTING", theme.heading()),
        Line::from(format!(
            "Five services, each behind a door of its own: a proxy that proves to be {identity}"
        )),
        Line::from("and asks the same proof of whoever calls. web buys, mallory is allowed nothing."),
        Line::default(),
        Line::from(vec![
            Span::styled(full.repeat(2 * done.len()), theme.good()),
            Span::styled(empty.repeat(2 * missing), theme.dim()),
            Span::raw(format!(" {} of {PROCESSES}", done.len())),
        ]),
        Line::from(format!("ready: {}", done.join(", "))),
    ];
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
}
