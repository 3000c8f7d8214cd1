//! What expires.

use std::collections::BTreeSet;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::catalog::{Finding, Verdict, finding};
use super::components::INSTALL;
use super::facts::{Facts, SYSTEM, Unknown, known, name};
use super::registration;

/// The part of its life below which a serving certificate should have been replaced: that happens at two thirds.
const LITTLE_LIFE: i64 = 10;
/// A root is rotated by an operator, who needs time: workloads that pin the old one must be restarted.
const ROOT_DAYS: i64 = 30;
/// An issuer is replaced at two thirds of its life; with less than this nothing longer-lived can be signed.
const ISSUER_HOURS: i64 = 24;
/// Control renews at half of its life, of hours.
const CONTROL_SECONDS: i64 = 60;
const DAY: i64 = 24 * 60 * 60;

/// From when to when, in seconds since 1970.
pub(super) struct Life {
    pub(super) not_before: i64,
    pub(super) not_after: i64,
}

/// The certificates of a PEM text.
pub(super) fn ders(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect()
}

pub(super) fn life(der: &CertificateDer<'_>) -> Option<Life> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    Some(Life {
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
    })
}

pub(super) fn hex(der: &CertificateDer<'_>) -> String {
    postern_identity::bundle::fingerprint(der)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub(super) fn serving(facts: &Facts) -> Verdict {
    let mut found = Vec::new();
    for component in ["postern-injector", "postern-control"] {
        let secret_name = format!("{component}-tls");
        let secret = registration::serving(facts, &secret_name)?;
        let pem = secret.data.as_ref().and_then(|data| data.get("tls.crt"));
        let life = pem.and_then(|pem| life(ders(&pem.0).first()?));
        let cause = match life {
            None => "it holds no certificate: nobody can be served".to_owned(),
            Some(life) if life.not_after <= facts.now => {
                format!("its certificate expired {}", ago(facts.now - life.not_after))
            }
            Some(life) if (life.not_after - facts.now) * LITTLE_LIFE < life.not_after - life.not_before => {
                format!(
                    "its certificate expires in {} and was not replaced",
                    span(life.not_after - facts.now)
                )
            }
            Some(_) => continue,
        };
        found.push(finding(
            format!("Secret {SYSTEM}/{secret_name}"),
            cause,
            format!("kubectl -n {SYSTEM} logs deployment/{component}; kubectl -n {SYSTEM} rollout restart deployment {component}"),
        ));
    }
    Ok(found)
}

/// The ConfigMap that injector and control give to newcomers.
fn roots_map(facts: &Facts) -> Result<Roots, Finding> {
    let map = facts.roots.as_ref().ok().and_then(Option::as_ref);
    let data = map.and_then(|map| map.data.clone()).unwrap_or_default();
    let subject = format!("ConfigMap {SYSTEM}/postern-ca-roots");
    let Some(pem) = data.get("roots.pem").filter(|pem| !pem.trim().is_empty()) else {
        let cause = "it holds no roots: no pod can be injected and no proxy can begin";
        return Err(finding(
            subject,
            cause,
            format!("kubectl -n {SYSTEM} logs deployment/postern-ca"),
        ));
    };
    let hashes = data.get("roots.sha256").map(String::as_str).unwrap_or_default();
    Ok(Roots {
        subject,
        certificates: ders(pem.as_bytes()),
        hashes: hashes
            .split(',')
            .map(|hash| hash.trim().to_owned())
            .filter(|hash| !hash.is_empty())
            .collect(),
    })
}

struct Roots {
    subject: String,
    certificates: Vec<CertificateDer<'static>>,
    hashes: BTreeSet<String>,
}

/// The hashes that new pods pin.
pub(super) fn pinned(facts: &Facts) -> Result<BTreeSet<String>, Unknown> {
    known(&facts.roots)?;
    roots_map(facts)
        .map(|roots| roots.hashes)
        .map_err(|finding| Unknown(format!("{}: {}", finding.subject, finding.cause)))
}

pub(super) fn roots(facts: &Facts) -> Verdict {
    known(&facts.roots)?;
    let roots = match roots_map(facts) {
        Ok(roots) => roots,
        Err(finding) => return Ok(vec![finding]),
    };
    if roots.certificates.is_empty() {
        return Ok(vec![finding(roots.subject, "what it holds is no certificate", INSTALL)]);
    }
    let mut found = Vec::new();
    for root in &roots.certificates {
        let left = life(root).map_or(0, |life| life.not_after - facts.now);
        let short = hex(root).chars().take(16).collect::<String>();
        if left < ROOT_DAYS * DAY {
            let when = if left > 0 {
                format!("expires in {}", span(left))
            } else {
                format!("expired {}", ago(-left))
            };
            found.push(finding(
                roots.subject.clone(),
                format!("the root {short} {when}: with it ends every certificate under it"),
                "bring a new root: docs/checks.md#pc-041 has the steps",
            ));
        }
    }
    Ok(found)
}

pub(super) fn hashes(facts: &Facts) -> Verdict {
    known(&facts.roots)?;
    let Ok(roots) = roots_map(facts) else {
        return Ok(Vec::new());
    };
    let actual: BTreeSet<String> = roots.certificates.iter().map(hex).collect();
    if actual == roots.hashes {
        return Ok(Vec::new());
    }
    Ok(vec![finding(
        roots.subject,
        "roots.sha256 is not that of the certificates in roots.pem: new pods would trust another root, or none",
        format!(
            "kubectl -n {SYSTEM} rollout restart deployment postern-ca  (its leader writes both; then see who else wrote)"
        ),
    )])
}

pub(super) fn bundle(facts: &Facts) -> Verdict {
    let replicas = known(&facts.replicas)?;
    let given = pinned(facts)?;
    let differing = replicas.iter().filter(|replica| {
        let held: BTreeSet<String> = replica.body.roots_sha256.iter().cloned().collect();
        held != given
    });
    let found = differing.map(|replica| {
        finding(
            format!("control's replica {}", name(&replica.metadata)),
            "the roots of its trust bundle are not those in ConfigMap postern-ca-roots: new pods and old ones trust \
             different roots",
            format!("kubectl -n {SYSTEM} logs deployment/postern-ca; kubectl -n {SYSTEM} rollout restart deployment postern-control"),
        )
    });
    Ok(found.collect())
}

pub(super) fn issuer(facts: &Facts) -> Verdict {
    let metrics = known(&facts.ca_metrics)?.iter();
    let ending = metrics.filter(|metrics| metrics.issuer_not_after - facts.now < ISSUER_HOURS * 60 * 60);
    let found = ending.map(|metrics| {
        let left = metrics.issuer_not_after - facts.now;
        let when = if left > 0 { format!("expires in {}", span(left)) } else { format!("expired {}", ago(-left)) };
        finding(
            format!("Pod {SYSTEM}/{}", metrics.pod),
            format!("its issuer {when} and was not replaced: no certificate outlives it"),
            format!("kubectl -n {SYSTEM} logs deployment/postern-ca | grep -i issuer; kubectl -n {SYSTEM} get lease postern-ca"),
        )
    });
    Ok(found.collect())
}

pub(super) fn brought(facts: &Facts) -> Verdict {
    let metrics = known(&facts.ca_metrics)?.iter();
    let refused = metrics.filter(|metrics| metrics.brought_refused).map(|metrics| {
        finding(
            format!("Pod {SYSTEM}/{}", metrics.pod),
            "it refuses the issuer that is mounted for it, and goes on with the one before, which will end",
            format!(
                "kubectl -n {SYSTEM} exec {} -- postern-ca status --admin-socket /run/postern/admin.sock  (says why)",
                metrics.pod
            ),
        )
    });
    Ok(refused.collect())
}

pub(super) fn control(facts: &Facts) -> Verdict {
    let replicas = known(&facts.replicas)?.iter();
    let found = replicas.filter_map(|replica| {
        let not_after = seconds(replica.body.not_after.as_deref()?)?;
        let left = not_after - facts.now;
        (left < CONTROL_SECONDS).then(|| {
            let when = if left > 0 {
                format!("ends in {}", span(left))
            } else {
                format!("ended {}", ago(-left))
            };
            finding(
                format!("control's replica {}", name(&replica.metadata)),
                format!("its own certificate {when}: no proxy believes it without one"),
                format!("kubectl -n {SYSTEM} logs deployment/postern-control | grep 'own certificate'"),
            )
        })
    });
    Ok(found.collect())
}

/// Of an RFC 3339 time, since 1970.
pub(super) fn seconds(rfc3339: &str) -> Option<i64> {
    rfc3339
        .parse::<k8s_openapi::jiff::Timestamp>()
        .ok()
        .map(k8s_openapi::jiff::Timestamp::as_second)
}

/// `3 h`, in the largest unit that leaves more than one.
pub(crate) fn span(seconds: i64) -> String {
    match seconds {
        s if s >= 2 * DAY => format!("{} days", s / DAY),
        s if s >= 2 * 60 * 60 => format!("{} h", s / (60 * 60)),
        s if s >= 2 * 60 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

fn ago(seconds: i64) -> String {
    format!("{} ago", span(seconds))
}
