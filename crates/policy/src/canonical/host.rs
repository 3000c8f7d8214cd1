//! Hosts.

use std::net::Ipv6Addr;

use super::CanonicalError;

/// RFC 1035's limit for a name, and room for a bracketed IPv6 address.
const MAX_HOST: usize = 255;

/// A host in canonical form: lower case, no trailing dot, no userinfo, an IPv6 address as RFC 5952 writes it; with the
/// port, if one was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CanonicalHost {
    text: Box<str>,
    name_len: usize,
    port: Option<u16>,
}

impl CanonicalHost {
    /// From a `Host` or `:authority` value.
    pub fn parse(raw: &str) -> Result<Self, CanonicalError> {
        let (name, port) = split_port(raw)?;
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.len() > MAX_HOST {
            return Err(CanonicalError::Host);
        }
        let mut text = canonical_name(name).ok_or(CanonicalError::Host)?;
        let port = match port {
            None => None,
            Some(port) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => Some(
                port.parse::<u16>()
                    .ok()
                    .filter(|port| *port > 0)
                    .ok_or(CanonicalError::Host)?,
            ),
            Some(_) => return Err(CanonicalError::Host),
        };
        let name_len = text.len();
        if let Some(port) = port {
            text = format!("{text}:{port}");
        }
        Ok(Self {
            text: text.into_boxed_str(),
            name_len,
            port,
        })
    }

    /// `name` or `name:port`, as policies match it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Lower-case name or bracketed address, no port.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.text[..self.name_len]
    }

    /// The explicit port.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

fn split_port(raw: &str) -> Result<(&str, Option<&str>), CanonicalError> {
    if raw.starts_with('[') {
        let end = raw.find(']').ok_or(CanonicalError::Host)?;
        let (name, rest) = raw.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((name, Some(port))),
            None if rest.is_empty() => Ok((name, None)),
            None => Err(CanonicalError::Host),
        };
    }
    Ok(raw
        .split_once(':')
        .map_or((raw, None), |(name, port)| (name, Some(port))))
}

fn canonical_name(name: &str) -> Option<String> {
    if let Some(inner) = name.strip_prefix('[') {
        // `[::1]` and `[0:0::1]` are one address: a rule about one is a rule about both.
        let address: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some(format!("[{address}]"));
    }
    // Letters, digits, hyphen, dot, and the underscore that Kubernetes and SRV names use; no empty label.
    let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let is_host = name.split('.').all(|label| !label.is_empty()) && name.bytes().all(byte);
    is_host.then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn z_04_case_and_a_trailing_dot_change_nothing_and_the_port_stays() {
        for (raw, text) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("example.com.:8080", "example.com:8080"),
            ("[::1]:80", "[::1]:80"),
            ("[FD00::1]", "[fd00::1]"),
            ("[fd00:0:0:0:0:0:0:1]", "[fd00::1]"),
            ("[::ffff:a00:1]:80", "[::ffff:10.0.0.1]:80"),
            ("10.0.0.1:1", "10.0.0.1:1"),
        ] {
            assert_eq!(
                CanonicalHost::parse(raw).map(|h| h.as_str().to_owned()),
                Ok(text.to_owned()),
                "{raw}"
            );
        }
    }

    #[test]
    fn a_name_has_at_most_255_bytes() {
        let name = |len: usize| "a.".repeat(len / 2) + &"a".repeat(len % 2);
        assert!(CanonicalHost::parse(&name(MAX_HOST)).is_ok_and(|host| host.name().len() == MAX_HOST));
        let port = name(MAX_HOST) + ":8080";
        assert!(CanonicalHost::parse(&port).is_ok_and(|host| host.port() == Some(8080)));
        assert_eq!(CanonicalHost::parse(&name(MAX_HOST + 2)), Err(CanonicalError::Host));
    }

    #[test]
    fn h1_12_what_is_no_host_is_refused() {
        for raw in [
            "", ".", "a..b", "u@h", "h/p", "h:", "h:0", "h:65536", "h:+1", "h:1:2", "[::1", "[::1]x", "[x]", "a b",
            "h\u{e9}", "h?",
        ] {
            assert_eq!(CanonicalHost::parse(raw), Err(CanonicalError::Host), "{raw}");
        }
    }
}
