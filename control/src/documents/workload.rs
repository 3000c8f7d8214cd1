//! `postern.dev/v1alpha1 Workload`: one running program and its ports; what a pod is to Kubernetes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use postern_identity::{Instance, SpiffeId, TrustDomain};
use postern_policy::Mode;
use postern_policy::document::{DocumentError, Fields, Node, Object, Place};

use super::{DEFAULT_NAMESPACE, MODE, check_ours, done, mode_label};
use crate::protocol::{self, Protocol};

/// A program with more is a mistake.
const MAX_PORTS: usize = 256;
/// Dual stack, and room.
const MAX_ADDRESSES: usize = 8;

/// How its proxy gets at the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Capture {
    /// The app is told to use the proxy; the proxy listens on ports of its own.
    Explicit,
    /// nftables hands connections over; ports stay what they are.
    Redirect,
    /// Not at all: it speaks mTLS with an SVID of its own accord (a SPIFFE library, an Envoy), and has no proxy of ours.
    Foreign,
}

/// A workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) place: Place,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// What its SVID calls it: the name here, the pod's UID in Kubernetes.
    pub(crate) instance: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// `None`: no service account is named, so nobody knows its identity.
    pub(crate) id: Option<SpiffeId>,
    /// False: it runs without a proxy, and that is known.
    pub(crate) mesh: bool,
    /// At least one here; a pod has none before it starts.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) capture: Capture,
    /// What its label asks for.
    pub(crate) mode: Option<Mode>,
    pub(crate) ports: Vec<WorkloadPort>,
    pub(crate) pod: PodFacts,
}

/// What only a pod has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PodFacts {
    /// Its addresses are its node's: they say nothing about who answers there.
    pub(crate) host_network: bool,
    /// It asked to run without a proxy; heard only where its namespace allows loosening.
    pub(crate) opted_out: bool,
    /// Bytes, whatever Services say.
    pub(crate) opaque_ports: Vec<u16>,
    /// Past its proxy, in clear; heard only where its namespace allows loosening.
    pub(crate) skipped_ports: Vec<u16>,
}

/// One of its ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkloadPort {
    pub(crate) place: Place,
    pub(crate) name: String,
    /// What policy and Services call it.
    pub(crate) number: u16,
    /// `None`: not declared.
    pub(crate) declared: Option<Protocol>,
    /// Where its proxy listens.
    pub(crate) listen: u16,
    /// Where the app listens.
    pub(crate) app: u16,
}

impl Workload {
    pub(crate) fn decode(object: &Object, trust_domain: &TrustDomain) -> Result<Self, Vec<DocumentError>> {
        let mut errors = Vec::new();
        check_ours(object, "metadata.labels", object.labels.keys(), &[MODE], &mut errors);
        check_ours(
            object,
            "metadata.annotations",
            object.annotations.keys(),
            &[],
            &mut errors,
        );
        let namespace = object.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        if let Err(error) = Instance::parse(&object.name) {
            errors.push(object.error("metadata.name", error.to_string()));
        }
        let mode = mode_label(object, &mut errors);
        let empty = Node {
            place: object.place.clone(),
            value: postern_policy::document::Value::Null,
        };
        let mut fields = match Fields::of(object.spec.as_ref().unwrap_or(&empty), "spec") {
            Ok(fields) => fields,
            Err(error) => {
                errors.push(error);
                return Err(errors);
            }
        };
        let mesh = fields.bool("mesh");
        let id = identity(object, &mut fields, mesh, trust_domain, &namespace);
        let addresses = addresses(&mut fields);
        let capture = capture(&mut fields);
        let items = fields.list("ports").unwrap_or_default();
        fields.finish(&mut errors);
        if items.len() > MAX_PORTS {
            errors.push(object.error("spec.ports", format!("more than {MAX_PORTS} ports")));
        }
        let drafts: Vec<Draft> = items
            .iter()
            .take(MAX_PORTS)
            .filter_map(|(path, node)| Draft::decode(path, node, &mut errors))
            .collect();
        if capture == Some(Capture::Foreign) && (id.is_none() || mesh == Some(false)) {
            errors.push(object.error(
                "spec.capture",
                "a foreign workload is called by its identity: it needs `serviceAccount`, and cannot be `mesh: false`",
            ));
        }
        let capture = capture.unwrap_or_else(|| {
            if drafts.iter().any(|port| port.listen.is_some()) {
                Capture::Explicit
            } else {
                Capture::Redirect
            }
        });
        let ports = finished(drafts, capture, mesh != Some(false), &mut errors);
        let workload = Self {
            place: object.place.clone(),
            namespace,
            name: object.name.clone(),
            instance: object.name.clone(),
            labels: object.labels.clone(),
            id,
            mesh: mesh != Some(false),
            addresses,
            capture,
            mode,
            ports,
            pod: PodFacts::default(),
        };
        done(workload, errors)
    }
}

