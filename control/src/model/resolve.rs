//! From what an app asked for (a name, or an address) to what its proxy may do about it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use postern_api::control::v1 as wire;
use postern_api::control::v1::destination::State;
use postern_api::policy_wire::mode_to_wire;
use postern_policy::document::nearest;
use postern_policy::{Mode, MtlsMode};

use super::backends::Behind;
use super::{Model, Name, Port, Standing, Workload};
use crate::documents::{Capture, Service, ServicePort};
use crate::protocol::Protocol;

/// A DNS name's limit.
const MAX_HOST: usize = 253;

impl Model {
    /// Explicit mode: `host` as the app named it, read from the caller's namespace.
    pub(crate) fn resolve_name(&self, namespace: &str, host: &str, port: u16) -> State {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            return self.resolve_address(ip, port);
        }
        if host.is_empty() || host.len() > MAX_HOST {
            return unreachable("unknown_host", "not a host name".to_owned());
        }
        let labels: Vec<&str> = host.split('.').collect();
        let (name, namespace) = match labels.as_slice() {
            // RFC 6761, section 6.3: loopback, where explicit workloads of one machine live. Their apps must not be called in
            // clear, whatever they are called by.
            [.., "localhost"] => return self.resolve_localhost(port),
            [name] => (*name, namespace),
            [name, other] if self.knows_namespace(other) => (*name, *other),
            // No other suffix: `cart.shop.svc.partner.example` is a partner's.
            [name, other, "svc"] | [name, other, "svc", "cluster", "local"] if self.knows_namespace(other) => {
                (*name, *other)
            }
            // A name of the cluster's own, even if nobody lives there: it must not leak to the outside.
            [_, other, "svc"] | [_, other, "svc", "cluster", "local"] => {
                let known = self
                    .namespaces
                    .keys()
                    .chain(self.workloads.keys().map(|(namespace, _)| namespace));
                let nearest = nearest(other, known.map(String::as_str));
                return unreachable("unknown_host", detail(format!("no namespace `{other}`"), nearest));
            }
            // One Pod of a Service (`cart-0.cart.shop.svc`), or no name at all.
            [.., "svc"] | [.., "svc", "cluster", "local"] => {
                let what =
                    format!("`{host}` is in the cluster's own domain, where only `service.namespace.svc` is known");
                return unreachable("unknown_host", what);
            }
            _ => return State::Outside(wire::Outside {}),
        };
        match self.services.get(&(namespace.to_owned(), name.to_owned())) {
            Some(service) => self.service_port(service, port, None),
            None => {
                let here = self
                    .services
                    .keys()
                    .filter(|(ns, _)| ns == namespace)
                    .map(|(_, name)| name.as_str());
                let what = format!("no service `{name}` in namespace `{namespace}`");
                unreachable("unknown_host", detail(what, nearest(name, here)))
            }
        }
    }

    /// As resolvers do: IPv4 first.
    fn resolve_localhost(&self, port: u16) -> State {
        match self.resolve_address(Ipv4Addr::LOCALHOST.into(), port) {
            State::Outside(_) => self.resolve_address(Ipv6Addr::LOCALHOST.into(), port),
            found => found,
        }
    }

    /// Captured traffic: where the app's packets were going.
    pub(crate) fn resolve_address(&self, ip: IpAddr, port: u16) -> State {
        let ip = ip.to_canonical();
        if let Some(service) = self.by_cluster_ip.get(&ip).and_then(|name| self.services.get(name)) {
            return self.service_port(service, port, Some(ip));
        }
        let here: Vec<&Workload> = self
            .by_address
            .get(&ip)
            .into_iter()
            .flatten()
            .filter_map(|name| self.workloads.get(name).map(AsRef::as_ref))
            .collect();
        if here.is_empty() && self.unheard.contains(&(ip, port)) {
            // In clear it would reach a pod of the mesh. Whoever follows the answer is told once the pod is heard of.
            let what = format!("a Service leads to a pod at {ip}, port {port}, that is not known yet");
            return unreachable("unknown_pod", what);
        }
        if here.is_empty() {
            return State::Outside(wire::Outside {});
        }
        // Where a proxy listens comes first; the app's own port behind it leads to the proxy as well.
        let by = |wanted: &dyn Fn(&Workload, &Port) -> bool| {
            here.iter().find_map(|workload| {
                let port = workload.ports.iter().find(|port| wanted(workload, port))?;
                Some((*workload, port.clone()))
            })
        };
        let found = by(&|workload, p| p.listen == port && workload.dialled_by_proxy())
            .or_else(|| by(&|_, p| p.app == port))
            .or_else(|| {
                // A captured workload's proxy stands before every port.
                let workload = here.iter().find(|workload| workload.captured())?;
                let name = String::new();
                Some((
                    *workload,
                    Port {
                        name,
                        number: port,
                        listen: port,
                        app: port,
                        protocol: Protocol::Detect,
                    },
                ))
            });
        match found {
            Some((workload, found)) => self.workload_port(workload, &found, ip),
            // Other programs share a loopback address.
            None if ip.is_loopback() => State::Outside(wire::Outside {}),
            None => {
                let names: Vec<&str> = here.iter().map(|w| w.document.name.as_str()).collect();
                let what = format!("{ip} is {}, which has no port {port}", names.join(" or "));
                unreachable("unknown_port", what)
            }
        }
    }

    fn service_port(&self, service: &Service, number: u16, asked: Option<IpAddr>) -> State {
        let Some(port) = service.ports.iter().find(|port| port.number == number) else {
            let ports: Vec<String> = service.ports.iter().map(|port| port.number.to_string()).collect();
            let what = format!(
                "service `{}` in namespace `{}` has no port {number}; it has {}",
                service.name,
                service.namespace,
                if ports.is_empty() {
                    "none".to_owned()
                } else {
                    ports.join(", ")
                }
            );
            return unreachable("unknown_port", what);
        };
        let behind = self.behind_port(service, port, asked);
        self.answer(&service.name, &service.namespace, number, Some(port), &behind)
    }

    fn workload_port(&self, workload: &Workload, port: &Port, ip: IpAddr) -> State {
        // One Service in front: that is what people call it.
        let fronts = self.fronts.get(&(workload.key(), port.number)).map(Vec::as_slice);
        let (name, number): (&Name, u16) = match fronts {
            Some([(service, number)]) => (service, *number),
            Some(_) | None => (&workload.key(), port.number),
        };
        let behind = Behind {
            workload: Some(workload),
            port: port.clone(),
            ip,
        };
        self.answer(&name.1, &name.0, number, None, &[behind])
    }

    fn answer(
        &self,
        service: &str,
        namespace: &str,
        number: u16,
        front: Option<&ServicePort>,
        behind: &[Behind<'_>],
    ) -> State {
        if !behind.is_empty() && behind.iter().all(|behind| behind.standing() == Standing::Unmeshed) {
            let addresses = behind
                .iter()
                .map(|behind| wire::SocketAddress {
                    ip: octets(behind.ip),
                    port: behind.port.app.into(),
                })
                .collect();
            let (service, namespace) = (service.to_owned(), namespace.to_owned());
            return State::Unmeshed(wire::Unmeshed {
                addresses,
                service,
                namespace,
            });
        }
        let endpoints: Vec<wire::Endpoint> = behind.iter().filter_map(endpoint).collect();
        if endpoints.is_empty() && !behind.is_empty() {
            let workloads = behind.iter().filter_map(|behind| behind.workload);
            let names: Vec<&str> = workloads.map(|w| w.document.name.as_str()).collect();
            let what = format!(
                "workload {} of namespace `{namespace}` has no known identity, and the namespace is protected",
                names.join(", ")
            );
            return unreachable("no_identity", what);
        }
        let mut protocols = behind.iter().map(|behind| behind.port.protocol);
        let protocol = match protocols.next() {
            None => front.and_then(|port| port.declared).unwrap_or(Protocol::Detect),
            Some(first) if protocols.all(|other| other == first) => first,
            Some(_) => Protocol::Detect,
        };
        let mode = behind.iter().filter_map(|behind| Some(behind.workload?.mode)).max();
        let mode = mode
            .or_else(|| self.namespaces.get(namespace)?.mode)
            .unwrap_or(Mode::Protect);
        State::Meshed(wire::Meshed {
            service: service.to_owned(),
            namespace: namespace.to_owned(),
            port: number.into(),
            protocol: protocol.to_wire() as i32,
            endpoints,
            mode: mode_to_wire(mode) as i32,
        })
    }
}

