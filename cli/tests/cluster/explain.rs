//! `postern explain --cluster`.

use super::played::Cluster;
use super::{Said, json, postern};

const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {postern.dev/mode: protect}}
---
apiVersion: postern.dev/v1alpha1
kind: Workload
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {serviceAccount: cart, ports: [{number: 80, name: http, listen: 8001, app: 8002}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
    to: [{operation: {methods: [GET], paths: [/items/*]}}]
  - to: [{operation: {paths: [/mine]}}]
    when:
    - {key: 'request.auth.claims[sub]', values: [ann]}
    - {key: 'request.headers[x-shop]', values: [open]}
  - to: [{operation: {hosts: [cart.example]}}]
";

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// Over files, over the cluster, whatever is asked.
fn both(cluster: &Cluster, asked: &[&str]) -> (Said, Said) {
    let offline = [&["explain", "--policies", "shop.yaml"], asked].concat();
    let live = [&["explain", "--cluster", "--kubeconfig", "../kubeconfig"], asked].concat();
    (postern(&cluster.mesh(), &offline), postern(&cluster.mesh(), &live))
}

#[test]
fn over_files_and_over_a_cluster_a_question_gets_the_same_answer_and_exit_status() {
    let cluster = Cluster::with(&[("shop.yaml", SHOP)]);
    std::fs::write(
        cluster.mesh().join("../ann.json"),
        r#"{"iss": "https://id.example", "sub": "ann"}"#,
    )
    .unwrap();
    let to_cart = ["--from", WEB, "--to", "shop/cart"];
    let get = ["--method", "GET", "--host", "cart.shop", "--path"];
    let cases: [(&[&str], i32); 10] = [
        (&[&to_cart[..], &get, &["/items/7"]].concat(), 0),
        (&[&to_cart[..], &get, &["/"]].concat(), 1),
        (&["--from", "plaintext", "--to", "shop/cart"], 1),
        (&to_cart, 1),
        (&[&to_cart[..], &["--method", "GET", "--path", "/"]].concat(), 2),
        (
            &[
                &to_cart[..],
                &get,
                &["/mine", "--claims", "../ann.json", "--header", "X-Shop: open"],
                &[
                    "--from-ip",
                    "10.0.0.9",
                    "--to-ip",
                    "10.0.0.8",
                    "--sni",
                    "Cart.Shop",
                    "--at",
                    "2026-01-01T00:00:00Z",
                ],
            ]
            .concat(),
            0,
        ),
        (
            &[
                &[
                    "--from",
                    WEB,
                    "--to",
                    "shop/new",
                    "--to-label",
                    "app=cart",
                    "--port",
                    "80",
                ],
                &get[..],
                &["/items/7", "--from-label", "app=web"],
            ]
            .concat(),
            0,
        ),
        // Questions that have no answer.
        (&["--from", WEB, "--to", "shop/carr"], 2),
        (&["--from", WEB, "--to", "cart"], 2),
        (&[&to_cart[..], &get, &["/a%zz"]].concat(), 2),
    ];
    for (asked, code) in cases {
        let (offline, live) = both(&cluster, asked);
        assert_eq!(offline.0, code, "{asked:?}: {offline:?}");
        assert_eq!(live, offline, "{asked:?}");
        let (offline, live) = both(&cluster, &[asked, &["--output", "json"]].concat());
        assert_eq!(live, offline, "{asked:?}");
        let verdict = &json(&live.1)["verdict"];
        assert_eq!(
            verdict.as_str(),
            [Some("allowed"), Some("denied"), None][usize::try_from(code).unwrap()]
        );
    }
}

#[test]
fn who_may_not_ask_hears_so_and_a_cluster_that_is_away_gives_no_verdict() {
    let cluster = Cluster::with(&[("shop.yaml", SHOP)]);
    let asked = [
        "--from",
        WEB,
        "--to",
        "shop/cart",
        "--method",
        "GET",
        "--path",
        "/items/7",
    ];
    let of = |more: &[&str]| {
        let arguments = [
            &["explain", "--cluster", "--kubeconfig", "../kubeconfig"],
            &asked[..],
            more,
        ]
        .concat();
        postern(&cluster.mesh(), &arguments)
    };
    let (code, out, err) = of(&["--context", "frank"]);
    assert_eq!((code, out.as_str()), (2, ""), "{err}");
    assert!(
        err.starts_with("postern explain: explanations.view.postern.dev is forbidden: User \"frank\" cannot create"),
        "{err}"
    );
    let (code, out, _) = of(&["--context", "frank", "--output", "json"]);
    assert_eq!((code, &json(&out)["verdict"]), (2, &serde_json::Value::Null), "{out}");
    for context in ["away", "bare", "nowhere"] {
        let (code, out, err) = of(&["--context", context]);
        assert_eq!((code, out.as_str()), (2, ""), "{context}: {err}");
        assert!(err.starts_with("postern explain: "), "{context}: {err}");
        assert!(context != "bare" || err.contains("no view.postern.dev API"), "{err}");
    }
}

#[test]
fn one_question_goes_to_one_place() {
    let directory = tempfile::tempdir().unwrap();
    let asked = ["--from", WEB, "--to", "shop/cart"];
    for (over, says) in [
        (&["--cluster", "--policies", "a.yaml"][..], "cannot be used with"),
        (&["--cluster", "--control", "a.sock"], "cannot be used with"),
        (&["--cluster", "--trust-domain", "mesh.example"], "cannot be used with"),
        (&["--policies", "a.yaml", "--context", "x"], "cannot be used with"),
        (&["--control", "a.sock", "--kubeconfig", "x"], "cannot be used with"),
        (&[], "--policies <PATH>...|--control <SOCKET>|--cluster"),
    ] {
        let (code, _, err) = postern(directory.path(), &[&["explain"], over, &asked].concat());
        assert_eq!(code, 2, "{over:?}: {err}");
        assert!(err.contains(says), "{over:?}: {err}");
    }
}
