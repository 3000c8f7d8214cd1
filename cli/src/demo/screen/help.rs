//! Help, above everything else.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Block, Clear, Paragraph};

use super::Theme;

const WIDTH: u16 = 76;
const TEXT: [&str; 18] = [
    "sa/web stands for spiffe://cluster.local/ns/shop/sa/web: a SPIFFE ID,",
    "proved by a certificate that the CA signs for a minute and the proxy renews",
    "at half of that. web -> cart -> payments -> ledger is allowed; mallory is not.",
    "",
    "1-6  attack. Whether it got through is counted by the attacked service",
    "     itself, by a word that occurs in no other request: not by the proxy.",
    "     6 waits until the certificate that it holds has run out.",
    "k    kill the CA: nothing happens while certificates last; after that every",
    "     request fails closed. Not one goes out in clear.",
    "s    start it again: all is well within two seconds, without a new token.",
    "r    a new issuing certificate: everybody renews, no request fails.",
    "q    quit; every process ends with this one, and its directory is removed.",
    "",
    "Edit the policy file (its path is at the bottom) while this runs: a change",
    "is in force within a second, a broken file changes nothing and is reported.",
    "Without network namespaces a local user can dial an app's port directly;",
    "the apps count such requests, and the bottom line would tell.",
    "? closes this.",
];

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, theme: Theme) {
    let height = u16::try_from(TEXT.len()).unwrap_or(u16::MAX).saturating_add(2);
    let (width, height) = ((WIDTH + 4).min(area.width), height.min(area.height));
    let middle = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    let block = Block::bordered().title(Line::styled(" what this shows ", theme.heading()));
    frame.render_widget(Clear, middle);
    frame.render_widget(Paragraph::new(TEXT.map(Line::from).to_vec()).block(block), middle);
}
