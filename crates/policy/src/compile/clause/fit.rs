//! Values and their negation against something that may not be known.

use crate::{Action, Doubt};

/// How a request fits a field or condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// It does.
    Met,
    /// None of the values that it must have one of.
    NotAny,
    /// One of the values that it must not have.
    OneOfNone,
}

/// Is what is compared there?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It is.
    Yes,
    /// There is none: no value matches, and its negation is good enough to deny, never to allow.
    Absent,
    /// It is there or not, and cannot be seen: never good enough to allow, always to deny.
    No,
    /// Nobody tells what it is.
    NotTold(Doubt),
}

/// What cannot be seen counts as a match where a match can only deny, ask or mark.
pub(super) fn unsure(action: Action) -> bool {
    match action {
        Action::Allow => false,
        Action::Deny | Action::Audit | Action::Custom => true,
    }
}

/// The same of what is not told.
pub(super) fn not_told(action: Action, doubt: Doubt) -> bool {
    match doubt {
        Doubt::Closed => unsure(action),
        Doubt::Open => !unsure(action),
    }
}

/// `ask` says of one value whether it matches; `None` if that cannot be told.
pub(super) fn fit<T>(any: &[T], none: &[T], known: Known, action: Action, ask: impl Fn(&T) -> Option<bool>) -> Fit {
    let unsure = unsure(action);
    let hits = |values: &[T]| {
        let mut clear = true;
        for value in values {
            match ask(value) {
                Some(true) => return Some(true),
                Some(false) => {}
                None => clear = false,
            }
        }
        clear.then_some(false)
    };
    let met = match known {
        _ if any.is_empty() => true,
        Known::Yes => hits(any).unwrap_or(unsure),
        Known::Absent => false,
        Known::No => unsure,
        Known::NotTold(doubt) => not_told(action, doubt),
    };
    if !met {
        return Fit::NotAny;
    }
    let clean = match known {
        _ if none.is_empty() => true,
        Known::Yes => hits(none).map_or(unsure, |hit| !hit),
        Known::Absent | Known::No => unsure,
        Known::NotTold(doubt) => not_told(action, doubt),
    };
    if clean { Fit::Met } else { Fit::OneOfNone }
}
