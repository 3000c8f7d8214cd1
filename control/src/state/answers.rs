//! Answers to what proxies ask for, made once per state: many ask for the same, and few answers change with a state.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use postern_api::control::v1::destination::State as Answer;

use crate::model::Model;
use crate::snapshot::Target;

/// A name means something else in each namespace, an address does not.
type Question = (Option<String>, Target);
type Known = HashMap<Question, Arc<Answer>>;

/// See the module. What nobody asks any more is forgotten with the next state.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    known: Mutex<Known>,
    /// Of the state before: an answer that is still the same is the same object, which is quick to see.
    before: Known,
}

impl Answers {
    pub(super) fn after(previous: &Self) -> Self {
        let before = previous.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Self {
            before,
            known: Mutex::default(),
        }
    }

    pub(super) fn get(&self, model: &Model, target: &Target, namespace: &str) -> Arc<Answer> {
        let scope = match target {
            Target::Name(..) => Some(namespace.to_owned()),
            Target::Address(..) => None,
        };
        let question = (scope, target.clone());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = known.get(&question) {
            return Arc::clone(answer);
        }
        let answer = target.answer(model, namespace);
        let answer = match self.before.get(&question) {
            Some(before) if **before == answer => Arc::clone(before),
            Some(_) | None => Arc::new(answer),
        };
        known.insert(question, Arc::clone(&answer));
        answer
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_answer_that_stays_is_the_same_object_and_a_name_is_its_namespaces() {
        let model = Model::default();
        let address = Target::Address("10.0.0.1".parse().unwrap(), 80);
        let name = Target::Name("cart".to_owned(), 80);
        let first = Answers::default();
        let answer = first.get(&model, &address, "shop");
        assert!(Arc::ptr_eq(&answer, &first.get(&model, &address, "bank")));
        assert!(!Arc::ptr_eq(
            &first.get(&model, &name, "shop"),
            &first.get(&model, &name, "bank")
        ));
        let second = Answers::after(&first);
        assert!(Arc::ptr_eq(&answer, &second.get(&model, &address, "shop")));
        // Not asked in the state between: made anew.
        let third = Answers::after(&Answers::after(&second));
        assert!(!Arc::ptr_eq(&answer, &third.get(&model, &address, "shop")));
    }
}
