//! The terminal: taken for as long as the guard lives, given back on every way out, a panic included.

use std::io;
use std::time::Duration;

use crossterm::event::{self, Event, KeyEvent};
use ratatui::DefaultTerminal;
use tokio::sync::mpsc;

/// How soon the reader notices that nobody listens any more.
const POLL: Duration = Duration::from_millis(100);
/// Keys that wait; a viewer types slower than we draw.
const WAITING: usize = 64;

/// What the terminal tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Key(KeyEvent),
    /// It has another size now.
    Resized,
}

/// The alternate screen in raw mode.
#[derive(Debug)]
pub(super) struct Terminal(DefaultTerminal);

impl Terminal {
    /// Takes it. A panic anywhere gives it back before the message is printed.
    pub(super) fn take() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }

    /// To draw on.
    pub(super) fn screen(&mut self) -> &mut DefaultTerminal {
        &mut self.0
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Reads keys on a thread of its own until the receiver is dropped.
pub(super) fn keys() -> io::Result<mpsc::Receiver<Told>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    std::thread::Builder::new().name("keys".to_owned()).spawn(move || {
        while !sender.is_closed() {
            let told = match event::poll(POLL) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let told = match told {
                Ok(Event::Key(key)) => Told::Key(key),
                Ok(Event::Resize(..)) => Told::Resized,
                Ok(_) => continue,
                // The terminal has gone: closing the channel says so.
                Err(_) => return,
            };
            if sender.blocking_send(told).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
