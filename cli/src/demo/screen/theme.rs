//! Styles and signs. Without colour the same things are told apart by weight, and always by words.

use ratatui::style::{Color, Modifier, Style};

/// What the terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::demo) struct Theme {
    colour: bool,
    /// Signs beyond ASCII?
    signs: bool,
}

impl Theme {
    /// <https://no-color.org>: any value but an empty one. Signs need a UTF-8 locale and a font that has them, which the
    /// Linux console has not.
    pub(in crate::demo) fn from_environment() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = variable("LC_ALL")
            .or_else(|| variable("LC_CTYPE"))
            .or_else(|| variable("LANG"));
        let utf8 = locale.is_some_and(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        });
        Self {
            colour: variable("NO_COLOR").is_none(),
            signs: utf8 && variable("TERM").is_none_or(|term| term != "linux"),
        }
    }

    #[cfg(test)]
    pub(in crate::demo) fn new(colour: bool, signs: bool) -> Self {
        Self { colour, signs }
    }

    fn style(self, colour: Color, plain: Modifier) -> Style {
        if self.colour {
            Style::new().fg(colour)
        } else {
            Style::new().add_modifier(plain)
        }
    }

    pub(super) fn good(self) -> Style {
        self.style(Color::Green, Modifier::empty())
    }

    pub(super) fn bad(self) -> Style {
        self.style(Color::Red, Modifier::REVERSED).add_modifier(Modifier::BOLD)
    }

    pub(super) fn warning(self) -> Style {
        self.style(Color::Yellow, Modifier::BOLD)
    }

    pub(super) fn dim(self) -> Style {
        self.style(Color::DarkGray, Modifier::DIM)
    }

    pub(super) fn heading(self) -> Style {
        self.style(Color::Cyan, Modifier::UNDERLINED)
            .add_modifier(Modifier::BOLD)
    }

    pub(super) fn title(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD)
    }

    pub(super) fn key(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// A closed lock; the word stands beside it.
    pub(super) fn lock(self) -> &'static str {
        if self.signs { "🔒" } else { "[=]" }
    }

    pub(super) fn arrow(self) -> &'static str {
        if self.signs { "→" } else { "->" }
    }

    /// A full and an empty part of a gauge.
    pub(super) fn gauge(self) -> [&'static str; 2] {
        if self.signs { ["█", "░"] } else { ["#", "."] }
    }
}
