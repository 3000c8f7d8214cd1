//! Field hygiene: hop-by-hop fields, the identity fields that only we may set, and what trailers may hold.
//!
//! Some application servers take `_` and `.` in a field's name for `-` (CGI, WSGI, PHP), so every name of ours is
//! compared with the three folded together.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

/// The peer's certificate, as Envoy and Istio name it: `By=...;Hash=...;URI=...`.
pub const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// The peer's SPIFFE ID.
pub const SOURCE: HeaderName = HeaderName::from_static("x-postern-source");
/// On a denial: finds the line in the access log.
pub const DECISION_ID: HeaderName = HeaderName::from_static("x-postern-decision-id");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Fields of one hop (RFC 9110 section 7.6.1), `te`, `upgrade` and `connection` apart.
const OF_ONE_HOP: [HeaderName; 5] = [
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
];

/// What `Connection` may not take away: without them the message means something else.
const NEVER_NOMINATED: [HeaderName; 4] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::TRAILER,
];

/// Names that frame or route a message: an alias of one is an attempt at confusion.
const FRAMING: [&str; 5] = ["content-length", "transfer-encoding", "host", "connection", "te"];

/// How a field's name relates to those that we guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The app's business.
    Plain,
    /// Only we may set it; a client's copy is removed.
    Ours,
    /// Looks like a framing field and is none.
    FramingAlias,
}

/// Classifies a (lower-case) field name.
#[must_use]
pub fn kind_of(name: &str) -> Kind {
    let bytes = name.as_bytes();
    match bytes.first() {
        Some(b'x') if is_ours(bytes) => Kind::Ours,
        Some(b't' | b'c' | b'h') if bytes.iter().any(|b| matches!(b, b'_' | b'.')) => {
            if FRAMING.iter().any(|framing| folds_to(bytes, framing.as_bytes())) {
                Kind::FramingAlias
            } else {
                Kind::Plain
            }
        }
        _ => Kind::Plain,
    }
}

fn is_ours(name: &[u8]) -> bool {
    let begins = |prefix: &[u8]| name.get(..prefix.len()).is_some_and(|start| folds_to(start, prefix));
    begins(b"x-postern-") || begins(b"x-envoy-") || folds_to(name, XFCC.as_str().as_bytes())
        // Aliases of what gateways assert about clients; the plain forms are end to end.
        || (name.iter().any(|b| matches!(b, b'_' | b'.')) && (begins(b"x-forwarded-") || folds_to(name, b"x-real-ip")))
}

fn folds_to(name: &[u8], plain: &[u8]) -> bool {
    name.len() == plain.len()
        && name
            .iter()
            .zip(plain)
            .all(|(&a, &b)| a == b || (b == b'-' && matches!(a, b'_' | b'.')))
}

/// Does a framing alias stand among the fields? Such a request is refused.
#[must_use]
pub fn has_framing_alias(fields: &HeaderMap) -> bool {
    fields.keys().any(|name| kind_of(name.as_str()) == Kind::FramingAlias)
}

/// Removes every form of the identity fields that a client sent.
pub fn strip_ours(fields: &mut HeaderMap) {
    remove_where(fields, |name| kind_of(name) == Kind::Ours);
}

/// Removes the fields of these names (in lower case).
pub fn remove_where(fields: &mut HeaderMap, goes: impl Fn(&str) -> bool) {
    let gone: SmallVec<[HeaderName; 2]> = fields.keys().filter(|name| goes(name.as_str())).cloned().collect();
    for name in gone {
        fields.remove(name);
    }
}

