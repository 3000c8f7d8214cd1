//! RequestAuthentications: what the policy crate reads, and the key sets in them, which only the token crate understands.

use std::sync::Arc;

use postern_policy::RequestAuthentication;
use postern_policy::authentication::{Content, JwtRule, KeySource};
use postern_policy::document::{DocumentError, Object};

use super::DEFAULT_NAMESPACE;

/// Decodes it; a key set in it that no token can be verified with is an error like any other.
pub(super) fn decode(object: &Object) -> Result<RequestAuthentication, Vec<DocumentError>> {
    let document = RequestAuthentication::from_object(object)?;
    let errors = postern_token::key_set::errors_of(&document);
    if errors.is_empty() { Ok(document) } else { Err(errors) }
}

/// `None` if the object is no RequestAuthentication. Nobody knows whose tokens it would believe: none are.
pub(crate) fn refuse_tokens_of_what_it_selects(object: &Object) -> Option<RequestAuthentication> {
    let namespace = object.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    (object.kind == "RequestAuthentication").then(|| RequestAuthentication::refusing_tokens_for(object, namespace))
}

/// What is left of a good document in a file that never was good: it keeps its promises to the app, and believes nobody.
pub(crate) fn believe_nobody(document: &RequestAuthentication) -> RequestAuthentication {
    let headers = match &document.content {
        Content::Rules(rules) => rules
            .iter()
            .flat_map(JwtRule::told_headers)
            .map(ToOwned::to_owned)
            .collect(),
        Content::Unreadable { headers } => headers.clone(),
    };
    RequestAuthentication {
        content: Content::Unreadable { headers },
        ..document.clone()
    }
}

/// With the keys of files in the place of their names. A file that is not there leaves its rule without keys.
pub(crate) fn with_files(
    document: &Arc<RequestAuthentication>,
    mut text_of: impl FnMut(&str) -> Option<String>,
) -> Arc<RequestAuthentication> {
    let is_file = |rule: &JwtRule| matches!(rule.keys, KeySource::File(_));
    if !document.rules().iter().any(is_file) {
        return Arc::clone(document);
    }
    let mut document = RequestAuthentication::clone(document);
    if let Content::Rules(rules) = &mut document.content {
        for rule in rules {
            if let KeySource::File(name) = &rule.keys
                && let Some(text) = text_of(name)
            {
                rule.keys = KeySource::Inline(text);
            }
        }
    }
    Arc::new(document)
}
