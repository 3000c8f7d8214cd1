//! All checks, in the order in which they are shown.

use super::facts::{Facts, Unknown};
use super::{before, certificates, components, network, platform, policies, proxies, registration, workloads};

/// When a check is of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// The cluster itself: before and after.
    Platform,
    /// Only before an installation.
    Before,
    /// The mesh's own components.
    Mesh,
    /// Namespaces, workloads and their proxies.
    Proxies,
}

/// How bad a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Something does not work, or soon will not.
    Error,
    /// Something works less well, or less safely, than it could.
    Warning,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Finding {
    /// What it is about, such as `Pod shop/web-1`.
    pub(crate) subject: String,
    /// What is wrong with it, and what comes of that.
    pub(crate) cause: String,
    /// A command that mends it, or the next step.
    pub(crate) fix: String,
}

/// What is wrong: nothing, or these; or it could not be looked at.
pub(crate) type Verdict = Result<Vec<Finding>, Unknown>;

/// See the module.
pub(crate) struct Check {
    /// `PC-012`: never reused.
    pub(crate) id: &'static str,
    /// What holds when it passes.
    pub(crate) title: &'static str,
    pub(crate) group: Group,
    pub(crate) severity: Severity,
    pub(crate) run: fn(&Facts) -> Verdict,
}

pub(super) fn finding(subject: impl Into<String>, cause: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding {
        subject: subject.into(),
        cause: cause.into(),
        fix: fix.into(),
    }
}

const fn error(id: &'static str, group: Group, title: &'static str, run: fn(&Facts) -> Verdict) -> Check {
    Check {
        id,
        title,
        group,
        severity: Severity::Error,
        run,
    }
}

const fn warning(id: &'static str, group: Group, title: &'static str, run: fn(&Facts) -> Verdict) -> Check {
    Check {
        id,
        title,
        group,
        severity: Severity::Warning,
        run,
    }
}

use Group::{Before, Mesh, Platform, Proxies};