fn identity(
    object: &Object,
    fields: &mut Fields<'_>,
    mesh: Option<bool>,
    trust_domain: &TrustDomain,
    namespace: &str,
) -> Option<SpiffeId> {
    let account = fields.text("serviceAccount");
    match account {
        Some(account) if account.contains('/') => {
            fields.error(&object.place, "serviceAccount", format!("`{account}` is no name"));
            None
        }
        Some(account) => match SpiffeId::for_workload(trust_domain, namespace, &account) {
            Ok(id) => Some(id),
            Err(error) => {
                fields.error(&object.place, "serviceAccount", error.to_string());
                None
            }
        },
        None if mesh == Some(true) => {
            fields.missing("serviceAccount");
            None
        }
        None => None,
    }
}

fn addresses(fields: &mut Fields<'_>) -> Vec<IpAddr> {
    let before = fields.place().clone();
    let single = fields.text("address").map(|text| (before.clone(), text));
    let many = fields.texts("addresses").unwrap_or_default();
    if single.is_some() && !many.is_empty() {
        fields.error(&before, "addresses", "either `address` or `addresses`");
    }
    if many.len() > MAX_ADDRESSES {
        fields.error(&before, "addresses", format!("more than {MAX_ADDRESSES} addresses"));
    }
    let mut addresses = Vec::new();
    let all = single
        .into_iter()
        .chain(many.into_iter().map(|(place, text)| (place.clone(), text)));
    for (place, text) in all.take(MAX_ADDRESSES) {
        match text.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            Ok(ip) if ip.is_unspecified() || ip.is_multicast() => {
                fields.error(&place, "address", format!("`{text}` is nobody's own address"));
            }
            Ok(ip) if addresses.contains(&ip) => {}
            Ok(ip) => addresses.push(ip),
            Err(_) => fields.error(&place, "address", format!("`{text}` is no IP address")),
        }
    }
    if addresses.is_empty() {
        addresses.push(Ipv4Addr::LOCALHOST.into());
    }
    addresses
}

fn capture(fields: &mut Fields<'_>) -> Option<Capture> {
    let place = fields.place().clone();
    let text = fields.text("capture")?;
    match text.as_str() {
        "explicit" => Some(Capture::Explicit),
        "redirect" => Some(Capture::Redirect),
        "foreign" => Some(Capture::Foreign),
        other => {
            fields.unknown_value(&place, "capture", other, &["explicit", "redirect", "foreign"]);
            None
        }
    }
}

/// A port as written; what is missing depends on the capture mode.
struct Draft {
    place: Place,
    path: String,
    name: String,
    number: u16,
    declared: Option<Protocol>,
    listen: Option<u16>,
    app: Option<u16>,
}

impl Draft {
    fn decode(path: &str, node: &Node, errors: &mut Vec<DocumentError>) -> Option<Self> {
        let mut fields = match Fields::of(node, path) {
            Ok(fields) => fields,
            Err(error) => {
                errors.push(error);
                return None;
            }
        };
        let before = errors.len();
        let name = fields.text("name").unwrap_or_default();
        let number = fields.port("number");
        let protocol = fields.text("protocol");
        let declared = match protocol.as_deref() {
            None => protocol::of_port_name(&name),
            Some(word) => match protocol::of_word(word) {
                Some(protocol) => Some(protocol),
                None => {
                    fields.unknown_value(&node.place, "protocol", word, &protocol::WORDS);
                    None
                }
            },
        };
        let (listen, app) = (fields.port("listen"), fields.port("app"));
        fields.finish(errors);
        let Some(number) = number else {
            if errors.len() == before {
                errors.push(fault(&node.place, path, "`number` is missing".to_owned()));
            }
            return None;
        };
        Some(Self {
            place: node.place.clone(),
            path: path.to_owned(),
            name,
            number,
            declared,
            listen,
            app,
        })
    }
}

