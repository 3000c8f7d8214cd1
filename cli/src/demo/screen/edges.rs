//! The table of edges.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Row, Table};

use super::super::documents::{NAMESPACE, TRUST_DOMAIN};
use super::super::edges::Edge;
use super::Theme;

/// From here on identities are shown in full.
const WIDE: u16 = 132;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, edges: &[Edge], theme: Theme) {
    let wide = area.width >= WIDE;
    let name = if wide { 43 } else { 11 };
    let widths = [
        Constraint::Length(name),
        Constraint::Length(name),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Fill(1),
    ];
    let right = |text: &str| Text::from(Line::from(text.to_owned()).right_aligned());
    let header = Row::new([
        Text::from("FROM"),
        Text::from("TO"),
        Text::from("PROTOCOL"),
        Text::from("LOCK"),
        right("REQ/S"),
        right("P99"),
        right("DENIED/S"),
        Text::from("FAILED"),
    ])
    .style(theme.heading());
    let rows = edges.iter().map(|edge| row(edge, wide, theme));
    frame.render_widget(Table::new(rows, widths).header(header).column_spacing(1), area);
    if edges.is_empty() && area.height > 1 {
        let below = Rect {
            y: area.y + 1,
            height: 1,
            ..area
        };
        frame.render_widget(
            Line::from("  nothing has been reported yet; proxies report each second"),
            below,
        );
    }
}

fn row(edge: &Edge, wide: bool, theme: Theme) -> Row<'static> {
    let lock = if edge.key.mutual_tls {
        Span::styled(format!("{} mTLS", theme.lock()), theme.good())
    } else {
        Span::styled("IN CLEAR", theme.bad())
    };
    let number = |text: String| Cell::from(Line::from(text).right_aligned());
    let denied = if edge.denied_rate >= 0.05 {
        let text = format!("{:.1}", edge.denied_rate);
        Cell::from(Line::from(Span::styled(text, theme.warning())).right_aligned())
    } else {
        number("-".to_owned())
    };
    let failed = match edge.failed {
        0 => Span::raw("-"),
        failed => Span::styled(failed.to_string(), theme.bad()),
    };
    Row::new([
        Cell::from(identity(&edge.key.from, wide)),
        Cell::from(identity(&edge.key.to, wide)),
        Cell::from(edge.key.protocol),
        Cell::from(lock),
        number(if edge.allowed == 0 {
            "none".to_owned()
        } else {
            format!("{:.1}", edge.rate)
        }),
        number(edge.p99_us.map_or_else(|| "-".to_owned(), duration)),
        denied,
        Cell::from(failed),
    ])
}

/// A SPIFFE ID, or what is its own in it (all of the demo's share the beginning, which help shows).
pub(super) fn identity(id: &str, whole: bool) -> String {
    if id.is_empty() {
        return "(nobody)".to_owned();
    }
    let shared = format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/");
    match id.strip_prefix(&shared) {
        Some(own) if !whole => own.to_owned(),
        Some(_) | None => id.to_owned(),
    }
}

/// Microseconds, for people.
fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{} ms", us / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_shortened_only_by_what_all_share() {
        assert_eq!(identity("spiffe://cluster.local/ns/shop/sa/web", false), "sa/web");
        assert_eq!(
            identity("spiffe://elsewhere/ns/shop/sa/web", false),
            "spiffe://elsewhere/ns/shop/sa/web"
        );
        assert_eq!(identity("", false), "(nobody)");
    }

    #[test]
    fn durations_keep_two_or_three_digits() {
        assert_eq!(duration(730), "730 us");
        assert_eq!(duration(1_250), "1.2 ms");
        assert_eq!(duration(250_000), "250 ms");
    }
}
