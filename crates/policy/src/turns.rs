//! Long work that gives way: a thread that reads or compiles thousands of rules is asked, between two of them, whether others
//! should run first.
//!
//! What giving way means is the caller's affair (`postern_telemetry::give_way`); a thread that never said so goes on.

use std::cell::Cell;

thread_local! {
    static BETWEEN: Cell<Option<fn()>> = const { Cell::new(None) };
}

/// From now on this thread calls `between` between two pieces of its work, each some microseconds long.
pub fn call(between: fn()) {
    BETWEEN.set(Some(between));
}

/// Between two rules.
pub fn next() {
    if let Some(between) = BETWEEN.get() {
        between();
    }
}

/// Frees things one by one.
pub fn free<T>(things: impl IntoIterator<Item = T>) {
    for thing in things {
        drop(thing);
        next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AuthorizationPolicy, Compiled, document};

    thread_local! {
        static TURNS: Cell<usize> = const { Cell::new(0) };
    }

    fn turns(work: impl FnOnce()) -> usize {
        TURNS.set(0);
        work();
        TURNS.get()
    }

    #[test]
    fn reading_copying_compiling_and_freeing_rules_give_way_between_two_of_them() {
        const RULES: usize = 50;
        let rule = "  - from: [{source: {namespaces: [shop]}}]\n    to: [{operation: {paths: [/a/*]}}]\n";
        let yaml = format!(
            "apiVersion: postern.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n  rules:\n{}",
            rule.repeat(RULES)
        );
        let read = || {
            let object = document::parse("p.yaml", &yaml).unwrap_or_default().remove(0);
            AuthorizationPolicy::from_object(&object).ok()
        };
        let mut policy = None;
        assert_eq!(
            turns(|| policy = read()),
            0,
            "this thread has not said that it gives way"
        );
        call(|| TURNS.set(TURNS.get() + 1));
        assert!(turns(|| policy = read()) >= RULES);
        let mut copy = None;
        assert!(turns(|| copy = policy.clone()) >= RULES);
        assert!(turns(|| drop(copy)) >= RULES, "whoever frees a rule does");
        let object = document::parse("p.yaml", &yaml).unwrap_or_default().remove(0);
        assert!(turns(|| drop(object)) >= RULES, "and whoever frees a document");
        let mut compiled = None;
        assert!(turns(|| compiled = policy.take().map(|policy| Compiled::new(vec![policy]))) >= RULES);
        assert!(turns(|| compiled.take().into_iter().for_each(Compiled::free)) >= RULES);
    }
}
