use postern_identity::TrustDomain;
use postern_policy::lint::Code;

use super::super::*;
use crate::Mesh;

const CUSTOM: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: postern.dev/v1alpha1
kind: Workload
metadata: {name: cart, namespace: shop}
spec: {serviceAccount: cart, ports: [{number: 80, protocol: HTTP}]}
---
apiVersion: postern.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: open, namespace: shop}
spec: {rules: [{}]}
---
apiVersion: postern.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: asks, namespace: shop}
spec:
  action: CUSTOM
  provider: {name: opa}
  rules: [{to: [{operation: {paths: [/asked]}}]}]
";
const OPA: &str = "---
apiVersion: postern.dev/v1alpha1
kind: Authorizer
metadata: {name: opa, namespace: shop}
spec: {extAuthz: {address: '127.0.0.1:9191'}}
";

fn read(text: &str) -> (tempfile::TempDir, Offline) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), text).unwrap();
    let domain = TrustDomain::parse("cluster.local").unwrap();
    let offline = Offline::read(&[dir.path().to_owned()], &Mesh::named(domain)).unwrap();
    (dir, offline)
}

fn ask(offline: &Offline, path: &str) -> Answer {
    let question = Question {
        from: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
        to: "shop/cart".to_owned(),
        http: Some(Asked {
            method: "GET".to_owned(),
            path: path.to_owned(),
            ..Asked::default()
        }),
        ..Question::default()
    };
    offline.answer(&question).unwrap()
}

#[test]
fn a_custom_policy_without_its_provider_is_denied_and_linted() {
    let (_dir, offline) = read(CUSTOM);
    let denied = ask(&offline, "/asked");
    assert_eq!(denied.verdict, Some(Verdict::Deny));
    assert!(
        denied.because.contains("no readable Authorizer `opa`"),
        "{}",
        denied.because
    );
    assert_eq!(
        ask(&offline, "/other").verdict,
        Some(Verdict::Allow),
        "it denies what it matches"
    );
    let findings = offline.lint();
    let found: Vec<_> = findings
        .iter()
        .filter(|finding| finding.code == Code::NoProvider)
        .collect();
    assert_eq!((found.len(), found[0].policy.as_str()), (1, "shop/asks"));

    let (_dir, offline) = read(&format!("{CUSTOM}{OPA}"));
    let asked = ask(&offline, "/asked");
    assert_eq!(asked.verdict, None);
    assert!(asked.because.contains("provider opa is asked"), "{}", asked.because);
    assert!(offline.lint().iter().all(|finding| finding.code != Code::NoProvider));
}
