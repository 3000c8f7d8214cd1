//! Who stands behind a Service's port: the workloads that its selector finds, or those that EndpointSlices name.

use std::net::IpAddr;

use super::{Model, Name, Port, Standing, Workload};
use crate::documents::{Backend, Capture, Service, ServicePort};
use crate::protocol::Protocol;

/// One of them.
#[derive(Debug, Clone)]
pub(super) struct Behind<'m> {
    /// `None`: known by its address only.
    pub(super) workload: Option<&'m Workload>,
    pub(super) port: Port,
    pub(super) ip: IpAddr,
}

impl Behind<'_> {
    pub(super) fn standing(&self) -> Standing {
        // Nothing of the cluster has that address: it is somebody outside of the mesh.
        self.workload
            .map_or(Standing::Unmeshed, |workload| workload.standing_on(self.port.number))
    }
}

impl Model {
    /// (workload, its port, the Service's port) of all that stand behind a Service.
    pub(super) fn behind(&self, service: &Service) -> Vec<(Name, u16, u16)> {
        if let Some(backends) = &service.backends {
            let found = backends.iter().filter_map(|backend| {
                let workload = self.backend(service, backend).ok()??;
                Some((workload.key(), backend.port, backend.front))
            });
            return found.collect();
        }
        let mut found = Vec::new();
        for workload in self.workloads.values().filter(|w| w.selected_by(service)) {
            for port in &service.ports {
                if let Some(number) = workload.target(&port.target) {
                    found.push((workload.key(), number, port.number));
                }
            }
        }
        found
    }

    /// The workload that a backend is; `None` for somebody outside; an error if it is said to be a pod that is not known
    /// (yet): who answers there is not known either.
    fn backend(&self, service: &Service, backend: &Backend) -> Result<Option<&Workload>, ()> {
        if let Some((name, uid)) = &backend.pod {
            let key = (service.namespace.clone(), name.clone());
            let workload = self.workloads.get(&key).ok_or(())?;
            if workload.document.instance != *uid {
                return Err(());
            }
            // EndpointSlices can be written by hand, and be older than the pods: an address is believed to the pod that has it.
            let own = workload.document.addresses.contains(&backend.ip);
            return if own { Ok(Some(workload)) } else { Err(()) };
        }
        let here = self.by_address.get(&backend.ip).and_then(|names| names.first());
        Ok(here.and_then(|name| self.workloads.get(name)).map(AsRef::as_ref))
    }

    /// Where pods listen that a Service's slices name and that are not known (yet). Not their addresses as a whole: that of a
    /// pod on its node's network is everybody's there.
    pub(super) fn unheard_behind<'m>(&'m self, service: &'m Service) -> impl Iterator<Item = (IpAddr, u16)> + 'm {
        let backends = service.backends.iter().flatten();
        let unheard = backends.filter(|backend| self.backend(service, backend).is_err());
        unheard.map(|backend| (backend.ip, backend.port))
    }

    /// All behind one port of a Service, at addresses of the family that was asked for where they have one.
    pub(super) fn behind_port<'m>(
        &'m self,
        service: &Service,
        port: &ServicePort,
        asked: Option<IpAddr>,
    ) -> Vec<Behind<'m>> {
        match &service.backends {
            Some(backends) => self.backends(service, backends, port, asked),
            None => self.selected(service, port, asked),
        }
    }

    fn selected<'m>(&'m self, service: &Service, port: &ServicePort, asked: Option<IpAddr>) -> Vec<Behind<'m>> {
        let selected = self.workloads.values().filter(|workload| workload.selected_by(service));
        let found = selected.filter_map(|workload| {
            let target = workload.target(&port.target)?;
            let port = workload.ports.iter().find(|p| p.number == target)?.clone();
            let ip = workload.address_for(asked)?;
            let workload = Some(workload.as_ref());
            Some(Behind { workload, port, ip })
        });
        found.collect()
    }

    fn backends<'m>(
        &'m self,
        service: &Service,
        backends: &[Backend],
        port: &ServicePort,
        asked: Option<IpAddr>,
    ) -> Vec<Behind<'m>> {
        let of_port = backends.iter().filter(|backend| backend.front == port.number);
        let mut found: Vec<Behind<'m>> = of_port
            .filter_map(|backend| {
                let workload = self.backend(service, backend).ok()?;
                let settled = workload.and_then(|w| w.ports.iter().find(|p| p.number == backend.port));
                let port = settled.cloned().unwrap_or_else(|| Port {
                    name: String::new(),
                    number: backend.port,
                    listen: backend.port,
                    app: backend.port,
                    protocol: port.declared.unwrap_or(Protocol::Detect),
                });
                let ip = backend.ip;
                Some(Behind { workload, port, ip })
            })
            .collect();
        let same = |behind: &Behind<'_>| asked.is_none_or(|asked| asked.is_ipv4() == behind.ip.is_ipv4());
        if found.iter().any(same) {
            found.retain(same);
        }
        found
    }
}

impl Workload {
    /// Of the family that was asked for, if it has one; a pod that has not begun to run has none.
    pub(super) fn address_for(&self, asked: Option<IpAddr>) -> Option<IpAddr> {
        let same = |ip: &&IpAddr| asked.is_none_or(|asked| asked.is_ipv4() == ip.is_ipv4());
        let addresses = &self.document.addresses;
        addresses.iter().find(same).or_else(|| addresses.first()).copied()
    }

    /// Does its proxy stand before every port, whether it is declared or not?
    pub(super) fn captured(&self) -> bool {
        self.document.capture == Capture::Redirect
    }
}
