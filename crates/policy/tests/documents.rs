//! Documents: what is read, and what is refused, with file, line, column and the nearest valid name.
#![allow(clippy::unwrap_used)]

mod random;

#[path = "documents/refused.rs"]
mod refused;
#[path = "documents/yaml.rs"]
mod yaml;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use postern_policy::document::{self, DocumentError};
use postern_policy::{
    Action, AuthorizationPolicy, Compiled, Condition, Operation, Rule, Source, StringMatch, TextKey, UserMatch, Values,
};
use proptest::prelude::*;
use random::{Choices, bytes, text_of};

fn read(text: &str) -> Result<Vec<AuthorizationPolicy>, Vec<DocumentError>> {
    let objects = document::parse("p.yaml", text)?;
    objects.iter().map(AuthorizationPolicy::from_object).collect()
}

/// A policy with this spec, in flow style after two lines of head: `spec: ...` stands in line 4.
fn with_spec(spec: &str) -> Result<AuthorizationPolicy, Vec<DocumentError>> {
    let head = "apiVersion: postern.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n";
    read(&format!("{head}spec: {spec}\n")).map(|mut policies| policies.remove(0))
}

/// As the field's own name in the document, with its values.
fn written(policy: &AuthorizationPolicy) -> String {
    fn list(out: &mut String, name: &str, values: impl Iterator<Item = String>) {
        let values: Vec<_> = values.map(|value| format!("'{value}'")).collect();
        if !values.is_empty() {
            write!(out, "{name}: [{}], ", values.join(", ")).unwrap();
        }
    }
    fn shown<T: ToString>(out: &mut String, name: &str, values: &[T]) {
        list(out, name, values.iter().map(T::to_string));
    }
    fn both<T>(out: &mut String, values: &Values<T>, one: impl Fn(&T) -> String) {
        list(out, "values", values.any.iter().map(&one));
        list(out, "notValues", values.none.iter().map(&one));
    }
    let condition = |condition: &Condition| {
        let mut out = format!("key: '{condition}', ");
        match condition {
            Condition::Text(_, values) => both(&mut out, values, text_of),
            Condition::Address(_, values) => both(&mut out, values, ToString::to_string),
            Condition::Port(values) => both(&mut out, values, ToString::to_string),
            Condition::User(values) => both(&mut out, values, ToString::to_string),
            Condition::Age(values) => both(&mut out, values, |seconds| format!("{seconds}s")),
        }
        format!("{{{out}}}, ")
    };
    let texts = |out: &mut String, name, values: &[StringMatch]| list(out, name, values.iter().map(text_of));
    let ports = |out: &mut String, name, values: &[u16]| list(out, name, values.iter().map(u16::to_string));
    let source = |s: &Source| {
        let mut out = String::new();
        texts(&mut out, "principals", &s.principals);
        texts(&mut out, "notPrincipals", &s.not_principals);
        texts(&mut out, "namespaces", &s.namespaces);
        texts(&mut out, "notNamespaces", &s.not_namespaces);
        texts(&mut out, "serviceAccounts", &s.service_accounts);
        texts(&mut out, "notServiceAccounts", &s.not_service_accounts);
        texts(&mut out, "trustDomains", &s.trust_domains);
        texts(&mut out, "notTrustDomains", &s.not_trust_domains);
        shown(&mut out, "requestPrincipals", &s.request_principals);
        shown(&mut out, "notRequestPrincipals", &s.not_request_principals);
        shown(&mut out, "ipBlocks", &s.ip_blocks);
        shown(&mut out, "notIpBlocks", &s.not_ip_blocks);
        shown(&mut out, "remoteIpBlocks", &s.remote_ip_blocks);
        shown(&mut out, "notRemoteIpBlocks", &s.not_remote_ip_blocks);
        format!("{{source: {{{out}}}}}, ")
    };
    let operation = |o: &Operation| {
        let mut out = String::new();
        texts(&mut out, "hosts", &o.hosts);
        texts(&mut out, "notHosts", &o.not_hosts);
        ports(&mut out, "ports", &o.ports);
        ports(&mut out, "notPorts", &o.not_ports);
        texts(&mut out, "methods", &o.methods);
        texts(&mut out, "notMethods", &o.not_methods);
        texts(&mut out, "paths", &o.paths);
        texts(&mut out, "notPaths", &o.not_paths);
        format!("{{operation: {{{out}}}}}, ")
    };
    let rule = |rule: &Rule| {
        let mut out = String::new();
        if !rule.from.is_empty() {
            write!(
                out,
                "from: [{}], ",
                rule.from.iter().map(|s| source(s)).collect::<String>()
            )
            .unwrap();
        }
        if !rule.to.is_empty() {
            write!(
                out,
                "to: [{}], ",
                rule.to.iter().map(|o| operation(o)).collect::<String>()
            )
            .unwrap();
        }
        if !rule.when.is_empty() {
            write!(out, "when: [{}], ", rule.when.iter().map(condition).collect::<String>()).unwrap();
        }
        format!("{{{out}}}, ")
    };
    let action = policy.action.as_str();
    let provider = match policy.action {
        Action::Custom => format!("provider: {{name: {}}}, ", policy.provider),
        Action::Allow | Action::Deny | Action::Audit => String::new(),
    };
    let rules: String = policy.rules.iter().map(rule).collect();
    format!("{{action: {action}, {provider}rules: [{rules}]}}")
}

