//! Certificates: life that runs down, and refills when a proxy has renewed.

use postern_api::control::v1 as wire;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::super::model::Model;
use super::Theme;

/// Renewal is due at half; below this share of life something keeps it from happening.
const LATE: f64 = 0.4;
/// Name, seconds and renewals beside the gauge.
const BESIDE: u16 = 29;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let mut lines = vec![Line::styled("CERTIFICATE LIFE", theme.heading())];
    let width = usize::from(area.width.saturating_sub(BESIDE).clamp(4, 40));
    for workload in model.picture.iter().flat_map(|picture| &picture.workloads) {
        lines.push(line(workload, model.now_ms, width, theme));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn line(workload: &wire::WorkloadView, now_ms: i64, width: usize, theme: Theme) -> Line<'static> {
    let name = Span::raw(format!("{:<10}", workload.name));
    let Some(certificate) = &workload.certificate else {
        return Line::from(vec![name, Span::styled("none yet", theme.warning())]);
    };
    let (left, whole) = life(certificate, now_ms);
    let [full, empty] = theme.gauge();
    let filled = filled(left, whole, width);
    let style = match share(left, whole) {
        share if share <= 0.0 => theme.bad(),
        share if share < LATE => theme.warning(),
        _ => theme.good(),
    };
    let word = if left <= 0 {
        Span::styled(" EXPIRED", theme.bad())
    } else {
        Span::raw(format!("{:>6} s", (left + 999) / 1_000))
    };
    let renewals = if left > 0 && share(left, whole) < LATE {
        Span::styled("   overdue", theme.warning())
    } else {
        Span::styled(format!(" {:>4}x new", certificate.renewals), theme.dim())
    };
    Line::from(vec![
        name,
        Span::styled(full.repeat(filled), style),
        Span::styled(empty.repeat(width - filled), theme.dim()),
        word,
        renewals,
    ])
}

/// Milliseconds left, and the whole.
fn life(certificate: &wire::Certificate, now_ms: i64) -> (i64, i64) {
    let left = certificate.not_after_unix_ms.saturating_sub(now_ms);
    let whole = certificate.not_after_unix_ms.saturating_sub(certificate.issued_unix_ms);
    (left, whole.max(1))
}

fn share(left: i64, whole: i64) -> f64 {
    (left as f64 / whole as f64).clamp(0.0, 1.0)
}

/// Cells of the gauge; the last is given up only with the last second.
fn filled(left: i64, whole: i64, width: usize) -> usize {
    ((share(left, whole) * width as f64).ceil() as usize).min(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_is_full_at_issue_and_empty_at_expiry_never_before() {
        assert_eq!(filled(60_000, 60_000, 12), 12);
        assert_eq!(filled(30_000, 60_000, 12), 6);
        assert_eq!(filled(1, 60_000, 12), 1);
        assert_eq!(filled(0, 60_000, 12), 0);
        assert_eq!(filled(-5, 60_000, 12), 0);
        assert_eq!(filled(90_000, 60_000, 12), 12);
    }
}
