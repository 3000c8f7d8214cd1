//! `postern inject`: a manifest in, the same manifest with proxies out, as the webhook would make it. For pipelines that
//! review what is applied, and for clusters where no webhook may change pods.
//!
//! ```text
//! manifest (documents as text) -> template (where the pod is) -> postern_injector::inject -> patch -> YAML
//! ```
//!
//! Offline with `--roots-sha256`; else settings, roots and labels of namespaces come from the cluster.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use postern_identity::TrustDomain;
use postern_injector::inject::{AccessLog, Metrics, Proxy, PullPolicy, Resources, Settings};

use super::CommandError;
use super::connect::ClusterArgs;

mod manifest;

use manifest::Surroundings;

/// Longest manifest: a chart's whole output has a few megabytes.
const MAX_MANIFEST: u64 = 64 * 1024 * 1024;
/// Where the mesh's own objects are.
const SYSTEM: &str = "postern-system";
/// The injector's settings, as the chart writes them.
const SETTINGS: (&str, &str) = ("postern-injector", "settings.json");
/// The CA's roots.
const ROOTS: (&str, &str) = ("postern-ca-roots", "roots.sha256");

/// Arguments of `postern inject`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The manifest; `-` for standard input
    #[arg(long, short, value_name = "FILE")]
    filename: PathBuf,
    /// The namespace of objects that name none [default: the context's; offline: default]
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// SHA-256 of the mesh's roots: no cluster is asked (ConfigMap postern-ca-roots has them)
    #[arg(long, value_name = "HEX,...", value_delimiter = ',', value_parser = root)]
    roots_sha256: Vec<String>,
    /// The injector's settings.json, instead of the cluster's or the defaults
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// The proxy's image, instead of the settings'
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// The trust domain, instead of the settings'
    #[arg(long, value_name = "NAME", value_parser = trust_domain)]
    trust_domain: Option<TrustDomain>,
    /// Namespaces carry postern.dev/allow-loosening: "true" (offline)
    #[arg(long, requires = "roots_sha256")]
    allow_loosening: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Why nothing was injected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InjectError {
    #[error("cannot read {0}")]
    Read(String, #[source] std::io::Error),
    #[error("{0} is longer than {MAX_MANIFEST} bytes")]
    TooLong(String),
    #[error("{0} has no `{1}`: is the mesh installed? (postern check; or offline with --roots-sha256)")]
    NotThere(String, &'static str),
    #[error("{0}: {1}")]
    Settings(String, String),
    #[error("{0}")]
    Manifest(String),
}

fn root(text: &str) -> Result<String, String> {
    let digits = text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    digits
        .then(|| text.to_owned())
        .ok_or_else(|| "64 lower-case hexadecimal digits are expected".to_owned())
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|error| error.to_string())
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CommandError> {
    let text = read(&args.filename)?;
    let mut surroundings = if args.roots_sha256.is_empty() {
        online(&args, &text).await?
    } else {
        offline(&args, &text)?
    };
    if let Some(image) = &args.image {
        surroundings.settings.image.clone_from(image);
    }
    if let Some(trust_domain) = &args.trust_domain {
        surroundings.settings.trust_domain = trust_domain.clone();
    }
    let token = || format!("{:032x}", fastrand::u128(..));
    let injected = manifest::inject(&text, &surroundings, token).map_err(InjectError::Manifest)?;
    for warning in &injected.warnings {
        eprintln!("Warning: {warning}");
    }
    if !injected.refused.is_empty() {
        for refused in &injected.refused {
            eprintln!("Refused: {refused}");
        }
        return Ok(ExitCode::FAILURE);
    }
    super::print(&injected.yaml)?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &std::path::Path) -> Result<String, InjectError> {
    let shown = if path.as_os_str() == "-" {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    };
    let failed = |error| InjectError::Read(shown.clone(), error);
    let mut text = String::new();
    let length = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(MAX_MANIFEST + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path)
            .map_err(failed)?
            .take(MAX_MANIFEST + 1)
            .read_to_string(&mut text)
    };
    if length.map_err(failed)? as u64 > MAX_MANIFEST {
        return Err(InjectError::TooLong(shown));
    }
    Ok(text)
}

fn offline(args: &Args, text: &str) -> Result<Surroundings, CommandError> {
    let settings = match &args.settings {
        Some(path) => settings_of(path)?,
        None => defaults(),
    };
    let mut labels = BTreeMap::from([("postern.dev/inject".to_owned(), "enabled".to_owned())]);
    if args.allow_loosening {
        labels.insert("postern.dev/allow-loosening".to_owned(), "true".to_owned());
    }
    let namespace = args.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let names = manifest::namespaces(text, &namespace).map_err(InjectError::Manifest)?;
    Ok(Surroundings {
        namespace,
        namespaces: names
            .into_iter()
            .map(|name| (name, (labels.clone(), BTreeMap::new())))
            .collect(),
        roots_sha256: args.roots_sha256.clone(),
        settings,
    })
}

async fn online(args: &Args, text: &str) -> Result<Surroundings, CommandError> {
    let cluster = args.cluster.connect().await?;
    let value = async |(map, key): (&'static str, &'static str)| {
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), SYSTEM);
        let found = maps.get_opt(map).await?.and_then(|map| map.data?.remove(key));
        let place = format!("ConfigMap {SYSTEM}/{map}");
        Ok::<_, CommandError>(found.ok_or(InjectError::NotThere(place, key))?)
    };
    let roots = value(ROOTS).await?;
    let settings = match &args.settings {
        Some(path) => settings_of(path)?,
        None => {
            let text = value(SETTINGS).await?;
            let place = format!("ConfigMap {SYSTEM}/{}", SETTINGS.0);
            Settings::parse(&text).map_err(|error| InjectError::Settings(place, error.to_string()))?
        }
    };
    let namespace = args.namespace.clone().unwrap_or(cluster.namespace);
    let mut namespaces = BTreeMap::new();
    for name in manifest::namespaces(text, &namespace).map_err(InjectError::Manifest)? {
        let spaces: Api<Namespace> = Api::all(cluster.client.clone());
        let metadata = spaces
            .get_opt(&name)
            .await?
            .map(|space| space.metadata)
            .unwrap_or_default();
        let mut labels = metadata.labels.unwrap_or_default();
        // Who asks for it here has decided.
        labels.insert("postern.dev/inject".to_owned(), "enabled".to_owned());
        namespaces.insert(name, (labels, metadata.annotations.unwrap_or_default()));
    }
    let hashes = roots
        .split(',')
        .map(|hash| hash.trim().to_owned())
        .filter(|hash| !hash.is_empty());
    Ok(Surroundings {
        namespace,
        namespaces,
        roots_sha256: hashes.collect(),
        settings,
    })
}

fn settings_of(path: &std::path::Path) -> Result<Settings, InjectError> {
    let text = read(path)?;
    Settings::parse(&text).map_err(|error| InjectError::Settings(path.display().to_string(), error.to_string()))
}

/// As the chart's values have them.
fn defaults() -> Settings {
    let quantities = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Settings {
        image: format!("localhost/postern/postern-proxy:{}", env!("CARGO_PKG_VERSION")),
        image_pull_policy: PullPolicy::IfNotPresent,
        trust_domain: TrustDomain::parse("cluster.local").expect("a constant"),
        ca: format!("postern-ca.{SYSTEM}.svc:15012"),
        control: format!("postern-control.{SYSTEM}.svc:15010"),
        proxy: Proxy {
            log_level: "info".to_owned(),
            access_log: AccessLog::Denied,
            drain_seconds: 25,
            resources: Resources {
                requests: quantities(&[("cpu", "50m"), ("memory", "32Mi")]),
                limits: quantities(&[("memory", "128Mi")]),
            },
        },
        metrics: Metrics {
            annotations: true,
            mutual_tls: false,
        },
    }
}
