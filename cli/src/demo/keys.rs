//! What a key asks for.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::attack::Attack;

/// What a viewer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Attack(Attack),
    KillCa,
    StartCa,
    Rotate,
    Help,
    Quit,
}

/// The command of a key, if it has one.
pub(super) fn command(key: KeyEvent) -> Option<Command> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        // In raw mode the terminal makes no signal of it.
        KeyCode::Char('c' | 'd') if control => Some(Command::Quit),
        KeyCode::Char(_) if control => None,
        KeyCode::Char(digit @ '1'..='6') => {
            let at = usize::try_from(digit.to_digit(10)?).ok()?.checked_sub(1)?;
            Attack::ALL.get(at).copied().map(Command::Attack)
        }
        KeyCode::Char('k' | 'K') => Some(Command::KillCa),
        KeyCode::Char('s' | 'S') => Some(Command::StartCa),
        KeyCode::Char('r' | 'R') => Some(Command::Rotate),
        KeyCode::Char('?' | 'h' | 'H') | KeyCode::F(1) => Some(Command::Help),
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => Some(Command::Quit),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: KeyCode, modifiers: KeyModifiers) -> Option<Command> {
        command(KeyEvent::new(code, modifiers))
    }

    #[test]
    fn digits_are_attacks_in_the_order_of_the_list() {
        let none = KeyModifiers::NONE;
        assert_eq!(
            of(KeyCode::Char('1'), none),
            Some(Command::Attack(Attack::NoCertificate))
        );
        assert_eq!(
            of(KeyCode::Char('6'), none),
            Some(Command::Attack(Attack::ExpiredCertificate))
        );
        assert_eq!(of(KeyCode::Char('7'), none), None);
        assert_eq!(of(KeyCode::Char('0'), none), None);
    }

    #[test]
    fn control_c_quits_and_other_control_keys_do_nothing() {
        let control = KeyModifiers::CONTROL;
        assert_eq!(of(KeyCode::Char('c'), control), Some(Command::Quit));
        assert_eq!(of(KeyCode::Char('k'), control), None);
    }
}
