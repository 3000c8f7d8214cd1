//! HTTP from our app: each request is resolved, cleaned and forwarded on its own.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, request};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite};

use super::forward::{self, InFlight, OpenStream};
use super::originate::Carries;
use super::relay::Relay;
use super::resolve::{self, Nowhere, Route};
use crate::exchange::{self, Exchange, Head, Leg, Way};
use crate::http::answer::{self, Told};
use crate::http::body::Body;
use crate::http::server::{self, Abort, Upgraded};
use crate::http::upgrade::{self, Pending};
use crate::http::{Version, h1, headers};
use crate::limits::ROUTES_PER_CONNECTION;
use crate::metrics::Direction;
use crate::outcome::{BadRequest, Failure};
use crate::snapshot::Target;
use crate::stream::{Reset, Rewound};
use crate::supervise::{Control, Speaks, Supervisor};
use crate::worker::Worker;

/// Why a destination is refused that would loop.
const THIS_PROXY: &str = "that is this proxy itself";

/// Where the requests of a connection go.
#[derive(Debug)]
pub(super) enum Aim {
    /// All of them there: captured, or in a tunnel.
    Fixed(Target),
    /// All of them there, and only over mutual TLS.
    Secured(Target),
    /// Each says where: a client of the explicit port, which is at this address.
    Named(Option<SocketAddr>),
}

/// What a CONNECT was answered with.
#[derive(Debug)]
pub(super) enum Tunnel {
    /// The peer's side is open.
    Opened(Rc<Route>, OpenStream, Rc<Exchange>),
    /// What goes through it is looked at like a captured connection.
    Inner(Target),
}

/// What follows an HTTP/1 connection's last answer.
#[derive(Debug)]
enum After {
    Upgrade(Pending),
    Tunnel(Tunnel),
}

/// One HTTP connection of our app.
pub(super) struct Serving {
    pub(super) worker: Rc<Worker>,
    pub(super) aim: Aim,
    pub(super) client: Option<SocketAddr>,
    control: Rc<Control>,
    version: Version,
    routes: RefCell<SmallVec<[Rc<Route>; 1]>>,
    host: RefCell<Rc<str>>,
    after: RefCell<Option<After>>,
}

/// Serves one connection to its end, or until a CONNECT was answered: then the rest is the caller's.
pub(super) async fn serve<IO>(
    worker: &Rc<Worker>,
    client: Rewound<IO>,
    version: Version,
    aim: Aim,
    address: Option<SocketAddr>,
) -> Option<(Upgraded<Rewound<IO>>, Tunnel)>
where
    IO: AsyncRead + AsyncWrite + Reset + Unpin + 'static,
{
    let speaks = match version {
        Version::H1 => Speaks::Http1,
        Version::H2 => Speaks::Http2,
    };
    let control = Supervisor::watch(worker, speaks, None);
    let serving = Rc::new(Serving {
        worker: Rc::clone(worker),
        aim,
        client: address,
        control: Rc::clone(&control),
        version,
        routes: RefCell::default(),
        host: RefCell::new("".into()),
        after: RefCell::new(None),
    });
    let client = match (version, &serving.aim) {
        (Version::H1, Aim::Fixed(target)) => {
            let relay = Relay {
                serving: &serving,
                target,
            };
            match h1::serve(client, &control, &relay).await {
                // What is rare is hyper's; it reads again what the relay has read.
                Ok(h1::Ended::Other(client, unread)) => client.preceded_by(unread),
                Ok(h1::Ended::Closed) => return None,
                Err(failure) => {
                    serving.broke_off(failure);
                    return None;
                }
            }
        }
        (Version::H1 | Version::H2, _) => client,
    };
    let of_requests = Rc::clone(&serving);
    let service = service_fn(move |request| handle(Rc::clone(&of_requests), request));
    let ended = server::serve(client, version, &control, service).await;
    let after = serving.after.take();
    match (ended, after) {
        (Ok(Some(client)), Some(After::Upgrade(pending))) => {
            let exchange = Rc::clone(&pending.exchange);
            tokio::select! {
                // Dropped only to close both streams.
                _ = upgrade::tunnel(client, pending) => {}
                failure = control.cut() => exchange.fail(failure),
            }
            None
        }
        (Ok(Some(client)), Some(After::Tunnel(tunnel))) => Some((client, tunnel)),
        (Ok(_), _) => None,
        (Err(failure), after) => {
            match after {
                Some(After::Upgrade(Pending { exchange, .. }) | After::Tunnel(Tunnel::Opened(_, _, exchange))) => {
                    exchange.fail(failure);
                }
                Some(After::Tunnel(Tunnel::Inner(_))) | None => {}
            }
            serving.broke_off(failure);
            None
        }
    }
}

