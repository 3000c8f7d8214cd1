//! What a pod may say about its own sidecar, under `postern.dev/`. Nobody gets less mesh by a typo: an unknown name or a
//! bad value refuses the pod, and the message names the nearest valid one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use postern_policy::document::nearest;

use crate::inject::{AccessLog, MAX_DRAIN_SECONDS};

/// What all our names begin with.
pub const OURS: &str = "postern.dev/";
/// Label of a namespace, and of a pod, which overrides it: `enabled` or `disabled`.
pub const INJECT: &str = "postern.dev/inject";
/// Label of a namespace or pod: how strictly it is treated.
pub const MODE: &str = "postern.dev/mode";
/// Label or annotation of a namespace: its pods may ask for less than the namespace does.
pub const ALLOW_LOOSENING: &str = "postern.dev/allow-loosening";
/// Written by the injector: its version.
pub const INJECTED: &str = "postern.dev/injected";
/// Written by the injector: what was added, or why nothing was.
pub const STATUS: &str = "postern.dev/status";

/// Entries of one list. `postern-proxy redirect` takes 128, of which the injector needs one.
pub const MAX_ENTRIES: usize = 127;
/// The proxy's own ports in a pod: outbound, inbound, readiness and metrics, metrics over mutual TLS.
pub const PROXY_PORTS: [u16; 4] = [15_001, 15_006, 15_020, 15_021];

const NAMES: [&str; 12] = [
    "skip-inbound-ports",
    "skip-outbound-ports",
    "skip-outbound-cidrs",
    "opaque-ports",
    "proxy-cpu-request",
    "proxy-cpu-limit",
    "proxy-memory-request",
    "proxy-memory-limit",
    "log-level",
    "access-log",
    "drain-seconds",
    "workload-api",
];

/// A pod's annotations, read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wishes {
    /// Not captured, plain bytes for everybody.
    pub skip_inbound_ports: BTreeSet<u16>,
    /// Not captured, whatever the destination.
    pub skip_outbound_ports: BTreeSet<u16>,
    /// Not captured.
    pub skip_outbound_cidrs: Vec<String>,
    /// Bytes, not HTTP. Control reads the annotation itself.
    pub opaque_ports: BTreeSet<u16>,
    /// `(requests or limits, cpu or memory)` -> quantity.
    pub resources: BTreeMap<(&'static str, &'static str), String>,
    /// A log filter.
    pub log_level: Option<String>,
    /// Which requests get a line.
    pub access_log: Option<AccessLog>,
    /// At most this long.
    pub drain_seconds: Option<u64>,
    /// The app gets an SVID of its own, through a socket.
    pub workload_api: bool,
}

impl Wishes {
    /// Reads a pod's annotations; other people's are passed over. `may_loosen`: the namespace allows to skip inbound ports.
    pub fn read(annotations: &BTreeMap<String, String>, may_loosen: bool) -> Result<Self, String> {
        let mut wishes = Self::default();
        for (key, value) in annotations {
            if let Some(name) = key.strip_prefix(OURS).filter(|_| key != INJECTED && key != STATUS) {
                wishes
                    .take(name, value.trim(), may_loosen)
                    .map_err(|what| format!("annotation {key}: {what}"))?;
            }
        }
        wishes.compare_resources()?;
        Ok(wishes)
    }

    fn compare_resources(&self) -> Result<(), String> {
        for name in ["cpu", "memory"] {
            let (request, limit) = (
                self.resources.get(&("requests", name)),
                self.resources.get(&("limits", name)),
            );
            if let (Some(request), Some(limit)) = (request, limit)
                && thousandths(request) > thousandths(limit)
            {
                return Err(format!(
                    "annotation {OURS}proxy-{name}-request: {request} is more than {OURS}proxy-{name}-limit, {limit}"
                ));
            }
        }
        Ok(())
    }

