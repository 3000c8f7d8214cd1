//! A request as those see it whom CUSTOM policies ask: as the app will see it, and what mutual TLS proved of its caller.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use http::{HeaderMap, Uri, Version, header};
use postern_authorizer::{Check, Http, Peer};
use serde_json::{Map, json};

use super::decision_id;
use crate::exchange::Exchange;
use crate::inbound::authenticate::Caller;
use crate::inbound::user::Look;
use crate::inbound::{Connection, sanitize};
use crate::outcome::Failure;
use crate::worker::Worker;

/// A whole head.
#[derive(Debug, Clone, Copy)]
pub(in crate::inbound) struct Whole<'a> {
    pub(in crate::inbound) fields: &'a HeaderMap,
    pub(in crate::inbound) uri: &'a Uri,
    pub(in crate::inbound) look: Option<&'a Look>,
    pub(in crate::inbound) version: Version,
}

pub(super) fn of(connection: &Connection, whole: Option<Whole<'_>>, exchange: &Exchange) -> Result<Check, Failure> {
    let (caller, port) = (&connection.caller, &connection.port);
    let mut check = of_stream(&connection.worker, caller, port.number, port.app.ip());
    check.http = whole
        .map(|whole| http(&connection.worker, caller, whole, exchange))
        .transpose()?;
    Ok(check)
}

/// Of bytes there is only who calls whom.
pub(super) fn of_stream(worker: &Worker, caller: &Caller, port: u16, destination: IpAddr) -> Check {
    let mut facts = Map::new();
    facts.insert("port".to_owned(), json!(port));
    facts.insert("mutualTls".to_owned(), json!(caller.peer().is_some()));
    if let Some((namespace, account)) = caller.peer().and_then(|peer| peer.id().workload()) {
        facts.insert("sourceNamespace".to_owned(), json!(namespace));
        facts.insert("sourceServiceAccount".to_owned(), json!(account));
    }
    Check {
        source: Peer {
            address: caller.address(),
            principal: caller.peer().map(|peer| peer.id().to_string()),
        },
        destination: Peer {
            address: Some(SocketAddr::new(destination, port)),
            principal: worker.shared.own_id().map(|id| id.to_string()),
        },
        time: SystemTime::now(),
        http: None,
        sni: caller.server_name().map(str::to_owned),
        context: BTreeMap::new(),
        facts,
    }
}

fn http(worker: &Worker, caller: &Caller, whole: Whole<'_>, exchange: &Exchange) -> Result<Http, Failure> {
    let head = exchange.head();
    // A token that the app will not see is nobody else's either.
    let (mut parts, ()) = http::Request::new(()).into_parts();
    (parts.headers, parts.uri) = (whole.fields.clone(), whole.uri.clone());
    if let Some(look) = whole.look {
        look.clean(&mut parts)?;
    }
    sanitize::request(&mut parts.headers, caller);
    if let Some(look) = whole.look {
        look.tell(&mut parts.headers);
    }
    let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let mut asked = Http {
        id: decision_id(worker.id),
        method: head.map_or_else(String::new, |head| head.method.to_string()),
        headers: BTreeMap::new(),
        path: path.to_owned(),
        host: head.map_or_else(String::new, |head| head.host.to_string()),
        scheme: if caller.peer().is_some() { "https" } else { "http" },
        protocol: match whole.version {
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        },
        size: length(whole.fields),
        // Bodies are not sent: a request waits for no byte of its own.
        body: None,
    };
    // It is the authority.
    parts.headers.remove(header::HOST);
    for (name, value) in &parts.headers {
        match asked.headers.get_mut(name.as_str()) {
            // HTTP/2 may split it (RFC 9113 section 8.2.3); a comma would make it another cookie.
            Some(known) if name == header::COOKIE => {
                known.push_str("; ");
                known.push_str(&String::from_utf8_lossy(value.as_bytes()));
            }
            _ => asked.add_header(name.as_str(), value.as_bytes()),
        }
    }
    asked.finish();
    Ok(asked)
}

fn length(fields: &HeaderMap) -> i64 {
    let declared = fields.get(header::CONTENT_LENGTH);
    declared
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .unwrap_or(-1)
}
