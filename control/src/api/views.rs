//! From the pictures of all replicas to the objects of a resource.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use postern_api::control::v1 as wire;
use postern_api::quarantine_wire;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::objects::{API_VERSION, Identity, Object, Proxy, Replica, Resource};

mod edges;

pub(super) use edges::edges;

/// Refused documents and conditions shown per replica, and how long each may be, bound what one answer holds.
const MAX_REFUSED: usize = 256;

/// A workload's view, by the replica that knows most of it.
struct Seen<'p> {
    view: &'p wire::WorkloadView,
    picture: &'p wire::Picture,
}

pub(super) fn identities(pictures: &[wire::Picture]) -> Vec<Object<Identity>> {
    let seen = workloads(pictures).into_iter();
    let identities = seen.map(|((namespace, name), Seen { view, .. })| {
        let certificate = view.certificate.clone().unwrap_or_default();
        let body = Identity {
            spiffe_id: view.spiffe_id.clone(),
            instance: view.instance.clone(),
            serial: certificate.serial,
            issued: rfc3339(certificate.issued_unix_ms),
            not_after: rfc3339(certificate.not_after_unix_ms),
            renewals: certificate.renewals,
            renewal_failures: certificate.renewal_failures,
            last_renewal_error: certificate.last_renewal_error,
            connected: view.connected,
        };
        object(Resource::Identities, Some(namespace), name, BTreeMap::new(), body)
    });
    identities.collect()
}

pub(super) fn proxies(pictures: &[wire::Picture]) -> Vec<Object<Proxy>> {
    let seen = workloads(pictures).into_iter();
    let proxies = seen.map(|((namespace, name), Seen { view, picture })| {
        let mut body = Proxy {
            spiffe_id: view.spiffe_id.clone(),
            mode: mode(view.mode()).to_owned(),
            version: view.proxy_version.clone(),
            connected: view.connected,
            policy_version: view.policy_version_acknowledged,
            policy_current: view.policy_version_acknowledged == picture.policy_version,
            bundle_sequence: view.bundle_sequence_acknowledged,
            // Without the CA's stream there is no bundle to be sent: the proxy has the one of its SVID.
            bundle_current: picture.bundle_sequence == 0
                || view.bundle_sequence_acknowledged == picture.bundle_sequence,
            refused: view.refused.clone(),
            ready: false,
            reason: String::new(),
            replica: if view.connected {
                picture.replica.clone()
            } else {
                String::new()
            },
        };
        body.reason = unready(&body);
        body.ready = body.reason.is_empty();
        object(Resource::Proxies, Some(namespace), name, BTreeMap::new(), body)
    });
    proxies.collect()
}

/// What is not as it should be; empty if all is.
fn unready(proxy: &Proxy) -> String {
    if !proxy.connected {
        return "not connected to control".to_owned();
    }
    if !proxy.refused.is_empty() {
        return format!("it refused {}", proxy.refused);
    }
    match (proxy.policy_current, proxy.bundle_current) {
        (true, true) => "",
        (false, true) => "its policies are not the newest yet",
        (true, false) => "its trust bundle is not the newest yet",
        (false, false) => "its policies and its trust bundle are not the newest yet",
    }
    .to_owned()
}

pub(super) fn replicas(pictures: &[wire::Picture]) -> Vec<Object<Replica>> {
    let mut replicas: Vec<_> = pictures.iter().map(replica).collect();
    replicas.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    replicas
}

fn replica(picture: &wire::Picture) -> Object<Replica> {
    let connected = picture.workloads.iter().filter(|workload| workload.connected).count();
    let refused = picture.bad_files.iter().take(MAX_REFUSED).map(|bad| {
        let first = bad.errors.first().map_or("", String::as_str);
        format!("{}: {first}", bad.file)
    });
    let body = Replica {
        version: picture.control_version.clone(),
        connected_proxies: u64::try_from(connected).unwrap_or(u64::MAX),
        policy_version: picture.policy_version,
        bundle_sequence: picture.bundle_sequence,
        roots_sha256: picture.roots_sha256.clone(),
        issuer_epoch: picture.issuer_epoch,
        ca_connected: picture.ca_connected,
        not_after: picture
            .certificate
            .as_ref()
            .and_then(|certificate| rfc3339(certificate.not_after_unix_ms)),
        conditions: picture.conditions.clone(),
        refused_documents: refused.collect(),
        quarantined: picture.quarantined.iter().filter_map(quarantined).collect(),
    };
    object(Resource::Replicas, None, picture.replica.clone(), BTreeMap::new(), body)
}

/// `instance 1234 of spiffe://...: CVE-2026-1, by jane`
fn quarantined(entry: &postern_api::ca::v1::Quarantined) -> Option<String> {
    let subject = quarantine_wire::subject_from_wire(entry.subject.as_ref()).ok()?;
    let reason = match entry.reason.as_str() {
        "" => "no reason is given",
        reason => reason,
    };
    let by = match entry.by.as_str() {
        "" => String::new(),
        by => format!(", by {by}"),
    };
    Some(format!("{subject}: {reason}{by}"))
}

/// Each workload once: where its proxy is connected, else where it was last.
fn workloads(pictures: &[wire::Picture]) -> BTreeMap<(String, String), Seen<'_>> {
    let mut best: HashMap<(String, String), Seen<'_>> = HashMap::new();
    for picture in pictures {
        for view in &picture.workloads {
            let key = (view.namespace.clone(), view.name.clone());
            let seen = Seen { view, picture };
            match best.get_mut(&key) {
                Some(known) if rank(known.view) >= rank(view) => {}
                Some(known) => *known = seen,
                None => drop(best.insert(key, seen)),
            }
        }
    }
    best.into_iter().collect()
}

/// A proxy that goes from one replica to another is connected to the new one, or has its newest certificate there.
fn rank(view: &wire::WorkloadView) -> (bool, i64) {
    let issued = view
        .certificate
        .as_ref()
        .map_or(0, |certificate| certificate.issued_unix_ms);
    (view.connected, issued)
}

fn object<T>(
    resource: Resource,
    namespace: Option<String>,
    name: String,
    labels: BTreeMap<String, String>,
    body: T,
) -> Object<T> {
    Object {
        api_version: API_VERSION.to_owned(),
        kind: resource.kind().to_owned(),
        metadata: ObjectMeta {
            name: Some(name),
            namespace,
            labels: (!labels.is_empty()).then_some(labels),
            ..ObjectMeta::default()
        },
        body,
    }
}

fn mode(mode: wire::Mode) -> &'static str {
    match mode {
        wire::Mode::Unspecified => "",
        wire::Mode::Discover => "discover",
        wire::Mode::Monitor => "monitor",
        wire::Mode::Protect => "protect",
    }
}

/// Whole seconds; 0 is no time.
fn rfc3339(unix_ms: i64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp(unix_ms / 1000).ok()?;
    (unix_ms > 0).then(|| time.format(&Rfc3339).ok())?
}

#[cfg(test)]
mod tests;