/// Could `Connection` take a field of this name (in lower case) away? What it cannot is written on as it was understood.
#[must_use]
pub fn can_be_nominated(name: &str) -> bool {
    let written_anew = [
        header::CONNECTION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    !written_anew.iter().chain(&NEVER_NOMINATED).any(|never| never == name)
}

/// Removes what belongs to one hop: first what `Connection` names, then the fixed list. `te: trailers` stays (gRPC
/// needs it end to end), any other `te` goes. Leaves `upgrade` and `connection: upgrade` if `keep_upgrade`.
pub fn strip_hop_by_hop(fields: &mut HeaderMap, keep_upgrade: bool) {
    if fields.contains_key(header::CONNECTION) {
        let named: SmallVec<[HeaderName; 4]> = fields
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|b| *b == b','))
            .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
            .filter(|name| *name != header::TE && *name != header::UPGRADE && !NEVER_NOMINATED.contains(name))
            .collect();
        for name in named {
            fields.remove(name);
        }
        fields.remove(header::CONNECTION);
    }
    for name in &OF_ONE_HOP {
        fields.remove(name);
    }
    if let Some(te) = fields.get(header::TE) {
        let trailers = te
            .as_bytes()
            .split(|b| *b == b',')
            .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"));
        fields.remove(header::TE);
        if trailers {
            fields.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    if keep_upgrade {
        fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        fields.remove(header::UPGRADE);
    }
}

/// What an `Upgrade` field asks for that we pass on: one protocol, not `h2c` (RFC 9113 retired it, and it smuggles).
#[must_use]
pub fn wanted_upgrade(fields: &HeaderMap) -> bool {
    let mut upgrades = fields.get_all(header::UPGRADE).iter();
    let (Some(upgrade), None) = (upgrades.next(), upgrades.next()) else {
        return false;
    };
    let named = fields
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
    let protocol = upgrade.as_bytes().trim_ascii();
    let one = !protocol.is_empty() && !protocol.contains(&b',');
    let h2c = protocol.len() >= 2 && protocol[..2].eq_ignore_ascii_case(b"h2");
    let http = protocol.len() >= 4 && protocol[..4].eq_ignore_ascii_case(b"HTTP");
    named && one && !h2c && !http
}

/// May not stand in trailers: it belongs into the head or nowhere (RFC 9110 section 6.5.1), or is identity in any form.
/// `name` is lower case.
#[must_use]
pub fn is_forbidden_trailer(name: &str) -> bool {
    matches!(
        name,
        "host"
            | "content-length"
            | "transfer-encoding"
            | "connection"
            | "te"
            | "trailer"
            | "upgrade"
            | "authorization"
            | "cookie"
            | "set-cookie"
            | "content-encoding"
            | "content-type"
            | "content-range"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authorization"
            | "expect"
            | "forwarded"
            | "x-real-ip"
            | "max-forwards"
            | "cache-control"
    ) || name.starts_with("x-forwarded-")
        || kind_of(name) != Kind::Plain
}

/// Removes what [`is_forbidden_trailer`].
pub fn clean_trailers(trailers: &mut HeaderMap) {
    remove_where(trailers, is_forbidden_trailer);
}

/// Is it gRPC? Then refusals are told in gRPC's way.
#[must_use]
pub fn is_grpc(fields: &HeaderMap) -> bool {
    fields
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn z_09_every_alias_of_an_identity_field_is_ours() {
        for name in [
            "x-forwarded-client-cert",
            "x_forwarded_client_cert",
            "x.forwarded.client-cert",
            "x-postern-source",
            "x_postern_source",
            "x.postern.anything",
            "x-envoy-peer-metadata",
            "x_forwarded_for",
            "x_real_ip",
        ] {
            assert_eq!(kind_of(name), Kind::Ours, "{name}");
        }
        for name in [
            "x-forwarded-for",
            "x-real-ip",
            "x-request-id",
            "traceparent",
            "xpostern",
            "x-posternsource",
        ] {
            assert_eq!(kind_of(name), Kind::Plain, "{name}");
        }
    }

    #[test]
    fn h1_04_underscored_framing_names_are_aliases() {
        for name in ["content_length", "transfer_encoding", "transfer.encoding"] {
            assert_eq!(kind_of(name), Kind::FramingAlias, "{name}");
        }
        for name in ["content-length", "te", "host", "content_type"] {
            assert_eq!(kind_of(name), Kind::Plain, "{name}");
        }
    }

    #[test]
    fn z_10_connection_takes_away_what_it_names_but_not_what_frames() {
        let mut map = fields(&[
            ("connection", "Close, X-Secret , HOST,content-length"),
            ("connection", "x-other"),
            ("x-secret", "1"),
            ("x-other", "1"),
            ("host", "a"),
            ("content-length", "0"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("upgrade", "websocket"),
        ]);
        strip_hop_by_hop(&mut map, false);
        let mut left: Vec<&str> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "te"]);
        assert_eq!(map.get("te").unwrap(), "trailers");
    }

    #[test]
    fn h1_10_only_a_single_named_protocol_other_than_http_2_is_an_upgrade() {
        let asks = |upgrade, connection| wanted_upgrade(&fields(&[("upgrade", upgrade), ("connection", connection)]));
        assert!(asks("websocket", "keep-alive, Upgrade"));
        assert!(!asks("websocket", "keep-alive"));
        assert!(!asks("h2c", "Upgrade, HTTP2-Settings"));
        assert!(!asks("websocket, h2c", "upgrade"));
        assert!(!asks("HTTP/2.0", "upgrade"));
        assert!(!asks("TLS/1.0", "close"));
    }

    #[test]
    fn h1_08_trailers_lose_framing_identity_and_credentials() {
        let mut map = fields(&[
            ("host", "b"),
            ("transfer-encoding", "chunked"),
            ("authorization", "x"),
            ("x_postern_source", "x"),
            ("x-forwarded-for", "x"),
            ("grpc-status", "0"),
            ("x-checksum", "1"),
        ]);
        clean_trailers(&mut map);
        assert_eq!(map.len(), 2);
    }
}
