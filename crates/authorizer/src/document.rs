//! What an [`Authorizer`] document asks, looked at before it is taken: Rego is compiled and linted where that is built in.

use postern_policy::Authorizer;
#[cfg(feature = "rego")]
use postern_policy::authorizer::{Asks, Rego};
use postern_policy::document::{DocumentError, Object};

#[cfg(feature = "rego")]
use crate::rego::{RegoError, RegoPolicy, Source};

/// Is Rego looked at by this build?
pub const LOOKS_AT_REGO: bool = cfg!(feature = "rego");

/// Reads a document, and looks at its Rego.
pub fn read(object: &Object) -> Result<Authorizer, Vec<DocumentError>> {
    let authorizer = Authorizer::from_object(object)?;
    #[cfg(feature = "rego")]
    if let Asks::Rego(rego) = &authorizer.asks {
        RegoPolicy::load(&Source::of(rego)).map_err(|error| vec![placed(&authorizer, rego, &error)])?;
    }
    Ok(authorizer)
}

#[cfg(feature = "rego")]
impl Source {
    /// As a document gives it.
    #[must_use]
    pub fn of(rego: &Rego) -> Self {
        let modules = rego.modules.iter();
        Self {
            modules: modules
                .map(|module| (module.name.clone(), module.text.clone()))
                .collect(),
            query: rego.query.clone(),
            data: rego.data.clone(),
            v0: rego.v0,
            limit: rego.timeout,
        }
    }
}

/// At the text of its module, whose lines begin where YAML says; the message names the line inside.
#[cfg(feature = "rego")]
fn placed(authorizer: &Authorizer, rego: &Rego, error: &RegoError) -> DocumentError {
    let module = rego
        .modules
        .iter()
        .enumerate()
        .find(|(_, module)| error.module.as_ref() == Some(&module.name));
    let (place, path) = match module {
        Some((at, module)) => (module.place.clone(), format!("spec.rego.modules[{at}].text")),
        None => (authorizer.place.clone(), "spec.rego".to_owned()),
    };
    DocumentError {
        place,
        path,
        what: error.to_string(),
        nearest: None,
    }
}

#[cfg(all(test, feature = "rego"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use postern_policy::document::parse;

    use super::*;

    fn errors(text: &str) -> Vec<String> {
        let indented: String = text.lines().map(|line| format!("        {line}\n")).collect();
        let document = format!(
            "apiVersion: postern.dev/v1alpha1\nkind: Authorizer\nmetadata: {{name: a, namespace: shop}}\nspec:\n  rego:\n    \
             modules:\n    - name: authz.rego\n      text: |\n{indented}"
        );
        let object = parse("a.yaml", &document).unwrap().remove(0);
        read(&object)
            .err()
            .unwrap_or_default()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn rego_that_means_something_is_taken() {
        assert_eq!(
            errors(
                "package envoy.authz\ndefault allow := false\nallow if input.attributes.request.http.method == \"GET\""
            ),
            [""; 0]
        );
    }

    #[test]
    fn rego_that_does_not_is_refused_where_it_stands() {
        for (text, why) in [
            (
                "package envoy.authz\nallow := (",
                "spec.rego.modules[0].text: module `authz.rego`, line 3, column 1: expecting expression",
            ),
            ("package envoy.authz\nallow if http.send({})", "http.send"),
            ("package envoy.authz\nallow if starts_with(\"a\", \"b\")", "startswith"),
            ("package other\nallow := true", "names no rule"),
        ] {
            let errors = errors(text);
            assert!(errors.len() == 1 && errors[0].contains(why), "{text}: {errors:?}");
            assert!(errors[0].starts_with("a.yaml:"), "{errors:?}");
        }
    }
}
