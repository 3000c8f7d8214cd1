//! What to mind, the file to edit, the keys.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::super::model::Model;
use super::{Theme, cut};

/// What no proxy can change on one machine: THREAT_MODEL says the same.
const NOTICE: &str = "No namespaces: a local user can dial an app's loopback port, past its proxy.";
const KEYS: [(&str, &str); 6] = [
    ("1-6", "attack"),
    ("k", "kill CA"),
    ("s", "start CA"),
    ("r", "rotate"),
    ("?", "help"),
    ("q", "quit"),
];

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let width = usize::from(area.width);
    let edit = format!("edit {}", model.policy_file);
    let mut keys = Vec::new();
    for (key, what) in KEYS {
        keys.push(Span::styled(format!(" {key} "), theme.title()));
        keys.push(Span::raw(format!(" {what}  ")));
    }
    let lines = vec![
        mind(model, width, theme),
        Line::from(cut(&edit, width)),
        Line::from(keys),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

/// The gravest thing first.
fn mind(model: &Model, width: usize, theme: Theme) -> Line<'static> {
    let bad = model.picture.iter().flat_map(|picture| &picture.bad_files).next();
    if let Some(bad) = bad {
        let error = bad.errors.first().map_or("", String::as_str);
        let text = format!("REFUSED, last good state in force: {error}");
        return Line::styled(cut(&text, width), theme.bad());
    }
    let past: Vec<String> = model
        .unvouched
        .iter()
        .map(|(service, count)| format!("{service} {count}"))
        .collect();
    if !past.is_empty() {
        let text = format!(
            "REQUESTS THAT NO PROXY VOUCHED FOR, counted by the apps: {}",
            past.join(", ")
        );
        return Line::styled(cut(&text, width), theme.bad());
    }
    Line::styled(cut(NOTICE, width), theme.dim())
}