fn finished(drafts: Vec<Draft>, capture: Capture, mesh: bool, errors: &mut Vec<DocumentError>) -> Vec<WorkloadPort> {
    let mut ports: Vec<WorkloadPort> = Vec::new();
    for draft in drafts {
        let port = WorkloadPort {
            listen: draft.listen.unwrap_or(draft.number),
            app: draft.app.unwrap_or(draft.number),
            place: draft.place,
            name: draft.name,
            number: draft.number,
            declared: draft.declared,
        };
        let mut refuse = |what: String| errors.push(fault(&port.place, &draft.path, what));
        match capture {
            Capture::Redirect | Capture::Foreign if draft.listen.is_some() || draft.app.is_some() => {
                refuse("`listen` and `app` belong to `capture: explicit`; otherwise both are `number`".to_owned());
            }
            // Without our proxy at the other end nothing says that a stream is opaque.
            Capture::Foreign if draft.declared == Some(Protocol::Tcp) => {
                refuse("with `capture: foreign` a port speaks HTTP1 or HTTP2".to_owned());
            }
            Capture::Explicit if mesh && port.listen == port.app => refuse(format!(
                "proxy and app cannot both listen on {}; give `listen`, `app` or both",
                port.listen
            )),
            Capture::Explicit | Capture::Redirect | Capture::Foreign => {}
        }
        if ports.iter().any(|other| other.number == port.number) {
            refuse(format!("port {} is given twice", port.number));
        } else if !port.name.is_empty() && ports.iter().any(|other| other.name == port.name) {
            refuse(format!("two ports are named `{}`", port.name));
        } else if mesh && capture == Capture::Explicit && ports.iter().any(|other| other.listen == port.listen) {
            refuse(format!("two ports listen on {}", port.listen));
        }
        ports.push(port);
    }
    ports
}

fn fault(place: &Place, path: &str, what: String) -> DocumentError {
    DocumentError {
        place: place.clone(),
        path: path.to_owned(),
        what,
        nearest: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use postern_policy::document::parse;

    use super::*;

    fn decode(spec: &str) -> Result<Workload, Vec<DocumentError>> {
        let yaml = format!(
            "apiVersion: postern.dev/v1alpha1\nkind: Workload\nmetadata: {{name: legacy, namespace: shop}}\nspec: {spec}\n"
        );
        let objects = parse("legacy.yaml", &yaml).unwrap();
        Workload::decode(&objects[0], &TrustDomain::parse("cluster.local").unwrap())
    }

    #[test]
    fn a_foreign_workload_has_an_identity_and_speaks_http() {
        let foreign = decode("{serviceAccount: legacy, capture: foreign, ports: [{number: 8443, protocol: HTTP2}]}");
        assert_eq!(foreign.unwrap().capture, Capture::Foreign);
        for (spec, says) in [
            ("{capture: foreign}", "needs `serviceAccount`"),
            (
                "{serviceAccount: legacy, mesh: false, capture: foreign}",
                "cannot be `mesh: false`",
            ),
            (
                "{serviceAccount: legacy, capture: foreign, ports: [{number: 25, protocol: TCP}]}",
                "HTTP1 or HTTP2",
            ),
            (
                "{serviceAccount: legacy, capture: foreign, ports: [{number: 80, listen: 81}]}",
                "belong to `capture: explicit`",
            ),
            ("{serviceAccount: legacy, capture: foriegn}", "did you mean `foreign`"),
        ] {
            let errors = decode(spec).unwrap_err();
            assert!(
                errors.iter().any(|error| error.to_string().contains(says)),
                "{spec}: {errors:?}"
            );
        }
    }
}
