//! `postern explain` and `postern lint` as a person or a pipeline starts them.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {postern.dev/mode: protect}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
    to: [{operation: {methods: [GET], paths: [/items/*]}}]
";

const WEB: [&str; 4] = ["--from", "spiffe://cluster.local/ns/shop/sa/web", "--to", "shop/cart"];
const GET: [&str; 4] = ["--method", "GET", "--path", "/items/7"];

struct Files(TempDir);

impl Files {
    fn with(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        Self(directory)
    }

    /// Exit status, standard output, standard error.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_postern"))
            .args(arguments)
            .current_dir(&self.0)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn explain(&self, more: &[&str]) -> (i32, String, String) {
        self.run(&[&["explain", "--policies", "shop.yaml"], &WEB[..], more].concat())
    }

    fn json(&self, more: &[&str]) -> (i32, Value) {
        let (code, out, _) = self.explain(&[more, &["--output", "json"]].concat());
        (code, serde_json::from_str(&out).unwrap())
    }
}

/// Policies that were written for a mesh of another name, as Istio's installations write `cluster.local`.
#[test]
fn what_policies_say_of_one_name_of_the_trust_domain_they_say_of_all() {
    let files = Files::with(&[("shop.yaml", SHOP)]);
    let asked = [
        "explain",
        "--policies",
        "shop.yaml",
        "--to",
        "shop/cart",
        "--to-label",
        "app=cart",
    ];
    let ours = [
        "--from",
        "spiffe://mesh.example/ns/shop/sa/web",
        "--trust-domain",
        "mesh.example",
    ];
    let same = [
        "--trust-domain-alias",
        "old.example",
        "--trust-domain-alias",
        "cluster.local",
    ];
    let (code, ..) = files.run(&[&asked[..], &ours, &GET].concat());
    assert_eq!(code, 1);
    let (code, out, _) = files.run(&[&asked[..], &ours, &GET, &same].concat());
    assert_eq!(code, 0, "{out}");
    // Nobody else becomes one of ours by it.
    let other = [
        "--from",
        "spiffe://mesh.other/ns/shop/sa/web",
        "--trust-domain",
        "mesh.example",
    ];
    let (code, out, _) = files.run(&[&asked[..], &other, &GET, &same].concat());
    assert_eq!(code, 1, "{out}");
    let (code, _, said) = files.run(&[&asked[..], &ours, &GET, &["--trust-domain-alias", "Old"]].concat());
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("--trust-domain-alias"), "{said}");
}

#[test]
fn the_exit_status_is_the_verdict_and_the_words_name_the_rule() {
    let files = Files::with(&[("shop.yaml", SHOP)]);
    let to_cart = ["--to-label", "app=cart"];
    let (code, out, _) = files.explain(&[&to_cart[..], &GET].concat());
    assert_eq!(
        (code, out.as_str()),
        (0, "allowed by rule 0 of shop/cart (shop.yaml:11:5)\n")
    );
    let post = ["--method", "POST", "--path", "/items/7"];
    let (code, out, _) = files.explain(&[&to_cart[..], &post].concat());
    assert_eq!(code, 1);
    let said =
        "denied: no ALLOW rule matches\n  nearest: rule 0 of shop/cart (shop.yaml:11:5): `methods` does not match\n";
    assert_eq!(out, said);
}

#[cfg(not(feature = "kubernetes"))]
#[test]
fn a_build_without_kubernetes_has_no_option_for_it() {
    let files = Files::with(&[("shop.yaml", SHOP)]);
    let (code, _, err) = files.run(&[&["explain", "--cluster"], &WEB[..]].concat());
    assert_eq!(code, 2);
    assert!(err.contains("unexpected argument '--cluster'"), "{err}");
}

#[test]
fn what_cannot_be_told_is_named_and_is_neither_yes_nor_no() {
    let files = Files::with(&[("shop.yaml", SHOP)]);
    let (code, _, err) = files.explain(&GET);
    assert_eq!(code, 2);
    assert!(err.contains("no document describes workload shop/cart"), "{err}");
    let (code, out, _) = files.explain(&[&["--to-label", "tier=back"], &GET[..]].concat());
    assert_eq!(code, 2);
    assert_eq!(
        out,
        "undecided: whether shop/cart (shop.yaml:5:1) selects the workload hangs on its label app=cart\n"
    );
}

#[test]
fn the_json_has_the_verdict_the_rule_and_the_field_that_missed() {
    let files = Files::with(&[("shop.yaml", SHOP)]);
    let to_cart = ["--to-label", "app=cart"];
    let (code, json) = files.json(&[&to_cart[..], &GET].concat());
    assert_eq!((code, &json["verdict"]), (0, &Value::from("allowed")));
    assert_eq!(json["rule"]["policy"], "cart");
    let (code, json) = files.json(&[&to_cart[..], &["--method", "GET", "--path", "/"]].concat());
    assert_eq!((code, &json["verdict"]), (1, &Value::from("denied")));
    assert_eq!(json["reason"], "no_allow_rule");
    assert_eq!(json["nearest"]["field"], "paths");
    assert_eq!(json["mode"], "protect");
}

#[test]
fn a_question_or_a_document_that_is_wrong_is_told_with_its_place() {
    let bent = SHOP.replace("paths:", "path:");
    let files = Files::with(&[("shop.yaml", SHOP), ("bent.yaml", &bent), ("list.json", "[]")]);
    let cases: [(&[&str], &str); 5] = [
        (&["--policies", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (
            &["--policies", "bent.yaml"],
            "bent.yaml:12:39: spec.rules[0].to[0].operation: unknown field `path`; did you mean `paths`?",
        ),
        (&["--path", "/a%zz", "--method", "GET"], "the path `/a%zz` is refused"),
        (
            &["--path", "/", "--method", "GET", "--claims", "list.json"],
            "list.json: claims are a JSON object",
        ),
        (&["--control", "nowhere.sock"], "nowhere.sock"),
    ];
    for (more, expected) in cases {
        let mut arguments = vec!["explain"];
        if !more[0].starts_with("--policies") && !more[0].starts_with("--control") {
            arguments.extend(["--policies", "shop.yaml"]);
        }
        arguments.extend(WEB);
        arguments.extend(["--to-label", "app=cart"]);
        arguments.extend(more);
        let (code, out, err) = files.run(&arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{more:?}: {err}");
        assert!(err.contains(expected), "{more:?}: {err}");
    }
}

#[test]
fn lint_tells_a_pipeline_by_its_exit_status_and_a_person_by_place_and_nearest_name() {
    let shadowed = format!(
        "{SHOP}  - from: [{{source: {{principals: [cluster.local/ns/shop/sa/web]}}}}]\n    to: [{{operation: {{methods: [GET], paths: [/items/7]}}}}]\n"
    );
    let bent = SHOP.replace("principals:", "principal:");
    let files = Files::with(&[("shop.yaml", SHOP), ("shadowed.yaml", &shadowed), ("bent.yaml", &bent)]);
    assert_eq!(files.run(&["lint", "shop.yaml"]), (0, String::new(), String::new()));
    let (code, out, _) = files.run(&["lint", "shadowed.yaml"]);
    assert_eq!(code, 1, "{out}");
    assert!(out.starts_with("shadowed.yaml:13:5: "), "{out}");
    let (code, out, _) = files.run(&["lint", "bent.yaml"]);
    assert_eq!(code, 2, "{out}");
    assert!(
        out.contains("unknown field `principal`; did you mean `principals`?"),
        "{out}"
    );
    let (code, out, _) = files.run(&["lint", "--output", "json", "shadowed.yaml"]);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json[0]["policy"]), (1, &Value::from("shop/cart")), "{json}");
}