/// See the module.
pub(crate) const CHECKS: &[Check] = &[
    error(
        "PC-001",
        Platform,
        "the API server knows native sidecars (1.29 or later)",
        platform::server_version,
    ),
    error(
        "PC-002",
        Platform,
        "every node's kubelet knows native sidecars",
        platform::kubelet_version,
    ),
    error(
        "PC-003",
        Platform,
        "every node's kernel can redirect both IP versions (5.2 or later)",
        platform::kernel,
    ),
    error(
        "PC-004",
        Platform,
        "the API server has a front proxy for aggregated APIs",
        platform::front_proxy,
    ),
    warning(
        "PC-005",
        Platform,
        "the nodes' clocks agree with this machine's",
        platform::clocks,
    ),
    warning(
        "PC-006",
        Platform,
        "no other mesh injects proxies",
        platform::other_meshes,
    ),
    error(
        "PC-010",
        Before,
        "you may create what the chart creates",
        before::permissions,
    ),
    error(
        "PC-011",
        Before,
        "nothing of an earlier installation is left",
        before::leftovers,
    ),
    error(
        "PC-020",
        Mesh,
        "the namespace postern-system is there, and not injected",
        components::namespace,
    ),
    error("PC-021", Mesh, "the CA's replicas are ready", components::ca_ready),
    error(
        "PC-022",
        Mesh,
        "control's replicas are ready",
        components::control_ready,
    ),
    error(
        "PC-023",
        Mesh,
        "the injector's replicas are ready",
        components::injector_ready,
    ),
    error(
        "PC-024",
        Mesh,
        "CA, control and injector are of one version",
        components::one_version,
    ),
    warning(
        "PC-025",
        Mesh,
        "this program is of the mesh's version",
        components::own_version,
    ),
    error(
        "PC-026",
        Mesh,
        "the leases are held by pods that live",
        components::leases,
    ),
    warning(
        "PC-027",
        Mesh,
        "a node can be drained without taking all of a component",
        components::disruption,
    ),
    error(
        "PC-028",
        Mesh,
        "control's replicas are connected to the CA",
        components::ca_connected,
    ),
    warning(
        "PC-029",
        Mesh,
        "all of control's replicas answer, and hold one bundle",
        components::replicas_agree,
    ),
    error(
        "PC-030",
        Mesh,
        "the CRDs are there and of this version",
        registration::crds,
    ),
    error(
        "PC-031",
        Mesh,
        "the mutating webhook is registered",
        registration::mutating,
    ),
    error(
        "PC-032",
        Mesh,
        "the validating webhook is registered",
        registration::validating,
    ),
    error(
        "PC-033",
        Mesh,
        "the webhooks refuse when the injector is away",
        registration::failure_policy,
    ),
    error(
        "PC-034",
        Mesh,
        "no webhook of ours sees the system's namespaces",
        registration::excluded,
    ),
    error(
        "PC-035",
        Mesh,
        "the injector is registered once",
        registration::duplicates,
    ),
    error(
        "PC-036",
        Mesh,
        "the webhooks' CA bundle covers the injector's certificate",
        registration::webhook_bundle,
    ),
    error(
        "PC-037",
        Mesh,
        "the aggregated API is available",
        registration::api_service,
    ),
    error(
        "PC-038",
        Mesh,
        "the APIService's CA bundle covers control's certificate",
        registration::api_bundle,
    ),
    error(
        "PC-039",
        Mesh,
        "the API server's own policies guard proxies and their tokens",
        registration::admission_policies,
    ),
    error(
        "PC-040",
        Mesh,
        "the serving certificates have life left",
        certificates::serving,
    ),
    error(
        "PC-041",
        Mesh,
        "the roots in postern-ca-roots are certificates with life left",
        certificates::roots,
    ),
    error(
        "PC-042",
        Mesh,
        "the roots' hashes are those of the roots",
        certificates::hashes,
    ),
    error(
        "PC-043",
        Mesh,
        "control's bundle has the roots that new pods are given",
        certificates::bundle,
    ),
    error("PC-044", Mesh, "the CA's issuer has life left", certificates::issuer),
    error(
        "PC-045",
        Mesh,
        "control's own certificate has life left",
        certificates::control,
    ),
    error(
        "PC-046",
        Mesh,
        "the CA takes the issuer that is mounted for it",
        certificates::brought,
    ),
    error("PC-050", Mesh, "every policy is accepted", policies::accepted),
    warning(
        "PC-051",
        Mesh,
        "every policy is in force at all proxies",
        policies::enforced,
    ),
    warning(
        "PC-052",
        Mesh,
        "Services agree on what each port speaks, and lead somewhere",
        policies::conditions,
    ),
    warning("PC-053", Mesh, "nobody is in quarantine", policies::quarantined),
    warning("PC-054", Mesh, "the CA's ledger is kept", components::ledger),
    error(
        "PC-060",
        Proxies,
        "every pod of a meshed namespace has its proxy",
        workloads::without_proxy,
    ),
    error(
        "PC-061",
        Proxies,
        "every proxy is connected to control",
        proxies::connected,
    ),
    error(
        "PC-062",
        Proxies,
        "no proxy refuses what control sends",
        proxies::refusing,
    ),
    error(
        "PC-063",
        Proxies,
        "every proxy is within two minor versions of control",
        proxies::skew,
    ),
    warning(
        "PC-064",
        Proxies,
        "every proxy is of the injector's version",
        proxies::outdated,
    ),
    error(
        "PC-065",
        Proxies,
        "every proxy's certificate has life left",
        proxies::expiry,
    ),
    warning(
        "PC-066",
        Proxies,
        "no proxy fails to renew its certificate",
        proxies::renewal,
    ),
    error(
        "PC-067",
        Proxies,
        "every pod trusts a root that the CA still has",
        proxies::pinned,
    ),
    error(
        "PC-068",
        Proxies,
        "no proxy restarts again and again",
        proxies::restarting,
    ),
    error(
        "PC-069",
        Proxies,
        "the sidecar is as the injector made it",
        workloads::intact,
    ),
    error(
        "PC-070",
        Proxies,
        "meshed namespaces let the redirecting container in",
        workloads::pod_security,
    ),
    warning(
        "PC-071",
        Proxies,
        "every meshed pod has a service account of its own",
        workloads::default_account,
    ),
    warning(
        "PC-072",
        Proxies,
        "no pod of a meshed namespace is on the host's network",
        workloads::host_network,
    ),
    error(
        "PC-073",
        Proxies,
        "no container of an app runs as the proxy's user",
        workloads::proxy_user,
    ),
    warning(
        "PC-074",
        Proxies,
        "no app may change the redirection",
        workloads::net_admin,
    ),
    error(
        "PC-075",
        Proxies,
        "labels of namespaces say something that is understood",
        workloads::labels,
    ),
    warning("PC-076", Proxies, "meshed namespaces are in protect", workloads::modes),
    warning(
        "PC-077",
        Proxies,
        "no pod skips its proxy for incoming ports",
        network::skipped_ports,
    ),
    error(
        "PC-078",
        Proxies,
        "no NetworkPolicy keeps proxies from CA and control",
        network::network_policies,
    ),
    error(
        "PC-079",
        Proxies,
        "pods of meshed namespaces can be created",
        workloads::creation,
    ),
    warning(
        "PC-080",
        Proxies,
        "callers from outside are expected where a Service is open to them",
        network::exposed,
    ),
    warning(
        "PC-081",
        Proxies,
        "meshed workloads talk to each other under mutual TLS",
        proxies::plaintext,
    ),
    warning(
        "PC-082",
        Proxies,
        "every pod has the proxy image that the injector gives",
        workloads::image,
    ),
];
