//! Denials and events, a line each.

use std::time::{Duration, UNIX_EPOCH};

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::super::denials::Counted;
use super::super::model::Model;
use super::edges::identity;
use super::{Theme, cut};

pub(super) fn draw_denials(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let kinds = model.denials.kinds();
    let title = format!(
        "DENIED {} requests of {} kinds, newest kind first",
        model.denials.total(),
        kinds.len()
    );
    let mut lines = vec![Line::styled(title, theme.heading())];
    let width = usize::from(area.width);
    let room = usize::from(area.height.saturating_sub(1));
    lines.extend(kinds.iter().take(room).map(|counted| {
        let text = denial(counted, theme);
        Line::from(vec![
            Span::styled(format!("{:>5}x ", counted.count), theme.warning()),
            Span::raw(cut(&text, width.saturating_sub(7))),
        ])
    }));
    frame.render_widget(Paragraph::new(lines), area);
}

fn denial(counted: &Counted, theme: Theme) -> String {
    let kind = &counted.kind;
    let arrow = theme.arrow();
    let mut text = format!(
        "{} {arrow} {}",
        identity(&kind.source, false),
        identity(&kind.destination, false)
    );
    if !kind.request.is_empty() {
        text.push(' ');
        text.push_str(&kind.request);
    }
    text.push_str(": ");
    text.push_str(&kind.reason);
    if !kind.policy.is_empty() {
        text.push_str(&format!(" of {} ({})", kind.policy, kind.rule));
    }
    text
}

pub(super) fn draw_events(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let mut lines = vec![Line::styled("EVENTS, newest last (UTC)", theme.heading())];
    let events = model.events();
    let room = usize::from(area.height.saturating_sub(1));
    let width = usize::from(area.width);
    for event in events.iter().skip(events.len().saturating_sub(room)) {
        let (word, style) = match event.level.as_str() {
            "error" => ("ERROR ", theme.bad()),
            "warning" => ("warning ", theme.warning()),
            _ => ("", theme.dim()),
        };
        let time = clock(event.time_unix_ms);
        let text = cut(&event.text, width.saturating_sub(time.len() + 1 + word.len()));
        lines.push(Line::from(vec![
            Span::styled(format!("{time} "), theme.dim()),
            Span::styled(word, style),
            Span::raw(text),
        ]));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

/// The time of day.
fn clock(unix_ms: i64) -> String {
    let time = UNIX_EPOCH + Duration::from_millis(u64::try_from(unix_ms).unwrap_or_default());
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.get(11..19).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_shows_the_time_of_day() {
        assert_eq!(clock(1_000 * (3_600 * 13 + 61)), "13:01:01");
        assert_eq!(clock(-1), "00:00:00");
    }
}