    /// What of the pod's traffic is outside of the mesh, said to whoever makes the pod.
    pub(crate) fn left_out(&self) -> Vec<String> {
        let ports = |ports: &BTreeSet<u16>| {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            ports.join(", ")
        };
        let skips = [
            (
                "skip-inbound-ports",
                ports(&self.skip_inbound_ports),
                "anybody reaches it, in clear: no identity and no policy",
            ),
            (
                "skip-outbound-ports",
                ports(&self.skip_outbound_ports),
                "what the pod sends there has no identity and is not encrypted",
            ),
            (
                "skip-outbound-cidrs",
                self.skip_outbound_cidrs.join(", "),
                "what the pod sends there has no identity and is not encrypted",
            ),
        ];
        let said = skips.into_iter().filter(|(_, what, _)| !what.is_empty());
        said.map(|(name, what, so)| format!("annotation {OURS}{name}: {what} is outside of the mesh: {so}"))
            .collect()
    }

    fn take(&mut self, name: &str, value: &str, may_loosen: bool) -> Result<(), String> {
        match name {
            "skip-inbound-ports" if !may_loosen => {
                return Err(format!(
                    "the namespace does not allow it: whoever reaches these ports would pass by all policies. If that is \
                     meant, label the namespace {ALLOW_LOOSENING}=true"
                ));
            }
            "skip-inbound-ports" => self.skip_inbound_ports = ports(value)?,
            "skip-outbound-ports" => self.skip_outbound_ports = ports(value)?,
            "skip-outbound-cidrs" => self.skip_outbound_cidrs = list(value)?.map(cidr).collect::<Result<_, _>>()?,
            "opaque-ports" => self.opaque_ports = ports(value)?,
            "proxy-cpu-request" => self.resource(("requests", "cpu"), value)?,
            "proxy-cpu-limit" => self.resource(("limits", "cpu"), value)?,
            "proxy-memory-request" => self.resource(("requests", "memory"), value)?,
            "proxy-memory-limit" => self.resource(("limits", "memory"), value)?,
            "log-level" if is_log_filter(value) => self.log_level = Some(value.to_owned()),
            "log-level" => {
                const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
                return Err(format!(
                    "`{value}` is no log filter such as `info` or `warn,postern_proxy=debug`{}",
                    hint(value, &LEVELS)
                ));
            }
            "access-log" => {
                self.access_log = Some(match value {
                    "off" => AccessLog::Off,
                    "denied" => AccessLog::Denied,
                    "all" => AccessLog::All,
                    _ => {
                        let near = hint(value, &["off", "denied", "all"]);
                        return Err(format!("`{value}`: off, denied and all are possible{near}"));
                    }
                });
            }
            "drain-seconds" => {
                let seconds = value.parse().ok().filter(|s| *s <= MAX_DRAIN_SECONDS);
                self.drain_seconds =
                    Some(seconds.ok_or_else(|| {
                        format!("`{value}`: whole seconds from 0 to {MAX_DRAIN_SECONDS} are possible")
                    })?);
            }
            "workload-api" => {
                self.workload_api = match value {
                    "enabled" => true,
                    "disabled" => false,
                    _ => {
                        let near = hint(value, &["enabled", "disabled"]);
                        return Err(format!("`{value}`: enabled and disabled are possible{near}"));
                    }
                };
            }
            "proxy-image" => {
                return Err(
                    "a pod does not choose its proxy's image; the chart's value image.registry does".to_owned(),
                );
            }
            "inject" | "mode" => {
                return Err(format!(
                    "it is a label, not an annotation: metadata.labels[\"{OURS}{name}\"]"
                ));
            }
            "allow-loosening" => return Err("it is the namespace's, not the pod's".to_owned()),
            _ => return Err(format!("nothing has this name{}", hint(name, &NAMES))),
        }
        Ok(())
    }

    fn resource(&mut self, which: (&'static str, &'static str), value: &str) -> Result<(), String> {
        if !is_quantity(value) {
            return Err(format!("`{value}` is no quantity above zero, such as 50m or 64Mi"));
        }
        self.resources.insert(which, value.to_owned());
        Ok(())
    }
}