async fn handle(serving: Rc<Serving>, request: Request<Incoming>) -> Result<Response<Body>, Abort> {
    let (mut parts, body) = request.into_parts();
    if parts.method == Method::CONNECT {
        return Ok(serving.connect(&parts).await);
    }
    let grpc = headers::is_grpc(&parts.headers);
    let resolved = match serving.target(&mut parts) {
        Ok(target) => serving.route(&target).await,
        Err(failure) => return Ok(serving.refuse_unheard(failure, grpc)),
    };
    let head = Head {
        method: parts.method.clone(),
        target: exchange::Target::Uri(parts.uri.clone()),
        host: serving.shown_host(host_of(&parts)),
    };
    let route = match resolved {
        Ok(route) => route,
        Err(nowhere) => return Ok(serving.nowhere(&nowhere, grpc, Some(head))),
    };
    let exchange = Exchange::begin(Rc::clone(&route.way), Some(head));
    exchange.goes_in_clear_to(route.in_clear_to());
    serving.control.carries(&exchange);
    let upgrade = clean(&mut parts.headers);
    parts.extensions.clear();
    let body = if body.is_end_stream() {
        Body::empty()
    } else {
        Body::incoming(body, Rc::clone(&exchange), Leg::Request)
    };
    let request = Request::from_parts(parts, body);
    let sending = forward::request(&serving.worker, &route, request, &exchange);
    let forwarded = match exchange.unless_cut(sending).await {
        Ok(forwarded) => forwarded,
        Err(cut) => Err(cut),
    };
    Ok(match forwarded {
        Ok((response, in_flight)) => serving.answer(response, in_flight, upgrade, grpc, exchange),
        Err(failure) => serving.refuse(failure, grpc, &exchange),
    })
}

/// Hop-by-hop fields end here, and nobody may speak for us. True if it asks for an upgrade that is passed on.
fn clean(fields: &mut HeaderMap) -> bool {
    let upgrade = headers::wanted_upgrade(fields);
    headers::strip_hop_by_hop(fields, upgrade);
    headers::strip_ours(fields);
    upgrade
}

impl Serving {
    /// Labels of the connection's last request.
    pub(super) fn last_way(&self) -> Option<Rc<Way>> {
        self.routes.borrow().last().map(|route| Rc::clone(&route.way))
    }

    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    /// A connection that broke outside of any request.
    fn broke_off(&self, failure: Failure) {
        match failure {
            Failure::PeerGone | Failure::Draining => {}
            other => self.worker.metrics.refused_connection(Direction::Outbound, other),
        }
    }

