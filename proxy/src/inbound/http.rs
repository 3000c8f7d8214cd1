//! HTTP from a peer: each request is checked, decided, cleaned and forwarded on its own.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;

use http::{Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;

use super::fields::OfMap;
use super::request::{self, HostCache};
use super::user::Shown;
use super::{Connection, authorize, edit, forward, sanitize, user};
use crate::exchange::{Exchange, Head, Leg, Target, Way};
use crate::http::answer::{self, Told};
use crate::http::body::Body;
use crate::http::server::{self, Abort};
use crate::http::upgrade::{self, Pending};
use crate::http::{Version, h1, headers, target};
use crate::metrics::Direction;
use crate::outcome::Failure;
use crate::snapshot::Protocol;
use crate::stream::{Rewound, Transport};
use crate::supervise::{Control, Speaks, Supervisor};

/// One HTTP connection.
pub(super) struct Serving {
    pub(super) connection: Rc<Connection>,
    pub(super) control: Rc<Control>,
    version: Version,
    pub(super) hosts: HostCache,
    way: OnceCell<Rc<Way>>,
    upgrading: RefCell<Option<Pending>>,
}

/// Serves one connection to its end.
pub async fn serve(connection: Rc<Connection>, transport: Rewound<Transport>, version: Version) {
    let speaks = match version {
        Version::H1 => Speaks::Http1,
        Version::H2 => Speaks::Http2,
    };
    let control = Supervisor::watch(&connection.worker, speaks, Some(&connection.caller));
    connection.is_watched_by(&control);
    let serving = Rc::new(Serving {
        connection,
        control: Rc::clone(&control),
        version,
        hosts: HostCache::default(),
        way: OnceCell::new(),
        upgrading: RefCell::new(None),
    });
    let transport = if version == Version::H1 && serving.app_version() == Version::H1 {
        match h1::serve(transport, &control, &*serving).await {
            // What is rare is hyper's; it reads again what the relay has read.
            Ok(h1::Ended::Other(transport, unread)) => transport.preceded_by(unread),
            Ok(h1::Ended::Closed) => return,
            Err(failure) => return serving.ended(failure),
        }
    } else {
        transport
    };
    let of_requests = Rc::clone(&serving);
    let service = service_fn(move |request| handle(Rc::clone(&of_requests), request));
    let ended = server::serve(transport, version, &control, service).await;
    let pending = serving.upgrading.take();
    match (ended, pending) {
        (Ok(Some(client)), Some(pending)) => {
            let exchange = Rc::clone(&pending.exchange);
            tokio::select! {
                // Dropped only to close both streams.
                _ = upgrade::tunnel(client, pending) => {}
                failure = control.cut() => exchange.fail(failure),
            }
        }
        (Ok(_), _) => {}
        (Err(failure), pending) => {
            if let Some(pending) = pending {
                pending.exchange.fail(failure);
            }
            serving.ended(failure);
        }
    }
}

impl Serving {
    pub(super) fn way(&self) -> &Rc<Way> {
        self.way.get_or_init(|| {
            let protocol = match self.version {
                Version::H1 => Protocol::Http1,
                Version::H2 => Protocol::Http2,
            };
            self.connection.way(protocol)
        })
    }

    /// A connection that broke outside of any request: heads that hyper refused are counted here.
    fn ended(&self, failure: Failure) {
        match failure {
            Failure::PeerGone | Failure::Draining => {}
            other => self
                .connection
                .worker
                .metrics
                .refused_connection(Direction::Inbound, other),
        }
    }

    /// What the app speaks: declared, or what the client speaks. A foreign client may well negotiate HTTP/2 with us
    /// for an app that does not; only sidecars know (`postern/h2`), so gRPC is the one thing believed of others.
    fn app_version(&self) -> Version {
        match self.connection.port.protocol {
            Protocol::Http1 => Version::H1,
            Protocol::Http2 => Version::H2,
            Protocol::Detect | Protocol::Tcp => self.version,
        }
    }
}

async fn handle(serving: Rc<Serving>, request: Request<Incoming>) -> Result<Response<Body>, Abort> {
    let (mut parts, body) = request.into_parts();
    let grpc = headers::is_grpc(&parts.headers);
    let checked = request::check(&mut parts, &serving.hosts);
    let head = Head {
        method: parts.method.clone(),
        target: Target::Uri(parts.uri.clone()),
        host: checked
            .as_ref()
            .map_or_else(|_| Rc::from(""), |host| Rc::clone(&host.shown)),
    };
    let exchange = Exchange::begin(Rc::clone(serving.way()), Some(head));
    serving.control.carries(&exchange);
    if serving.control.is_readmitted() {
        // It would be told of as the old certificate's.
        return match serving.version {
            Version::H1 => Ok(serving.refuse(Failure::Draining, grpc, &exchange)),
            Version::H2 => {
                exchange.fail(Failure::Draining);
                Err(Abort::unprocessed())
            }
        };
    }
    let forwarded = async {
        let host = checked?;
        let looking = user::settled(&serving.connection, &parts);
        let look = exchange.unless_cut(looking).await?;
        let asked = authorize::Asked {
            host: &host.canonical,
            fields: &Shown {
                sent: &OfMap(&parts.headers),
                look: look.as_deref(),
            },
            user: look.as_ref(),
        };
        let admission = {
            let state = serving.connection.worker.shared.policy.load();
            let whole = authorize::Whole {
                fields: &parts.headers,
                uri: &parts.uri,
                look: look.as_deref(),
                version: parts.version,
            };
            authorize::request(&serving.connection, state.as_deref(), asked, Some(whole), &exchange)?
        };
        let (permit, edits) = match admission {
            authorize::Admission::Permitted(permit) => (permit, None),
            authorize::Admission::Asks(question) => {
                let asking = Box::pin(question.ask(&serving.connection, &exchange));
                let (permit, edits) = exchange.unless_cut(asking).await??;
                (permit, Some(Box::new(edits)))
            }
        };
        // Verified anew if somebody was asked for long.
        let look = permit.look();
        if let Some(look) = &look {
            look.clean(&mut parts)?;
        }
        let upgrade = sanitize::request(&mut parts.headers, &serving.connection.caller);
        if let Some(edits) = &edits {
            edit::request(&mut parts, edits)?;
        }
        if let Some(look) = &look {
            look.tell(&mut parts.headers);
        }
        let version = serving.app_version();
        target::retarget(&mut parts.uri, &mut parts.headers, version)?;
        parts.version = match version {
            Version::H1 => http::Version::HTTP_11,
            Version::H2 => http::Version::HTTP_2,
        };
        parts.extensions.clear();
        let body = if body.is_end_stream() {
            Body::empty()
        } else {
            Body::incoming(body, Rc::clone(&exchange), Leg::Request)
        };
        let request = Request::from_parts(parts, body);
        let sending = forward::request(&serving.connection, permit, request, version, &exchange);
        let (response, lease) = exchange.unless_cut(sending).await??;
        Ok((response, lease, upgrade && version == Version::H1, edits))
    };
    let forwarded: Result<_, Failure> = forwarded.await;
    match forwarded {
        Ok((mut response, lease, upgrade, edits)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            if upgrade {
                if let Some(edits) = edits {
                    edit::answer(response.headers_mut(), &edits);
                }
                Ok(serving.switch(response, &exchange))
            } else {
                drop(lease);
                Ok(serving.refuse(Failure::BadAnswer, grpc, &exchange))
            }
        }
        Ok((response, lease, _, edits)) => {
            exchange.answered(response.status());
            let (mut parts, incoming) = response.into_parts();
            sanitize::answer(&mut parts.headers, false);
            if let Some(edits) = edits {
                edit::answer(&mut parts.headers, &edits);
            }
            parts.extensions.clear();
            // Each hop speaks its own version (RFC 9110 section 6.2): an HTTP/1.0 app must not end its peers' connections.
            parts.version = http::Version::HTTP_11;
            let body = Body::incoming(incoming, exchange, Leg::Answer)
                .of_grpc(grpc && serving.version == Version::H2)
                .holding(Box::new(lease));
            Ok(Response::from_parts(parts, body))
        }
        Err(failure) => Ok(serving.refuse(failure, grpc, &exchange)),
    }
}

impl Serving {
    fn refuse(&self, failure: Failure, grpc: bool, exchange: &Rc<Exchange>) -> Response<Body> {
        exchange.fail(failure);
        let response = match exchange.take_refusal().filter(|_| failure == Failure::CustomDenied) {
            Some(refusal) => answer::of_authorizer(*refusal, grpc, exchange.decision_id()),
            None => answer::refusal(failure, grpc, self.version, Told::of(exchange)),
        };
        exchange.answered(response.status());
        response.map(|body| body.watched_to_end(Rc::clone(exchange)))
    }

    /// The app said 101: the client hears it, and the tunnel begins once hyper has let go of the stream.
    fn switch(&self, mut response: Response<Incoming>, exchange: &Rc<Exchange>) -> Response<Body> {
        exchange.answered(response.status());
        let upstream = hyper::upgrade::on(&mut response);
        self.control.upgrade();
        *self.upgrading.borrow_mut() = Some(Pending {
            upstream,
            exchange: Rc::clone(exchange),
        });
        let (mut parts, _) = response.into_parts();
        sanitize::answer(&mut parts.headers, true);
        parts.extensions.clear();
        Response::from_parts(parts, Body::empty())
    }
}
