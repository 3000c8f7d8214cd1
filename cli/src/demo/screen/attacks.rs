//! Attacks: the key, the verdict, and what the attacker heard.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::super::attack::{Attack, Attempt};
use super::super::model::{Model, Tried};
use super::super::verdict::Fate;
use super::{Theme, cut};

/// Key, title and verdict.
const BEFORE_HEARD: u16 = 35;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let mut lines = vec![Line::styled("ATTACK AS MALLORY (keys 1 to 6)", theme.heading())];
    let room = usize::from(area.width.saturating_sub(BEFORE_HEARD));
    for (key, attack) in (1..).zip(Attack::ALL) {
        let mut spans = vec![
            Span::styled(format!("{key} "), theme.key()),
            Span::raw(format!("{:<23}", attack.title())),
        ];
        let (word, heard) = told(attack, model, theme);
        spans.push(word);
        if let Some(heard) = heard.filter(|_| room > 8) {
            spans.push(Span::styled(cut(&heard, room), theme.dim()));
        }
        lines.push(Line::from(spans));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn told(attack: Attack, model: &Model, theme: Theme) -> (Span<'static>, Option<String>) {
    match model.attacks.get(&attack) {
        None => match model.ageing_seconds.filter(|_| attack == Attack::ExpiredCertificate) {
            Some(left) => (
                Span::styled(format!("{:<10}", format!("in {left} s")), theme.dim()),
                None,
            ),
            None => (Span::styled(format!("{:<10}", "-"), theme.dim()), None),
        },
        Some(Tried::Trying) => (Span::raw(format!("{:<10}", "trying")), None),
        Some(Tried::Prevented(why)) => (Span::styled("not tried ", theme.warning()), Some(why.clone())),
        Some(Tried::Done(Fate::Refused, attempts)) => (
            Span::styled(format!("{:<10}", "refused"), theme.good()),
            heard(attempts),
        ),
        Some(Tried::Done(Fate::Passed, attempts)) => {
            (Span::styled(format!("{:<10}", "PASSED"), theme.bad()), heard(attempts))
        }
    }
}

/// What was tried first (what got through stands first), what came of it, and how many tries there were.
fn heard(attempts: &[Attempt]) -> Option<String> {
    let first = attempts.first()?;
    let told = format!("{}: {}", first.what, first.heard);
    Some(match attempts.len() {
        1 => told,
        tries => format!("{told}; {tries} tries"),
    })
}