    /// Where this request goes; a named target's authority becomes `Host` (RFC 9112 section 3.2.2).
    fn target(&self, parts: &mut request::Parts) -> Result<Target, Failure> {
        let bad = Failure::BadRequest(BadRequest::Target);
        match &self.aim {
            Aim::Fixed(target) | Aim::Secured(target) => Ok(target.clone()),
            Aim::Named(_) => {
                let authority = parts.uri.authority().ok_or(bad)?;
                if parts.uri.scheme_str() != Some("http") || authority.as_str().contains('@') {
                    return Err(bad);
                }
                let port = authority.port_u16().unwrap_or(80);
                let target = named(authority.host(), port)?;
                let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad)?;
                parts.headers.insert(HOST, host);
                Ok(target)
            }
        }
    }

    /// The route of this connection to `target`: remembered while nothing about it changes.
    pub(super) async fn route(&self, target: &Target) -> Result<Rc<Route>, Nowhere> {
        let known = self
            .routes
            .borrow()
            .iter()
            .find(|route| route.is_current(&self.worker, target))
            .cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let carries = Carries::Http(self.version);
        let route = resolve::resolve(&self.worker, target.clone(), carries, self.client).await?;
        if let Aim::Named(Some(ours)) = self.aim
            && route.leads_to(ours)
        {
            return Err(Nowhere {
                failure: Failure::UnknownDestination,
                detail: THIS_PROXY.to_owned(),
                way: Rc::clone(&route.way),
            });
        }
        if let Aim::Secured(_) = self.aim
            && !route.is_secured()
        {
            return Err(Nowhere {
                failure: Failure::NoPeerIdentity,
                detail: "it would be reached in clear".to_owned(),
                way: Rc::clone(&route.way),
            });
        }
        let mut routes = self.routes.borrow_mut();
        routes.retain(|known| !known.leads_where(target));
        if routes.len() >= ROUTES_PER_CONNECTION {
            routes.remove(0);
        }
        routes.push(Rc::clone(&route));
        Ok(route)
    }

    /// For the log; the next request nearly always names the same.
    pub(super) fn shown_host(&self, text: &str) -> Rc<str> {
        let mut known = self.host.borrow_mut();
        if **known != *text {
            *known = text.into();
        }
        Rc::clone(&known)
    }

    fn answer(
        &self,
        response: Response<Incoming>,
        in_flight: InFlight,
        upgrade: bool,
        grpc: bool,
        exchange: Rc<Exchange>,
    ) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            if upgrade && self.version == Version::H1 {
                return self.switch(response, &exchange);
            }
            return self.refuse(Failure::BadAnswer, grpc, &exchange);
        }
        exchange.answered(response.status());
        let (mut parts, incoming) = response.into_parts();
        headers::strip_hop_by_hop(&mut parts.headers, false);
        parts.extensions.clear();
        // Each hop speaks its own version (RFC 9110 section 6.2): chunked, a broken answer never looks whole.
        parts.version = http::Version::HTTP_11;
        let body = Body::incoming(incoming, exchange, Leg::Answer)
            .of_grpc(grpc && self.version == Version::H2)
            .holding(Box::new(in_flight));
        Response::from_parts(parts, body)
    }

    /// The peer's app said 101: our app hears it, and the tunnel begins once hyper has let go of the stream.
    fn switch(&self, mut response: Response<Incoming>, exchange: &Rc<Exchange>) -> Response<Body> {
        exchange.answered(response.status());
        let upstream = hyper::upgrade::on(&mut response);
        self.then(After::Upgrade(Pending {
            upstream,
            exchange: Rc::clone(exchange),
        }));
        let (mut parts, _) = response.into_parts();
        headers::strip_hop_by_hop(&mut parts.headers, true);
        parts.extensions.clear();
        Response::from_parts(parts, Body::empty())
    }

    fn then(&self, after: After) {
        self.control.upgrade();
        *self.after.borrow_mut() = Some(after);
    }

    /// A request that names no destination: counted with the connections that were turned away.
    fn refuse_unheard(&self, failure: Failure, grpc: bool) -> Response<Body> {
        self.worker.metrics.refused_connection(Direction::Outbound, failure);
        answer::refusal(failure, grpc, self.version, Told::default())
    }

    fn refuse(&self, failure: Failure, grpc: bool, exchange: &Rc<Exchange>) -> Response<Body> {
        self.refuse_saying(failure, grpc, exchange, failure.facts().reason)
    }

    fn refuse_saying(&self, failure: Failure, grpc: bool, exchange: &Rc<Exchange>, text: &str) -> Response<Body> {
        exchange.fail(failure);
        let response = answer::refusal_saying(failure, grpc, self.version, Told::default(), text);
        exchange.answered(response.status());
        response.map(|body| body.watched_to_end(Rc::clone(exchange)))
    }

    fn nowhere(&self, nowhere: &Nowhere, grpc: bool, head: Option<Head>) -> Response<Body> {
        let exchange = Exchange::begin(Rc::clone(&nowhere.way), head);
        self.control.carries(&exchange);
        self.refuse_saying(nowhere.failure, grpc, &exchange, &nowhere.text())
    }

    /// CONNECT on the explicit port. Bytes that we look into are looked at inside the tunnel; for all others the peer's
    /// side is opened first, so that the answer is true.
    async fn connect(&self, parts: &request::Parts) -> Response<Body> {
        let head = || Head {
            method: parts.method.clone(),
            target: exchange::Target::Uri(parts.uri.clone()),
            host: self.shown_host(host_of(parts)),
        };
        let target = match (&self.aim, parts.uri.authority()) {
            (Aim::Named(_), Some(authority)) if !authority.as_str().contains('@') => authority
                .port_u16()
                .ok_or(Failure::BadRequest(BadRequest::Target))
                .and_then(|port| named(authority.host(), port)),
            (Aim::Named(_) | Aim::Fixed(_) | Aim::Secured(_), _) => Err(Failure::BadRequest(BadRequest::Target)),
        };
        let target = match target {
            Ok(target) => target,
            Err(failure) => return self.refuse_unheard(failure, false),
        };
        if resolve::declared(&self.worker, &target).await.is_looked_into() {
            self.then(After::Tunnel(Tunnel::Inner(target)));
            return Response::new(Body::empty());
        }
        let route = match resolve::resolve(&self.worker, target, Carries::Bytes, self.client).await {
            Ok(route) => route,
            Err(nowhere) => return self.nowhere(&nowhere, false, Some(head())),
        };
        let exchange = Exchange::begin(Rc::clone(&route.way), None);
        if let Aim::Named(Some(ours)) = self.aim
            && route.leads_to(ours)
        {
            return self.refuse_saying(Failure::UnknownDestination, false, &exchange, THIS_PROXY);
        }
        self.control.carries(&exchange);
        let opening = exchange.unless_cut(forward::open_stream(&self.worker, &route)).await;
        match opening.and_then(|opened| opened) {
            Ok(opened) => {
                self.then(After::Tunnel(Tunnel::Opened(route, opened, exchange)));
                Response::new(Body::empty())
            }
            Err(failure) => self.refuse(failure, false, &exchange),
        }
    }
}

fn host_of(parts: &request::Parts) -> &str {
    match parts.uri.authority() {
        Some(authority) => authority.as_str(),
        None => parts
            .headers
            .get(HOST)
            .and_then(|host| host.to_str().ok())
            .unwrap_or(""),
    }
}

/// Names are compared without case (RFC 9110 section 4.2.3).
fn named(host: &str, port: u16) -> Result<Target, Failure> {
    if host.is_empty() || port == 0 {
        return Err(Failure::BadRequest(BadRequest::Target));
    }
    Ok(Target::Name(host.to_ascii_lowercase().into(), port))
}
