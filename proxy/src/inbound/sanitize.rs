//! What the app may believe: hop-by-hop fields go first, then every form of our own fields, then ours are set, once.

use http::header::{self, HeaderMap};

use super::authenticate::Caller;
use crate::http::headers;

/// Makes a request's fields ours to vouch for. True if it asks for an upgrade that is passed on.
pub fn request(fields: &mut HeaderMap, caller: &Caller) -> bool {
    let upgrade = headers::wanted_upgrade(fields);
    // The order matters: `Connection` could otherwise name what we set (CVE-2024-45410 of Traefik).
    headers::strip_hop_by_hop(fields, upgrade);
    headers::strip_ours(fields);
    // h2c's companion (RFC 7540 section 3.2.1); without its upgrade it means nothing.
    fields.remove("http2-settings");
    if let Some(xfcc) = caller.xfcc() {
        fields.insert(headers::XFCC, xfcc.clone());
    }
    if let Some(source) = caller.source() {
        fields.insert(headers::SOURCE, source.clone());
    }
    upgrade
}

/// An answer loses what belongs to its hop, and what only we may say.
pub fn answer(fields: &mut HeaderMap, upgraded: bool) {
    headers::strip_hop_by_hop(fields, upgraded);
    headers::strip_ours(fields);
    if fields.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
        // hyper has checked that they agree; one is left.
        let length = fields.get(header::CONTENT_LENGTH).cloned();
        fields.remove(header::CONTENT_LENGTH);
        if let Some(length) = length {
            fields.insert(header::CONTENT_LENGTH, length);
        }
    }
}
