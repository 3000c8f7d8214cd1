//! What the injector and the kubelet tell a sidecar of its pod, in the environment: `POD_IP`, `POSTERN_PROBES`,
//! `POSTERN_APP_METRICS`. A value that does not hold ends the process: it is a fault in the manifest, and waiting mends
//! none.

use std::env;
use std::net::IpAddr;
use std::sync::Arc;

use crate::app_metrics::AppMetrics;
use crate::metrics::Metrics;
use crate::probes::Probes;
use crate::status::error_chain;

/// The app's side of the pod, as far as kubelets and scrapers ask for it.
#[derive(Debug, Default)]
pub(crate) struct Pod {
    /// A kubelet runs us beside the app, as a sidecar that it starts before the app and ends after it.
    pub(crate) sidecar: bool,
    pub(crate) probes: Option<Probes>,
    pub(crate) app_metrics: Option<AppMetrics>,
}

impl Pod {
    /// Reads this process's environment.
    pub(crate) fn from_environment(metrics: &Arc<Metrics>) -> Result<Self, String> {
        Self::read(
            |name| match env::var(name) {
                Ok(value) => Ok(Some(value)),
                Err(env::VarError::NotPresent) => Ok(None),
                Err(env::VarError::NotUnicode(_)) => Err(format!("{name} is not UTF-8")),
            },
            metrics,
        )
    }

    fn read(
        variable: impl Fn(&'static str) -> Result<Option<String>, String>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, String> {
        let (probes, app_metrics) = (variable("POSTERN_PROBES")?, variable("POSTERN_APP_METRICS")?);
        let ip = match variable("POD_IP")? {
            Some(ip) => ip
                .parse::<IpAddr>()
                .map_err(|_| format!("POD_IP `{ip}` is no IP address"))?,
            None if probes.is_none() && app_metrics.is_none() => return Ok(Self::default()),
            None => {
                return Err(
                    "POD_IP is not set, and the app's probes and metrics are asked for there (status.podIP)".to_owned(),
                );
            }
        };
        Ok(Self {
            sidecar: true,
            probes: probes
                .map(|text| Probes::parse(&text, ip))
                .transpose()
                .map_err(|error| format!("POSTERN_PROBES: {}", error_chain(&error)))?,
            app_metrics: app_metrics
                .map(|text| AppMetrics::parse(&text, ip, Arc::clone(metrics)))
                .transpose()
                .map_err(|error| format!("POSTERN_APP_METRICS: {error}"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser as _;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Pod, String> {
        let variable = |name: &'static str| {
            Ok(variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned()))
        };
        Pod::read(variable, &Arc::default())
    }

    #[test]
    fn without_the_injectors_variables_there_is_nothing_to_serve() {
        let pod = read(&[]).unwrap();
        assert!(!pod.sidecar && pod.probes.is_none() && pod.app_metrics.is_none());
        let pod = read(&[("POD_IP", "10.0.0.1")]).unwrap();
        assert!(pod.sidecar && pod.probes.is_none() && pod.app_metrics.is_none());
    }

    #[test]
    fn what_does_not_hold_is_named_and_never_half_taken() {
        let metrics = r#"{"port":8080,"path":"/metrics","scheme":"http"}"#;
        assert!(
            read(&[("POD_IP", "fd00::2"), ("POSTERN_APP_METRICS", metrics)])
                .unwrap()
                .app_metrics
                .is_some()
        );
        for (variables, says) in [
            (&[("POSTERN_APP_METRICS", metrics)][..], "POD_IP is not set"),
            (&[("POD_IP", "")], "POD_IP `` is no IP address"),
            (
                &[("POD_IP", "x"), ("POSTERN_APP_METRICS", metrics)],
                "POD_IP `x` is no IP address",
            ),
            (
                &[("POD_IP", "10.0.0.1"), ("POSTERN_APP_METRICS", "{}")],
                "POSTERN_APP_METRICS: it is not the JSON",
            ),
            (
                &[
                    ("POD_IP", "10.0.0.1"),
                    ("POSTERN_APP_METRICS", r#"{"port":0,"path":"/","scheme":"http"}"#),
                ],
                "port 0",
            ),
            (
                &[
                    ("POD_IP", "10.0.0.1"),
                    ("POSTERN_APP_METRICS", r#"{"port":1,"path":"/","scheme":"ftp"}"#),
                ],
                "`http` and `https` are possible",
            ),
            (
                &[("POD_IP", "10.0.0.1"), ("POSTERN_PROBES", "{}")],
                "POSTERN_PROBES: it is not the JSON",
            ),
        ] {
            let error = read(variables).unwrap_err();
            assert!(error.contains(says), "{variables:?}: {error}");
        }
    }

    #[test]
    fn what_the_injector_writes_is_understood() {
        let sidecars = include_str!("../../injector/tests/golden/sidecars.json");
        let sidecars: serde_json::Map<String, serde_json::Value> = serde_json::from_str(sidecars).unwrap();
        assert!(sidecars.len() >= 40, "{}", sidecars.len());
        for (name, sidecar) in sidecars {
            let variable = |name: &'static str| {
                let value = sidecar["env"][name].as_str().map(str::to_owned);
                Ok(if name == "POD_IP" {
                    Some("10.0.0.1".to_owned())
                } else {
                    value
                })
            };
            let pod = Pod::read(variable, &Arc::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
            let text = |variable: &str| sidecar["env"][variable].is_string();
            assert_eq!(pod.probes.is_some(), text("POSTERN_PROBES"), "{name}");
            assert_eq!(pod.app_metrics.is_some(), text("POSTERN_APP_METRICS"), "{name}");
            for list in ["args", "redirect"] {
                let args = sidecar[list]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|arg| arg.as_str().unwrap());
                let parsed = crate::config::Cli::try_parse_from(std::iter::once("postern-proxy").chain(args));
                assert!(parsed.is_ok(), "{name}: {}", parsed.unwrap_err());
            }
        }
    }
}
