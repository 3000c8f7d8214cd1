//! Hosts.

use super::CanonicalError;

/// RFC 1035's limit for a name, and room for a bracketed IPv6 address.
const MAX_HOST: usize = 255;

/// A host in canonical form: lower case, no trailing dot, no userinfo; with the port, if one was written.
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
        if name.is_empty() || name.len() > MAX_HOST || !is_host(name) {
            return Err(CanonicalError::Host);
        }
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
        let mut text = name.to_ascii_lowercase();
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

fn is_host(name: &str) -> bool {
    if let Some(inner) = name.strip_prefix('[') {
        return inner
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    }
    // Letters, digits, hyphen, dot, and the underscore that Kubernetes and SRV names use; no empty label.
    name.split('.').all(|label| !label.is_empty())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
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
    fn h1_12_what_is_no_host_is_refused() {
        for raw in [
            "", ".", "a..b", "u@h", "h/p", "h:", "h:0", "h:65536", "h:+1", "h:1:2", "[::1", "[::1]x", "[x]", "a b",
            "h\u{e9}", "h?",
        ] {
            assert_eq!(CanonicalHost::parse(raw), Err(CanonicalError::Host), "{raw}");
        }
    }
}
