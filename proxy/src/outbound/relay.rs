//! What our HTTP/1 relay does with requests of our app: resolve, clean, forward to whoever should answer.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use http::Method;
use smallvec::SmallVec;

use super::forward::{Counted, may_try_another};
use super::http::Serving;
use super::originate::Riding;
use super::resolve::Route;
use crate::exchange::{Exchange, Head, Target};
use crate::http::h1::head::RequestHead;
use crate::http::h1::resting::{Lease, Upstream};
use crate::http::h1::{NotBegun, Refused, Service, Unprepared, fields};
use crate::limits::MAX_TRIES;
use crate::outcome::{BadRequest, Failure};
use crate::snapshot::Target as Destination;
use crate::stream::Transport;

/// A peer connection with one request on it.
#[derive(Debug)]
pub(crate) struct PeerLease {
    lease: Lease<Riding>,
    counted: Counted,
    since: Instant,
}

impl Upstream for PeerLease {
    fn io(&mut self) -> &mut Transport {
        self.lease.io()
    }
    fn rested(&self) -> Option<Duration> {
        self.lease.rested()
    }
    fn answered(&self) {
        self.counted.load().answered(self.since.elapsed());
    }
    fn failed(&self, failure: Failure) {
        self.counted.load().failed(failure, Instant::now());
    }
    fn give_back(self) {
        self.lease.give_back();
    }
}

/// A connection of our app whose requests all go to one place.
pub(super) struct Relay<'a> {
    pub(super) serving: &'a Serving,
    pub(super) target: &'a Destination,
}

impl Service for Relay<'_> {
    type Prepared = Rc<Route>;
    type Ticket = ();
    type Upstream = PeerLease;

    async fn prepare(&self) -> Result<Rc<Route>, Unprepared> {
        self.serving.route(self.target).await.map_err(|nowhere| Unprepared {
            failure: nowhere.failure,
            text: nowhere.text(),
            way: nowhere.way,
        })
    }

    fn relays(&self, route: &Rc<Route>) -> bool {
        route.speaks_http1()
    }

    fn begin(
        &self,
        route: &Rc<Route>,
        head: &RequestHead<'_, '_>,
        out: &mut Vec<u8>,
    ) -> Result<(Rc<Exchange>, ()), NotBegun> {
        let method = Method::from_bytes(head.method.as_bytes())
            .map_err(|_| Refused::of(Failure::BadRequest(BadRequest::Framing), self.unheard()))?;
        let told = Head {
            method,
            target: Target::Path(head.path().into()),
            host: self.serving.shown_host(head.host.unwrap_or("")),
        };
        let exchange = Exchange::begin(Rc::clone(&route.way), Some(told));
        exchange.goes_in_clear_to(route.in_clear_to());
        self.serving.control().carries(&exchange);
        for part in [head.method, " ", head.target, " HTTP/1.1\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        if let Some(host) = head.host {
            fields::write(out, b"host", host.as_bytes());
        }
        fields::write_end_to_end(out, head.fields, &head.classes, &head.connection);
        self.serving.worker.peers.retries.earn();
        Ok((exchange, ()))
    }

    async fn open(
        &self,
        route: &Rc<Route>,
        (): &(),
        exchange: &Rc<Exchange>,
        fresh: bool,
    ) -> Result<PeerLease, Failure> {
        let mut tried: SmallVec<[usize; MAX_TRIES]> = SmallVec::new();
        loop {
            let (at, group) = route.pick(&self.serving.worker, &tried)?;
            match group.relayed(&self.serving.worker, fresh).await {
                Ok(lease) => {
                    exchange.rides(Some(lease.admitted()));
                    return Ok(PeerLease {
                        lease,
                        counted: Counted::begin(group),
                        since: Instant::now(),
                    });
                }
                Err(failure) => {
                    group.load.failed(failure, Instant::now());
                    tried.push(at);
                    if !may_try_another(route, &tried, failure) {
                        return Err(failure);
                    }
                }
            }
        }
    }

    fn unheard(&self) -> Option<Rc<Exchange>> {
        let way = self.serving.last_way()?;
        Some(Exchange::begin(way, None))
    }

    fn may_repeat(&self) -> bool {
        self.serving.worker.peers.retries.spend()
    }

    fn cleans_answers(&self) -> bool {
        false
    }
}
