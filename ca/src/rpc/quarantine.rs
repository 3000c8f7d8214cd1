//! What operators ask for: over the admin socket, or in a cluster by a token.

use std::sync::Arc;

use postern_api::ca::v1 as pb;
use postern_api::ca::v1::operate_quarantine_request::Operation;
use postern_api::ca_client::{ca_id, control_id};
use postern_api::quarantine_wire::subject_from_wire;
use postern_identity::SpiffeId;
use postern_identity::quarantine::Subject;
use tonic::Status;

use crate::issuance::{Ca, QuarantineChange};
use crate::quarantine::{Change, ChangeError, Entry, MAX_TEXT};

pub(super) async fn add(ca: &Arc<Ca>, request: pb::AddQuarantineRequest) -> Result<pb::QuarantineState, Status> {
    let asked = request.entry.unwrap_or_default();
    let subject = subject_of(&asked)?;
    for (what, text) in [("reason", &asked.reason), ("name of who asks", &asked.by)] {
        if text.chars().count() > MAX_TEXT || text.chars().any(char::is_control) {
            let message = format!("the {what} is one line of at most {MAX_TEXT} characters");
            return Err(Status::invalid_argument(message));
        }
    }
    if let (Some(what), false) = (stands_on(ca, &subject), request.force) {
        return Err(Status::failed_precondition(format!(
            "{subject} is {what}: without it {}; --force, if that is what you want",
            "the mesh lives on what it has and heals nothing"
        )));
    }
    let entry = Entry {
        reason: asked.reason,
        by: asked.by,
        since_unix: ca.now().as_secs(),
    };
    let told = (entry.reason.clone(), entry.by.clone());
    let (held, changed) = ca
        .change_quarantine(Change::Add(subject.clone(), entry))
        .await
        .map_err(status)?;
    if changed {
        let (reason_given, by) = told;
        tracing::warn!(reason = "quarantine", subject = %subject, by, reason_given, version = held.version, "cut off");
    }
    Ok(held.state(changed))
}

pub(super) async fn lift(
    ca: &Arc<Ca>,
    request: pb::LiftQuarantineRequest,
    by: &str,
) -> Result<pb::QuarantineState, Status> {
    let subject = subject_of(&request.entry.unwrap_or_default())?;
    let (held, changed) = ca
        .change_quarantine(Change::Lift(subject.clone()))
        .await
        .map_err(status)?;
    tracing::warn!(reason = "quarantine", subject = %subject, by, version = held.version, "cut off no longer");
    Ok(held.state(changed))
}

/// By an operator of a cluster, who has shown that.
pub(super) async fn operated(ca: &Arc<Ca>, operation: Option<Operation>) -> Result<pb::QuarantineState, Status> {
    match operation {
        Some(Operation::Add(wanted)) => add(ca, wanted).await,
        Some(Operation::Lift(wanted)) => lift(ca, wanted, "an operator of the cluster").await,
        Some(Operation::List(pb::ListQuarantineRequest {})) => Ok(ca.quarantine().state(false)),
        None => Err(Status::invalid_argument("no operation: add, lift or list")),
    }
}

#[allow(clippy::result_large_err)] // What the methods of these services return.
fn subject_of(entry: &pb::Quarantined) -> Result<Subject, Status> {
    subject_from_wire(entry.subject.as_ref()).map_err(|error| Status::invalid_argument(crate::error_chain(&error)))
}

/// What it is to the mesh itself.
fn stands_on(ca: &Ca, subject: &Subject) -> Option<&'static str> {
    let trust_domain = ca.authority().trust_domain().clone();
    let id = match subject {
        Subject::Id(id) | Subject::Instance(_, Some(id)) => id,
        Subject::Instance(_, None) | Subject::Serial(_) => return None,
    };
    let injector = SpiffeId::for_workload(&trust_domain, "postern-system", "postern-injector");
    [
        (ca_id(&trust_domain), "the CA"),
        (control_id(&trust_domain), "control"),
        (injector, "the injector"),
    ]
    .into_iter()
    .find_map(|(known, what)| known.is_ok_and(|known| known == *id).then_some(what))
}

fn status(error: QuarantineChange) -> Status {
    match &error {
        QuarantineChange::Refused(ChangeError::NotThere(_)) => Status::not_found(error.to_string()),
        QuarantineChange::Refused(ChangeError::Full(_)) => Status::resource_exhausted(error.to_string()),
        QuarantineChange::Refused(ChangeError::Sign(_)) | QuarantineChange::Store(_) => {
            Status::unavailable(crate::error_chain(&error))
        }
    }
}
