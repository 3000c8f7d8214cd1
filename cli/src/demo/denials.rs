//! Denials by kind: a steady stream of the same refusal is one line with a count, and a new kind stands on top.

use std::collections::HashSet;

use postern_api::control::v1 as wire;

/// Kinds that are remembered; the stalest goes.
const MAX_KINDS: usize = 64;

/// One kind of denial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) source: String,
    pub(super) destination: String,
    /// Method and path; empty on an opaque stream.
    pub(super) request: String,
    pub(super) reason: String,
    /// `namespace/name`, and `file:line` of its rule; empty if nothing allowed it.
    pub(super) policy: String,
    pub(super) rule: String,
}

/// A kind and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) kind: Kind,
    pub(super) count: u64,
    last_ms: i64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Denials {
    /// Newest kind first.
    kinds: Vec<Counted>,
    /// Those of the last picture: the next repeats most of them.
    previous: HashSet<(i64, String, String)>,
}

impl Denials {
    /// Takes what is new in a picture.
    pub(super) fn take(&mut self, picture: &wire::Picture) {
        let identity = |denial: &wire::Denial| {
            let wire::Denial {
                time_unix_ms,
                decision_id,
                path,
                ..
            } = denial;
            (*time_unix_ms, decision_id.clone(), path.clone())
        };
        for denial in &picture.denials {
            if !self.previous.contains(&identity(denial)) {
                self.add(denial);
            }
        }
        self.previous = picture.denials.iter().map(identity).collect();
    }

    fn add(&mut self, denial: &wire::Denial) {
        let kind = Kind {
            source: denial.source.clone(),
            destination: denial.destination.clone(),
            request: format!("{} {}", denial.method, denial.path).trim().to_owned(),
            reason: denial.reason.clone(),
            policy: denial.policy.clone(),
            rule: denial.rule.clone(),
        };
        if let Some(known) = self.kinds.iter_mut().find(|known| known.kind == kind) {
            known.count += 1;
            known.last_ms = known.last_ms.max(denial.time_unix_ms);
            return;
        }
        if self.kinds.len() == MAX_KINDS {
            let stalest = self.kinds.iter().enumerate().min_by_key(|(_, known)| known.last_ms);
            if let Some((at, _)) = stalest {
                self.kinds.remove(at);
            }
        }
        let counted = Counted {
            kind,
            count: 1,
            last_ms: denial.time_unix_ms,
        };
        self.kinds.insert(0, counted);
    }

    /// Newest kind first.
    pub(super) fn kinds(&self) -> &[Counted] {
        &self.kinds
    }

    /// All of them.
    pub(super) fn total(&self) -> u64 {
        self.kinds.iter().map(|counted| counted.count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(ms: i64, path: &str) -> wire::Denial {
        wire::Denial {
            time_unix_ms: ms,
            decision_id: format!("d-{ms}"),
            source: "spiffe://a/ns/shop/sa/mallory".to_owned(),
            method: "GET".to_owned(),
            path: path.to_owned(),
            reason: "no_allow_rule".to_owned(),
            ..wire::Denial::default()
        }
    }

    fn picture(denials: Vec<wire::Denial>) -> wire::Picture {
        wire::Picture {
            denials,
            ..wire::Picture::default()
        }
    }

    #[test]
    fn a_denial_that_several_pictures_show_counts_once() {
        let mut denials = Denials::default();
        denials.take(&picture(vec![denial(1, "/items")]));
        denials.take(&picture(vec![denial(1, "/items"), denial(2, "/items")]));
        assert_eq!(denials.total(), 2);
        assert_eq!(denials.kinds().len(), 1);
    }

    #[test]
    fn a_new_kind_stands_on_top_and_old_ones_keep_their_order() {
        let mut denials = Denials::default();
        denials.take(&picture(vec![denial(1, "/a"), denial(2, "/b")]));
        denials.take(&picture(vec![denial(3, "/a"), denial(4, "/c")]));
        let order: Vec<&str> = denials
            .kinds()
            .iter()
            .map(|counted| counted.kind.request.as_str())
            .collect();
        assert_eq!(order, ["GET /c", "GET /b", "GET /a"]);
    }

    #[test]
    fn kinds_are_bounded_and_the_stalest_goes() {
        let mut denials = Denials::default();
        for n in 0..=64 {
            denials.take(&picture(vec![denial(n, &format!("/{n}"))]));
        }
        assert_eq!(denials.kinds().len(), MAX_KINDS);
        assert!(denials.kinds().iter().all(|counted| counted.kind.request != "GET /0"));
    }
}
