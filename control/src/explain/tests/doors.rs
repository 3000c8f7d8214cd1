use postern_identity::TrustDomain;
use postern_policy::document::parse;

use super::super::*;
use crate::documents::decode;
use crate::source::Load;

const SHOP: &str = "
{apiVersion: postern.dev/v1alpha1, kind: Workload, metadata: {name: cart, namespace: shop, labels: {app: cart}}, spec: {serviceAccount: cart, ports: [{number: 80}, {number: 81}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: all, namespace: shop}, spec: {rules: [{}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: web, namespace: byid}, spec: {rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}}
";

fn door(namespace: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: door, namespace: {namespace}}}, spec: {{{spec}}}}}\n"
    )
}

fn ask(documents: &str, from: &str, to: &str, port: Option<u16>) -> Answer {
    let domain = TrustDomain::parse("cluster.local").unwrap();
    let objects = parse("x.yaml", &format!("{SHOP}{documents}")).unwrap();
    let documents = objects.iter().map(|object| decode(object, &domain).unwrap()).collect();
    let load = Load {
        documents,
        ..Load::default()
    };
    let question = Question {
        from: from.to_owned(),
        to: to.to_owned(),
        port,
        ..Question::default()
    };
    answer(
        &Model::build("postern-system", &postern_policy::Aliases::default(), &load),
        &question,
    )
    .unwrap()
}

const CART: &str = "selector: {matchLabels: {app: cart}}";
const MONITOR: &str =
    "---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {postern.dev/mode: monitor}}}\n";

#[test]
fn plaintext_is_refused_before_any_rule_where_mutual_tls_alone_is_taken() {
    for (documents, verdict, says) in [
        (
            String::new(),
            Verdict::Deny,
            "denied: in protect nobody is served without mutual TLS",
        ),
        (MONITOR.to_owned(), Verdict::Allow, "allowed"),
        (
            format!("{MONITOR}{}", door("shop", "mtls: {mode: STRICT}")),
            Verdict::Deny,
            "denied: shop/door (x.yaml:",
        ),
        (
            door("shop", "mtls: {mode: PERMISSIVE}"),
            Verdict::Deny,
            "in protect nobody",
        ),
        (
            door("shop", &format!("{CART}, mtls: {{mode: PERMISSIVE}}")),
            Verdict::Allow,
            "allowed",
        ),
    ] {
        let answer = ask(&documents, "plaintext", "shop/cart", Some(80));
        assert_eq!(answer.verdict, Some(verdict), "{documents}: {}", answer.because);
        assert!(answer.because.contains(says), "{documents}: {}", answer.because);
        assert_eq!(answer.is_at_the_door(), verdict == Verdict::Deny);
        // Whoever proves itself is decided by rules.
        let web = ask(
            &documents,
            "spiffe://cluster.local/ns/shop/sa/web",
            "shop/cart",
            Some(80),
        );
        assert_eq!(
            (web.verdict, web.is_at_the_door()),
            (Some(Verdict::Allow), false),
            "{documents}"
        );
    }
}

#[test]
fn where_plaintext_alone_is_taken_nobody_has_an_identity() {
    let own = "---\n{apiVersion: postern.dev/v1alpha1, kind: Workload, metadata: {name: cart, namespace: byid, labels: {app: cart}}, spec: {serviceAccount: cart, ports: [{number: 80}]}}\n";
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    assert_eq!(ask(own, web, "byid/cart", None).verdict, Some(Verdict::Allow));
    let in_clear = format!("{own}{}", door("byid", &format!("{CART}, mtls: {{mode: DISABLE}}")));
    let answer = ask(&in_clear, web, "byid/cart", None);
    assert_eq!(answer.verdict, Some(Verdict::Deny));
    assert!(
        answer
            .because
            .contains("takes plaintext alone on port 80: nobody has an identity there"),
        "{}",
        answer.because
    );
}

#[test]
fn what_the_door_hangs_on_is_named() {
    let by_port = door("shop", &format!("{CART}, portLevelMtls: {{81: {{mode: PERMISSIVE}}}}"));
    let answer = ask(&by_port, "plaintext", "shop/cart", None);
    assert_eq!(answer.verdict, None);
    assert!(
        answer.because.contains("the port is not told, and shop/door"),
        "{}",
        answer.because
    );
    assert_eq!(
        ask(&by_port, "plaintext", "shop/cart", Some(81)).verdict,
        Some(Verdict::Allow)
    );
    assert_eq!(
        ask(&by_port, "plaintext", "shop/cart", Some(80)).verdict,
        Some(Verdict::Deny)
    );
    // A workload that no document describes.
    let id = "spiffe://cluster.local/ns/shop/sa/other";
    let answer = ask(&by_port, "plaintext", id, Some(81));
    assert_eq!(answer.verdict, None);
    assert!(
        answer.because.ends_with("hangs on its label app=cart"),
        "{}",
        answer.because
    );
    assert_eq!(
        ask(&by_port, "plaintext", id, Some(80)).verdict,
        Some(Verdict::Deny),
        "whatever its labels are"
    );
}
