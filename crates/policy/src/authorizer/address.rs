//! Addresses of ext_authz servers.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use super::Address;

/// Linux, `sockaddr_un`: the path and its NUL.
const MAX_PATH: usize = 107;

impl Address {
    /// Reads one; the error says why not, and what would do.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                path if !path.starts_with('/') || path.contains('\0') => {
                    Err(format!("`{text}` is no absolute path: unix:/run/opa/opa.sock"))
                }
                path if path.len() > MAX_PATH => Err(format!("a socket's path has at most {MAX_PATH} bytes")),
                path => Ok(Self::Unix(path.to_owned())),
            };
        }
        if text.contains("://") {
            return Err(format!(
                "`{text}` is written without a scheme: 127.0.0.1:9191, unix:/path, or service.namespace:9191"
            ));
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return match address {
                address if address.port() == 0 => Err(format!("`{text}` has no port")),
                address if address.ip().is_loopback() => Ok(Self::Loopback(address)),
                _ => Err(format!(
                    "`{text}` is another host's address: nobody would know who answers there, and all could listen; name a \
                     service of the mesh (service.namespace:port), which is asked over mutual TLS"
                )),
            };
        }
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| format!("`{text}` has no port: such as service.namespace:9191"))?;
        let port = port
            .parse::<u16>()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| format!("`{port}` is no port: 1 to 65535"))?;
        if host == "localhost" {
            let local = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            return Err(format!(
                "`localhost` is whatever a hosts file says; did you mean `{local}`?"
            ));
        }
        let label = |label: &str| {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            (1..=63).contains(&label.len())
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let labels = host.split('.');
        match labels.clone().count() {
            _ if host.len() > 253 || !labels.clone().all(label) || host.bytes().all(|b| !b.is_ascii_lowercase()) => {
                Err(format!(
                    "`{host}` is no name of a service: lower case, such as opa.policy"
                ))
            }
            1 => Err(format!(
                "`{host}` does not say in which namespace: each proxy would look in its own; write {host}.NAMESPACE:{port}"
            )),
            _ => Ok(Self::Mesh {
                host: host.to_owned(),
                port,
            }),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{path}"),
            Self::Loopback(address) => address.fmt(f),
            Self::Mesh { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beside_the_proxy_or_in_the_mesh_is_taken_and_reads_as_it_is_written() {
        for text in [
            "unix:/run/opa/opa.sock",
            "127.0.0.1:9191",
            "127.8.8.8:1",
            "[::1]:9191",
            "opa.policy:9191",
            "opa.policy.svc.cluster.local:65535",
            "a-1.b:1",
        ] {
            assert_eq!(
                Address::parse(text).map(|address| address.to_string()),
                Ok(text.to_owned())
            );
        }
        assert_eq!(Address::parse("unix:///run/x"), Ok(Address::Unix("/run/x".into())));
    }

    #[test]
    fn what_would_be_asked_in_clear_elsewhere_or_means_nothing_is_refused_with_what_would_do() {
        for (text, why) in [
            ("10.0.0.7:9191", "another host's address"),
            ("[2001:db8::1]:9191", "another host's address"),
            ("0.0.0.0:9191", "another host's address"),
            ("localhost:9191", "did you mean `127.0.0.1:9191`?"),
            ("http://opa.policy:9191", "without a scheme"),
            ("dns:///opa.policy:9191", "without a scheme"),
            ("opa:9191", "opa.NAMESPACE:9191"),
            ("opa.policy", "has no port"),
            ("opa.policy:0", "is no port"),
            ("opa.policy:65536", "is no port"),
            ("127.0.0.1:0", "has no port"),
            ("OPA.policy:9191", "is no name"),
            ("opa..policy:9191", "is no name"),
            ("1.2:9191", "is no name"),
            ("-a.b:9191", "is no name"),
            ("", "has no port"),
            ("unix:run/opa", "absolute path"),
            ("unix:", "absolute path"),
        ] {
            let error = Address::parse(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(Address::parse(&format!("unix:/{}", "a".repeat(MAX_PATH - 1))).is_ok());
        assert!(Address::parse(&format!("unix:/{}", "a".repeat(MAX_PATH))).is_err());
    }
}
