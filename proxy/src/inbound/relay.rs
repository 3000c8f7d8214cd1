//! What our HTTP/1 relay does with requests from a peer: check, decide, clean, forward with the permit.

use std::rc::Rc;

use http::Method;

use super::fields::OfRelayed;
use super::http::Serving;
use super::user::Shown;
use super::{authorize, forward, request, user};
use crate::exchange::{Exchange, Head, Target};
use crate::http::h1::head::RequestHead;
use crate::http::h1::{NotBegun, Refused, Service, Unprepared, fields};
use crate::http::headers;
use crate::outcome::{BadRequest, Failure};

impl Service for Serving {
    type Prepared = ();
    type Ticket = forward::Admitted;
    type Upstream = forward::AppLease;

    async fn prepare(&self) -> Result<(), Unprepared> {
        Ok(())
    }

    fn relays(&self, (): &()) -> bool {
        true
    }

    fn begin(
        &self,
        (): &(),
        head: &RequestHead<'_, '_>,
        out: &mut Vec<u8>,
    ) -> Result<(Rc<Exchange>, forward::Admitted), NotBegun> {
        let checked = request::check_relayed(head, &self.hosts);
        let (sent, query) = (OfRelayed(head), head.query().strip_prefix('?'));
        let look = match &checked {
            Ok(_) => user::look(&self.connection, &sent, query),
            Err(_) => None,
        };
        // Before anything is recorded: it is looked at anew where it can wait.
        if look.as_ref().is_some_and(|look| look.may_settle()) && user::may_wait(&self.connection) {
            return Err(NotBegun::Other);
        }
        // One policy for both questions: whether somebody is asked, and what is decided.
        let state = self.connection.worker.shared.policy.load();
        let state = state.as_deref();
        if let (Ok((host, path)), Some(state)) = (&checked, state) {
            let asked = authorize::Asked {
                host: &host.canonical,
                fields: &Shown {
                    sent: &sent,
                    look: look.as_deref(),
                },
                user: look.as_ref(),
            };
            if authorize::asks(&self.connection, state, asked, head.method, path) {
                return Err(NotBegun::Other);
            }
        }
        let method = Method::from_bytes(head.method.as_bytes())
            .map_err(|_| Refused::of(Failure::BadRequest(BadRequest::Framing), self.unheard()))?;
        let told = Head {
            method,
            target: Target::Path(checked.as_ref().map_or(head.path(), |(_, path)| path).into()),
            host: checked
                .as_ref()
                .map_or_else(|_| Rc::from(""), |(host, _)| Rc::clone(&host.shown)),
        };
        let exchange = Exchange::begin(Rc::clone(self.way()), Some(told));
        self.control.carries(&exchange);
        let refused = |failure| Refused::of(failure, Some(Rc::clone(&exchange)));
        if self.control.is_readmitted() {
            // It would be told of as the old certificate's.
            return Err(refused(Failure::Draining).into());
        }
        let (host, path) = checked.map_err(refused)?;
        let asked = authorize::Asked {
            host: &host.canonical,
            fields: &Shown {
                sent: &sent,
                look: look.as_deref(),
            },
            user: look.as_ref(),
        };
        let admission = authorize::request(&self.connection, state, asked, None, &exchange);
        let permit = match admission.map_err(refused)? {
            authorize::Admission::Permitted(permit) => permit,
            // Said above, of the same state.
            authorize::Admission::Asks(_) => return Err(refused(Failure::CustomError).into()),
        };
        let admitted = forward::admit(permit, &exchange);

        let without = look
            .as_ref()
            .zip(query)
            .and_then(|(look, query)| look.query_without(query));
        let query = without.map(|left| left.map_or_else(String::new, |left| format!("?{left}")));
        let query = query.as_deref().unwrap_or(head.query());
        for part in [head.method, " ", &path, query, " HTTP/1.1\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        fields::write(out, b"host", host.shown.as_bytes());
        match look.as_deref() {
            None => fields::write_end_to_end(out, head.fields, &head.classes, &head.connection),
            Some(look) => look.write_rest(out, head),
        }
        // Theirs are gone; ours come once, last.
        let caller = &self.connection.caller;
        if let Some(xfcc) = caller.xfcc() {
            fields::write(out, headers::XFCC.as_str().as_bytes(), xfcc.as_bytes());
        }
        if let Some(source) = caller.source() {
            fields::write(out, headers::SOURCE.as_str().as_bytes(), source.as_bytes());
        }
        if let Some(look) = &look {
            for (name, value) in look.told() {
                fields::write(out, name.as_bytes(), value.as_bytes());
            }
        }
        Ok((exchange, admitted))
    }

    async fn open(
        &self,
        (): &(),
        admitted: &forward::Admitted,
        _: &Rc<Exchange>,
        fresh: bool,
    ) -> Result<forward::AppLease, Failure> {
        forward::relay(&self.connection, admitted, fresh).await
    }

    fn unheard(&self) -> Option<Rc<Exchange>> {
        Some(Exchange::begin(Rc::clone(self.way()), None))
    }

    fn may_repeat(&self) -> bool {
        // Our own app on our own host: one repetition at most, and only of what it may hear twice.
        true
    }

    fn cleans_answers(&self) -> bool {
        true
    }
}
