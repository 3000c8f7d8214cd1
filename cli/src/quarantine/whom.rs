//! From what an operator names to what the CA cuts off; a name that nobody has is answered with the nearest that somebody has.

use postern_api::ca::v1 as pb;
use postern_api::control::v1 as wire;
use postern_identity::quarantine::{Serial, Subject};
use postern_identity::{Instance, SpiffeId};
use postern_policy::document::nearest;

use super::{WhomArgs, subject_of};

/// Whom control knows, or the cluster.
pub(crate) struct Known(pub(crate) Vec<wire::WorkloadView>);

impl Known {
    fn pod(&self, namespace: &str, name: &str) -> Result<&wire::WorkloadView, String> {
        let found = self
            .0
            .iter()
            .find(|view| view.namespace == namespace && view.name == name);
        found.ok_or_else(|| {
            let names: Vec<String> = self
                .0
                .iter()
                .map(|view| format!("{}/{}", view.namespace, view.name))
                .collect();
            unknown("pod", &format!("{namespace}/{name}"), names.iter().map(String::as_str))
        })
    }

    fn id(&self, id: &SpiffeId) -> Result<(), String> {
        let ids = self.0.iter().map(|view| view.spiffe_id.as_str());
        match ids.clone().any(|known| known == id.as_str()) {
            true => Ok(()),
            false => Err(unknown("identity", id.as_str(), ids)),
        }
    }

    fn instance(&self, instance: &Instance, id: Option<&SpiffeId>) -> Result<&wire::WorkloadView, String> {
        let found = self
            .0
            .iter()
            .find(|view| view.instance == instance.as_str() && id.is_none_or(|id| view.spiffe_id == id.as_str()));
        let instances = self.0.iter().map(|view| view.instance.as_str());
        found.ok_or_else(|| unknown("instance", instance.as_str(), instances))
    }

    fn serial(&self, serial: &Serial) -> Result<&wire::WorkloadView, String> {
        let of = |view: &wire::WorkloadView| view.certificate.as_ref().map(|certificate| certificate.serial.clone());
        let found = self.0.iter().find(|view| {
            let shown = of(view).and_then(|shown| Serial::parse(&shown).ok());
            shown.as_ref() == Some(serial)
        });
        let serials: Vec<String> = self.0.iter().filter_map(of).collect();
        found.ok_or_else(|| unknown("serial number", &serial.to_string(), serials.iter().map(String::as_str)))
    }
}

fn unknown<'k>(what: &str, name: &str, known: impl Iterator<Item = &'k str>) -> String {
    let hint = match nearest(name, known.filter(|name| !name.is_empty())) {
        Some(nearest) => format!("; did you mean `{nearest}`?"),
        None => String::new(),
    };
    format!("there is no {what} `{name}`{hint}")
}

/// `NAMESPACE/NAME`, for people.
fn named(view: &wire::WorkloadView) -> String {
    format!("{}/{}", view.namespace, view.name)
}

impl WhomArgs {
    /// Whom to cut off, and how to say it.
    pub(super) fn resolved(self, known: Option<&Known>, force: bool) -> Result<(Subject, String), String> {
        if let Some((namespace, name)) = &self.pod {
            let known = known.ok_or("--pod is looked up at control: --control SOCKET (its --view-socket)")?;
            let view = known.pod(namespace, name)?;
            let subject = of_pod(view)?;
            let who = format!("pod {namespace}/{name}, which is {subject},");
            return Ok((subject, who));
        }
        let subject = self.subject()?;
        // Who is not there may still come, or be a foreign one: by force.
        let of = |found: Result<String, String>| match found {
            Err(unknown) if !force => Err(format!("{unknown} (--force quarantines who is not known)")),
            Ok(who) => Ok(who),
            Err(_) => Ok(subject.to_string()),
        };
        let who = match (&subject, known) {
            (_, None) => subject.to_string(),
            (Subject::Id(id), Some(known)) => of(known.id(id).map(|()| id.to_string()))?,
            (Subject::Instance(instance, id), Some(known)) => {
                let found = known.instance(instance, id.as_ref());
                of(found.map(|view| format!("{subject} (pod {})", named(view))))?
            }
            (Subject::Serial(serial), Some(known)) => {
                let found = known.serial(serial);
                of(found.map(|view| format!("{subject} (of pod {}, until it has a new certificate)", named(view))))?
            }
        };
        Ok((subject, who))
    }

    /// Which entry of the list is meant.
    pub(super) fn listed(self, known: Option<&Known>, list: &pb::QuarantineState) -> Result<Subject, String> {
        let entries: Vec<Subject> = list.entries.iter().filter_map(subject_of).collect();
        if let Some((namespace, name)) = &self.pod {
            let known = known.ok_or("--pod is looked up at control: --control SOCKET (its --view-socket)")?;
            let gone = |error| format!("{error}; one that is gone is lifted by the instance that `list` shows");
            let view = known.pod(namespace, name).map_err(gone)?;
            return of_pod(view).and_then(|subject| only(&entries, &subject));
        }
        match (&self.instance, &self.id) {
            (Some(instance), None) => {
                let of_it = |subject: &&Subject| matches!(subject, Subject::Instance(listed, _) if listed == instance);
                let found: Vec<&Subject> = entries.iter().filter(of_it).collect();
                match found.as_slice() {
                    [one] => Ok(Subject::clone(one)),
                    [] => only(&entries, &self.subject()?),
                    several => {
                        let several: Vec<String> = several.iter().map(ToString::to_string).collect();
                        let all = several.join(", ");
                        Err(format!(
                            "{instance} is cut off under several identities, say which by --id: {all}"
                        ))
                    }
                }
            }
            _ => only(&entries, &self.subject()?),
        }
    }

    fn subject(self) -> Result<Subject, String> {
        match (self.id, self.instance, self.serial) {
            (Some(id), None, None) => Ok(Subject::Id(id)),
            (id, Some(instance), None) => Ok(Subject::Instance(instance, id)),
            (None, None, Some(serial)) => Ok(Subject::Serial(serial)),
            (_, _, _) => Err("one of --id, --pod, --instance and --serial".to_owned()),
        }
    }
}

/// A pod is its instance, and nothing that is called alike elsewhere.
fn of_pod(view: &wire::WorkloadView) -> Result<Subject, String> {
    let unreadable = |error: postern_identity::IdError| format!("control shows {}: {error}", named(view));
    let instance = Instance::parse(&view.instance).map_err(unreadable)?;
    Ok(Subject::Instance(
        instance,
        Some(SpiffeId::parse(&view.spiffe_id).map_err(unreadable)?),
    ))
}

fn only(entries: &[Subject], subject: &Subject) -> Result<Subject, String> {
    if entries.contains(subject) {
        return Ok(subject.clone());
    }
    let shown: Vec<String> = entries.iter().map(ToString::to_string).collect();
    let hint = match nearest(&subject.to_string(), shown.iter().map(String::as_str)) {
        Some(nearest) => format!("; did you mean `{nearest}`?"),
        None => String::new(),
    };
    Err(format!("{subject} is not in quarantine{hint}"))
}

#[cfg(test)]
mod tests;