impl Workload {
    fn dialled_by_proxy(&self) -> bool {
        matches!(self.standing, Standing::Meshed(_))
    }
}

/// `None`: nobody knows who would answer, and it must not be reached.
fn endpoint(behind: &Behind<'_>) -> Option<wire::Endpoint> {
    let port = &behind.port;
    let (spiffe_ids, instance, alpn, dial) = match (behind.standing(), behind.workload) {
        // Explicit: the proxy's own port. Captured: the app's, and the proxy is in between. (Both are `listen`.)
        (Standing::Meshed(id), Some(workload)) => {
            let capture = workload.document.capture;
            if capture != Capture::Foreign && workload.mtls.of(port.number) == MtlsMode::Disable {
                return Some(in_clear(behind, workload));
            }
            let alpn = match capture {
                Capture::Explicit | Capture::Redirect => port.protocol.alpn(),
                Capture::Foreign => port.protocol.foreign_alpn(),
            };
            // Without any it would pass for unmeshed, and be called in clear.
            if alpn.is_empty() {
                return None;
            }
            // An SVID that is not ours names no instance.
            let instance = match capture {
                Capture::Explicit | Capture::Redirect => workload.document.instance.clone(),
                Capture::Foreign => String::new(),
            };
            (vec![id.to_string()], instance, alpn, port.listen)
        }
        (Standing::Unmeshed, _) => (Vec::new(), String::new(), Vec::new(), port.app),
        (Standing::NoIdentity, _) | (Standing::Meshed(_), None) => return None,
    };
    let (namespace, workload) = behind.workload.map(Workload::key).unwrap_or_default();
    Some(wire::Endpoint {
        ip: octets(behind.ip),
        port: dial.into(),
        workload_port: port.number.into(),
        spiffe_ids,
        instance,
        protocol: port.protocol.to_wire() as i32,
        alpn,
        workload,
        namespace,
    })
}

/// A PeerAuthentication has it that nobody proves anything there. Its proxy stands before it all the same, and is called.
fn in_clear(behind: &Behind<'_>, workload: &Workload) -> wire::Endpoint {
    let port = &behind.port;
    let (namespace, name) = workload.key();
    wire::Endpoint {
        ip: octets(behind.ip),
        port: port.listen.into(),
        workload_port: port.number.into(),
        spiffe_ids: Vec::new(),
        instance: workload.document.instance.clone(),
        protocol: port.protocol.to_wire() as i32,
        alpn: Vec::new(),
        workload: name,
        namespace,
    }
}

/// 4 or 16 bytes, as on the wire.
pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn unreachable(reason: &str, detail: String) -> State {
    State::Unreachable(wire::Unreachable {
        reason: reason.to_owned(),
        detail,
    })
}

fn detail(what: String, nearest: Option<&str>) -> String {
    match nearest {
        Some(nearest) => format!("{what}; did you mean `{nearest}`?"),
        None => what,
    }
}
