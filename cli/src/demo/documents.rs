//! What control is told about the demo's world: the same YAML that a person would write.

use std::fmt::Write as _;

/// The trust domain of the demo.
pub(super) const TRUST_DOMAIN: &str = "cluster.local";
/// The namespace that all services live in.
pub(super) const NAMESPACE: &str = "shop";
/// The file with namespace, workloads and services.
pub(super) const WORLD_FILE: &str = "world.yaml";
/// The file that the viewer is invited to edit.
pub(super) const POLICY_FILE: &str = "policy.yaml";

/// The workloads, in the order of the request's path; each has a proxy of its own.
pub(super) const WORKLOADS: [&str; 5] = ["web", "cart", "payments", "ledger", "mallory"];

/// A workload that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Serving {
    /// Its workload, and its Service.
    pub(super) workload: &'static str,
    /// What policy and clients call the port.
    pub(super) number: u16,
    /// As a Workload document spells it.
    pub(super) protocol: &'static str,
    /// Where its proxy listens.
    pub(super) mesh: u16,
    /// Where the app listens.
    pub(super) app: u16,
}

/// The SPIFFE ID of one of our workloads.
pub(super) fn spiffe_id(workload: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{workload}")
}

/// Namespace, workloads and services. `discover_cart`: cart's door stands open and only records.
pub(super) fn world(serving: &[Serving], discover_cart: bool) -> String {
    let mut yaml = format!(
        "# Who runs where. Written by `postern demo`; {POLICY_FILE} beside it is the one to edit.\n\
         apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n  labels:\n    postern.dev/mode: protect\n"
    );
    if discover_cart {
        yaml.push_str("    postern.dev/allow-loosening: \"true\"\n");
    }
    for workload in WORKLOADS {
        let own = serving.iter().find(|serving| serving.workload == workload);
        let mode = if discover_cart && workload == "cart" {
            ", postern.dev/mode: discover"
        } else {
            ""
        };
        // Writing to a String does not fail.
        let _ = write!(
            yaml,
            "---\napiVersion: postern.dev/v1alpha1\nkind: Workload\n\
             metadata: {{name: {workload}, namespace: {NAMESPACE}, labels: {{app: {workload}{mode}}}}}\n\
             spec:\n  serviceAccount: {workload}\n  address: 127.0.0.1\n  capture: explicit\n"
        );
        let Some(Serving {
            number,
            protocol,
            mesh,
            app,
            ..
        }) = own
        else {
            continue;
        };
        let _ = write!(
            yaml,
            "  ports:\n  - {{name: main, number: {number}, protocol: {protocol}, listen: {mesh}, app: {app}}}\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {{name: {workload}, namespace: {NAMESPACE}}}\n\
             spec:\n  selector: {{app: {workload}}}\n  ports:\n  - {{name: main, port: {number}, targetPort: main}}\n"
        );
    }
    yaml
}

/// Who may ask what of whom. Nothing is said of mallory: what nobody allows is denied.
pub(super) fn policy() -> String {
    format!(
        "# Edit and save: it is in force on every live connection within a second. A mistake changes nothing and is
# reported on the screen with its place. Try `paths: [/nothing]`, or add mallory to `principals`.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: cart-from-web, namespace: {NAMESPACE}}}
spec:
  selector: {{matchLabels: {{app: cart}}}}
  rules:
  - from: [{{source: {{principals: [{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/web]}}}}]
    to: [{{operation: {{methods: [GET], paths: [/items]}}}}]
---
# DENY is looked at first: nobody reaches the admin page, whatever else is allowed.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: cart-no-admin, namespace: {NAMESPACE}}}
spec:
  selector: {{matchLabels: {{app: cart}}}}
  action: DENY
  rules:
  - to: [{{operation: {{paths: [/admin, /admin/*]}}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: payments-from-web-and-cart, namespace: {NAMESPACE}}}
spec:
  selector: {{matchLabels: {{app: payments}}}}
  rules:
  - from: [{{source: {{principals: [{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/web]}}}}]
    to: [{{operation: {{paths: [/shop.v1.Payments/*]}}}}]
  - from: [{{source: {{principals: [{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/cart]}}}}]
    to: [{{operation: {{paths: [/shop.v1.Payments/Pay]}}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: ledger-from-payments, namespace: {NAMESPACE}}}
spec:
  selector: {{matchLabels: {{app: ledger}}}}
  rules:
  - from: [{{source: {{principals: [{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/payments]}}}}]
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const CART: Serving = Serving {
        workload: "cart",
        number: 80,
        protocol: "HTTP",
        mesh: 20_001,
        app: 20_002,
    };

    #[test]
    fn every_workload_is_described_and_only_those_that_serve_have_a_service() {
        let yaml = world(&[CART], false);
        assert_eq!(yaml.matches("kind: Workload").count(), 5);
        assert_eq!(yaml.matches("kind: Service\n").count(), 1);
        assert!(yaml.contains("listen: 20001, app: 20002"), "{yaml}");
        assert!(!yaml.contains("discover"), "{yaml}");
    }

    #[test]
    fn an_open_door_is_said_on_the_workload_and_permitted_by_the_namespace() {
        let yaml = world(&[CART], true);
        assert!(
            yaml.contains("name: cart, namespace: shop, labels: {app: cart, postern.dev/mode: discover}"),
            "{yaml}"
        );
        assert!(yaml.contains("postern.dev/allow-loosening: \"true\""), "{yaml}");
    }

    #[test]
    fn the_policy_names_everybody_but_mallory() {
        let rules = policy()
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect::<String>();
        assert!(!rules.contains("mallory"));
        assert_eq!(rules.matches("kind: AuthorizationPolicy").count(), 4);
    }
}