/// `; did you mean ...?`, where something is alike.
pub(crate) fn hint(name: &str, known: &[&str]) -> String {
    nearest(name, known.iter().copied()).map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

fn list(value: &str) -> Result<impl Iterator<Item = &str>, String> {
    if value.split(',').count() > MAX_ENTRIES {
        return Err(format!("more than {MAX_ENTRIES} entries"));
    }
    Ok(value.split(',').map(str::trim))
}

fn ports(value: &str) -> Result<BTreeSet<u16>, String> {
    list(value)?
        .map(|entry| match entry.parse() {
            Ok(port) if PROXY_PORTS.contains(&port) => Err(format!("port {port} is the proxy's own")),
            Ok(port @ 1..) if entry.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(format!(
                "`{entry}` is no port number (1 to 65535; several with commas between)"
            )),
        })
        .collect()
}

/// As `postern-proxy redirect` reads it.
fn cidr(text: &str) -> Result<String, String> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
    let ip: IpAddr = address
        .parse()
        .map_err(|_| format!("`{text}` is no address range such as 169.254.169.254/32"))?;
    let (bits, width) = match ip {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    };
    let prefix: u32 = match prefix {
        None => width,
        Some(digits) => digits
            .parse()
            .ok()
            .filter(|p| *p <= width)
            .ok_or_else(|| format!("`{text}`: the prefix must be 0 to {width}"))?,
    };
    let host = 1_u128.checked_shl(width - prefix).map_or(u128::MAX, |bit| bit - 1);
    if bits & host == 0 {
        return Ok(format!("{ip}/{prefix}"));
    }
    let network = match ip {
        IpAddr::V4(_) => IpAddr::from(u32::try_from(bits & !host).unwrap_or(0).to_be_bytes()),
        IpAddr::V6(_) => IpAddr::from((bits & !host).to_be_bytes()),
    };
    Err(format!(
        "`{text}` has bits past its prefix; did you mean `{network}/{prefix}`?"
    ))
}

/// A log filter such as `info` or `warn,postern_proxy=debug`: what an environment variable and a log filter both take.
pub(crate) fn is_log_filter(text: &str) -> bool {
    const MAX: usize = 256;
    let level = |word: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&word);
    let target = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
    };
    text.len() <= MAX
        && text.split(',').all(|directive| match directive.split_once('=') {
            None => level(directive),
            Some((name, word)) => target(name) && level(word),
        })
}

/// A positive Kubernetes quantity in the forms that people write: `50m`, `0.5`, `32Mi`, `1G`.
pub(crate) fn is_quantity(text: &str) -> bool {
    thousandths(text).is_some_and(|n| n > 0)
}

/// A quantity in thousandths of its unit.
pub(crate) fn thousandths(text: &str) -> Option<u128> {
    const SUFFIXES: [(&str, u128); 13] = [
        ("Ki", 1000 << 10),
        ("Mi", 1000 << 20),
        ("Gi", 1000 << 30),
        ("Ti", 1000 << 40),
        ("Pi", 1000 << 50),
        ("Ei", 1000 << 60),
        ("m", 1),
        ("k", 1_000_000),
        ("M", 1_000_000_000),
        ("G", 1_000_000_000_000),
        ("T", 1_000_000_000_000_000),
        ("P", 1_000_000_000_000_000_000),
        ("E", 1_000_000_000_000_000_000_000),
    ];
    // 10^15 times the largest suffix is within 128 bits.
    const MAX_WHOLE: usize = 15;
    const MAX_PART: usize = 3;
    let (number, unit) = SUFFIXES
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
        .unwrap_or((text, 1000));
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str, most| (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole, MAX_WHOLE) || !digits(part, MAX_PART) {
        return None;
    }
    let tenths = 10_u128.pow(u32::try_from(part.len()).ok()?);
    Some(whole.parse::<u128>().ok()? * unit + part.parse::<u128>().ok()? * unit / tenths)
}

#[cfg(test)]
mod tests;