/// What no document can say is replaced by what one can.
fn as_documents_can_say(policy: &mut AuthorizationPolicy) {
    let account = |account: &mut StringMatch| {
        // A bare `*` is completed to any account of the policy's own namespace.
        if *account == StringMatch::Present {
            *account = StringMatch::Wildcard(vec!["shop/".to_owned(), String::new()]);
        }
    };
    let user = |user: &mut UserMatch| {
        let (issuer, subject) = (text_of(&user.issuer), text_of(&user.subject));
        let inside = issuer.starts_with('*') && issuer.len() > 1 && subject.ends_with('*') && subject.len() > 1;
        if subject.contains('/') || issuer.ends_with(['/', ':']) || inside {
            (user.issuer, user.subject) = (StringMatch::Present, StringMatch::Present);
        }
    };
    for rule in &mut policy.rules {
        for source in rule.from.iter_mut().map(Arc::make_mut) {
            source.service_accounts.iter_mut().for_each(account);
            source.not_service_accounts.iter_mut().for_each(account);
            source.request_principals.iter_mut().for_each(user);
            source.not_request_principals.iter_mut().for_each(user);
        }
        for condition in &mut rule.when {
            match condition {
                Condition::Text(TextKey::SourceServiceAccount, values) => {
                    values.any.iter_mut().chain(&mut values.none).for_each(account);
                }
                Condition::User(values) => values.any.iter_mut().chain(&mut values.none).for_each(user),
                Condition::Text(..) | Condition::Address(..) | Condition::Port(_) | Condition::Age(_) => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_model_holds_is_what_a_document_says(bytes in bytes()) {
        for mut policy in Choices::new(&bytes).policies() {
            as_documents_can_say(&mut policy);
            let text = written(&policy);
            let mut read = with_spec(&text).map_err(|errors| TestCaseError::fail(format!("{text}\n{errors:?}")))?;
            // Names and places are this test's, not the document's.
            (read.name, read.place) = (policy.name.clone(), policy.place.clone());
            for (read, rule) in read.rules.iter_mut().zip(&policy.rules) {
                read.place = rule.place.clone();
            }
            prop_assert_eq!(read, policy, "{}", text);
        }
    }
}

#[test]
fn both_names_of_the_kind_mean_the_same() {
    let document = |version: &str| {
        let text = format!(
            "apiVersion: {version}\nkind: AuthorizationPolicy\nmetadata:\n  name: p\n  namespace: shop\n\
             spec:\n  rules:\n  - {{}}\n"
        );
        read(&text).unwrap()
    };
    let ours = document("postern.dev/v1alpha1");
    assert_eq!(ours, document("security.istio.io/v1"));
    assert_eq!(ours, document("security.istio.io/v1beta1"));
}

/// From Istio's own reference and task pages, with what `kubectl get -o yaml` adds.
const ISTIO: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy"}
  creationTimestamp: "2025-11-04T10:11:12Z"
  generation: 2
  labels: {app: httpbin}
  managedFields:
  - apiVersion: security.istio.io/v1
    fieldsType: FieldsV1
    fieldsV1: {"f:spec": {"f:action": {}}}
  name: httpbin
  namespace: foo
  resourceVersion: "12345"
  uid: 5f3e7a3e-3f0e-4a5d-9d5c-2f6e0c8b1a11
spec:
  action: ALLOW
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/default/sa/curl"]
    - source:
        namespaces: ["test"]
    to:
    - operation:
        methods: ["GET"]
        paths: ["/info*"]
    - operation:
        methods: ["POST"]
        paths: ["/data"]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: allow-nothing
  namespace: foo
spec:
  {}
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata:
  name: tcp-policy
  namespace: foo
spec:
  selector:
    matchLabels:
      app: tcp-echo
  action: DENY
  rules:
  - to:
    - operation:
        ports: ["9000", "9001"]
  - from:
    - source:
        notNamespaces: ["foo"]
    to:
    - operation:
        hosts: ["*.Example.com", "example.com:*"]
        notPaths: ["/healthz", "/a/{*}/b/{**}"]
status: {}
"#;

#[test]
fn istio_documents_are_read_as_they_are() {
    let policies = read(ISTIO).unwrap();
    let [httpbin, nothing, tcp] = &policies[..] else {
        panic!("{policies:#?}")
    };

    assert_eq!((httpbin.namespace.as_str(), httpbin.name.as_str()), ("foo", "httpbin"));
    assert_eq!((httpbin.action, httpbin.rules.len()), (Action::Allow, 1));
    assert_eq!(httpbin.rules[0].from.len(), 2);
    assert_eq!(httpbin.rules[0].to[0].paths, [StringMatch::Prefix("/info".to_owned())]);
    assert_eq!(httpbin.rules[0].place.to_string(), "p.yaml:22:5");

    assert_eq!((nothing.action, nothing.rules.len()), (Action::Allow, 0));
    assert!(nothing.selector.is_empty());

    assert_eq!(
        tcp.selector,
        BTreeMap::from([("app".to_owned(), "tcp-echo".to_owned())])
    );
    assert_eq!((tcp.action, tcp.rules.len()), (Action::Deny, 2));
    assert_eq!(tcp.rules[0].to[0].ports, [9000, 9001]);
    assert_eq!(
        tcp.rules[1].to[0].hosts,
        [
            StringMatch::Suffix(".example.com".to_owned()),
            StringMatch::Prefix("example.com:".to_owned())
        ]
    );
    assert_eq!(tcp.rules[1].index, 1);
}

#[test]
fn a_policy_selects_by_namespace_and_labels() {
    let labels = |pairs: &[(&str, &str)]| {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect::<BTreeMap<_, _>>()
    };
    let own = with_spec("{selector: {matchLabels: {app: cart, tier: back}}, rules: [{}]}").unwrap();
    let cart = labels(&[("app", "cart"), ("tier", "back"), ("x", "y")]);
    assert!(own.selects("postern-system", "shop", &cart));
    assert!(!own.selects("postern-system", "pay", &cart));
    assert!(!own.selects("postern-system", "shop", &labels(&[("app", "cart")])));
    assert!(!own.selects("postern-system", "shop", &labels(&[("app", "cart"), ("tier", "front")])));
    assert!(
        own.selects("shop", "pay", &cart),
        "the root namespace's policies are everywhere"
    );
    for all in ["{}", "{selector: {}}", "{selector: {matchLabels: {}}}"] {
        assert!(with_spec(all).unwrap().selects("root", "shop", &labels(&[])), "{all}");
    }
}

#[test]
fn a_policy_that_cannot_be_read_denies_what_it_selects() {
    let stand_in = |spec: &str| {
        let text = format!(
            "apiVersion: postern.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
        );
        let object = document::parse("p.yaml", &text).unwrap().remove(0);
        assert!(AuthorizationPolicy::from_object(&object).is_err(), "{spec}");
        AuthorizationPolicy::deny_all_for(&object, "shop")
    };
    let labelled = stand_in("{selector: {matchLabels: {app: cart}}, rules: [{form: []}]}");
    assert_eq!(
        labelled.selector,
        BTreeMap::from([("app".to_owned(), "cart".to_owned())])
    );
    for broad in [
        "{selector: {matchLabel: {app: cart}}}",
        "{selector: {matchLabels: {app: 1}}}",
        "{selector: [app]}",
        "{selector: }",
        "[]",
        "text",
    ] {
        assert!(stand_in(broad).selector.is_empty(), "{broad}");
    }
    let allow_all = with_spec("{rules: [{}]}").unwrap();
    let asked = Choices::new(&[]).asked();
    let decision = |policies| Compiled::new(policies).decide(&asked.request()).reason;
    assert_eq!(decision(vec![allow_all.clone()]), postern_policy::Reason::AllowRule);
    assert_eq!(decision(vec![allow_all, labelled]), postern_policy::Reason::DenyRule);
}
