//! Fields of the head: each may stand several times, and hold a list.
//!
//! Servers differ in which of several values they take, so a rule that denies is met by any of them, and one that allows only
//! if all of them agree (CVE-2020-25017). Several lines are one list to some servers (RFC 9110 section 5.3): what a value with a
//! comma says of those cannot be told.

use super::fit::{Fit, Known, fit, unsure};
use crate::{Action, Doubt, Headers, StringMatch, Values};

pub(super) fn fits(
    name: &str,
    values: &Values<StringMatch>,
    headers: &dyn Headers,
    action: Action,
    doubt: Doubt,
) -> Fit {
    let Values { any, none } = values;
    let mut found = Found::default();
    let told = headers.each(name, &mut |value| found.add(value, any, none));
    if !told {
        return fit(any, none, Known::NotTold(doubt), action, |_| None);
    }
    let allows = action == Action::Allow;
    let met = if found.unclear {
        unsure(action)
    } else if allows {
        found.is_there && found.any.all
    } else {
        found.any.one
    };
    if !any.is_empty() && !met {
        return Fit::NotAny;
    }
    let clean = if found.unclear {
        unsure(action)
    } else if allows {
        !found.none.one
    } else {
        !(found.is_there && found.none.all)
    };
    if none.is_empty() || clean {
        Fit::Met
    } else {
        Fit::OneOfNone
    }
}

/// What was seen of a field.
#[derive(Debug, Default)]
struct Found {
    is_there: bool,
    /// A byte that is no visible ASCII, or several lines and a value with a comma: servers read it in more than one way.
    unclear: bool,
    any: Hits,
    none: Hits,
}

/// Of all values and their parts: does one match, do all?
#[derive(Debug)]
struct Hits {
    one: bool,
    all: bool,
}

impl Default for Hits {
    fn default() -> Self {
        Self { one: false, all: true }
    }
}

impl Found {
    fn add(&mut self, value: &[u8], any: &[StringMatch], none: &[StringMatch]) {
        // Which of the lines would have to be put together, and with how much space, servers do not agree on.
        self.unclear |= self.is_there && any.iter().chain(none).any(StringMatch::holds_comma);
        self.is_there = true;
        let visible = value.iter().all(|b| matches!(b, b' '..=b'~' | b'\t'));
        let Some(text) = std::str::from_utf8(value).ok().filter(|_| visible) else {
            self.unclear = true;
            return;
        };
        self.any.add(text, any);
        self.none.add(text, none);
    }
}

impl Hits {
    fn add(&mut self, text: &str, values: &[StringMatch]) {
        let hit = |text: &str| values.iter().any(|m| m.matches(text));
        let whole = hit(text);
        self.one |= whole;
        if !text.contains(',') {
            self.all &= whole;
            return;
        }
        // A list, or text with a comma. As a whole it agrees only by being named exactly.
        let exact = values
            .iter()
            .any(|m| matches!(m, StringMatch::Exact(value) if value == text));
        let mut every = whole;
        for part in text.split(',') {
            let hits = hit(part.trim_matches([' ', '\t']));
            self.one |= hits;
            every &= hits;
        }
        self.all &= exact || every;
    }
}
