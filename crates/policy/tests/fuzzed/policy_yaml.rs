//! Policy documents from files: what is refused is refused with its place; what is read decides, and every other way to
//! look at it (explanation, lint, step-up, an older proxy's part of it) agrees.

use std::collections::BTreeMap;

use postern_policy::lint::lint;
use postern_policy::{
    AuthorizationPolicy, CanonicalHost, CanonicalPath, Compiled, Feature, FeatureSet, Http, NoHeaders,
};
use postern_policy::{Labels, Request, Verdict, document};

/// Panics where it does not hold.
pub fn check(text: &str) {
    let objects = match document::parse("fuzz.yaml", text) {
        Ok(objects) => objects,
        Err(errors) => return refused(&errors),
    };
    let mut policies = Vec::new();
    for object in &objects {
        match AuthorizationPolicy::from_object(object) {
            Ok(policy) => policies.push(policy),
            // Closed: what cannot be understood denies whatever it selects, or all.
            Err(errors) => {
                refused(&errors);
                policies.push(AuthorizationPolicy::deny_all_for(object, "shop"));
            }
        }
    }
    let _ = lint(&policies, "postern-system", None);
    let none = BTreeMap::new();
    let settled = policies.iter().map(|policy| policy.resolved(&none, &none)).collect();
    let compiled = Compiled::new(settled);
    let older: Vec<Compiled> = Feature::ALL
        .into_iter()
        .map(|feature| {
            let features = FeatureSet::all().without(feature);
            let masked = policies.iter().filter_map(|policy| policy.masked(features));
            Compiled::new(masked.map(|policy| policy.resolved(&none, &none)).collect())
        })
        .collect();
    let host = CanonicalHost::parse("cart.shop:80").expect("a host");
    for path in ["/", "/admin", "/admin/x"] {
        let path = CanonicalPath::parse(path).expect("a path");
        for method in ["GET", "POST"] {
            let http = Http {
                method,
                host: &host,
                path: path.as_ref(),
                headers: &NoHeaders,
                user: None,
            };
            look(&compiled, &older, Some(http));
        }
    }
    look(&compiled, &older, None);
}

fn look(compiled: &Compiled, older: &[Compiled], http: Option<Http<'_>>) {
    let request = Request {
        peer_labels: Labels::None,
        port: 80,
        http,
        ..Request::default()
    };
    let decision = compiled.decide(&request);
    if let Some(verdict) = compiled.explain(&request).verdict {
        assert_eq!(verdict, decision.verdict);
    }
    let _ = compiled.step_up(&request);
    let asks = compiled.custom(&request).count();
    for older in older {
        // A provider that the older proxy cannot ask has become a denial.
        let allows = older.decide(&request).verdict == Verdict::Allow;
        assert!(
            !allows || decision.verdict == Verdict::Allow,
            "an older proxy allows more"
        );
        assert!(
            !allows || older.custom(&request).count() >= asks,
            "an older proxy asks fewer"
        );
    }
}

fn refused(errors: &[document::DocumentError]) {
    assert!(!errors.is_empty(), "refused without a reason");
    for error in errors {
        assert!(!error.to_string().is_empty());
    }
}
