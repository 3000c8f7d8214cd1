//! What the commands `call` and `load` call: a URL, and a client of it.

use std::str::FromStr;

use tonic::transport::Channel;

use crate::load::{End, grpc, http, tcp};
use crate::pb::payments_client::PaymentsClient;
use crate::through::Way;

/// `http://host[:port]/path`, `grpc://host:port` (payments), `tcp://host:port` (ledger).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Http {
        address: String,
        host: String,
        target: String,
    },
    Grpc(String),
    Tcp(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err("expected http://, grpc:// or tcp://".to_owned());
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let has_port = authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let kind = match scheme {
            _ if authority.is_empty() => return Err("expected a host".to_owned()),
            "http" => Kind::Http {
                address: if has_port {
                    authority.to_owned()
                } else {
                    format!("{authority}:80")
                },
                host: authority.to_owned(),
                target: path.to_owned(),
            },
            "grpc" | "tcp" if !has_port => return Err("expected host:port".to_owned()),
            "grpc" => Kind::Grpc(authority.to_owned()),
            "tcp" => Kind::Tcp(authority.to_owned()),
            _ => return Err(format!("`{scheme}` is none of http, grpc, tcp")),
        };
        Ok(Self {
            text: text.to_owned(),
            kind,
        })
    }
}

impl Target {
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn client(&self) -> Client {
        Client {
            kind: self.kind.clone(),
            http: None,
            grpc: None,
        }
    }
}

/// Keeps its connection from call to call (not that of `tcp`, whose calls are sessions).
#[derive(Debug)]
pub(crate) struct Client {
    kind: Kind,
    http: Option<http::Connection>,
    grpc: Option<PaymentsClient<Channel>>,
}

impl Client {
    /// One call. `nonce` (`nonce-...`) is something that the service counts by itself.
    pub(crate) async fn call(&mut self, nonce: Option<&str>) -> End {
        match &self.kind {
            Kind::Http { address, host, target } => {
                let target = match nonce {
                    Some(nonce) => format!("{target}?{nonce}"),
                    None => target.clone(),
                };
                match http::call(&mut self.http, address, host, &target).await {
                    Ok(200) => End::Allowed,
                    Ok(403) => End::Denied,
                    Ok(status) => End::Failed(format!("status {status}")),
                    Err(error) => {
                        self.http = None;
                        End::Failed(chain(&*error))
                    }
                }
            }
            Kind::Grpc(authority) => {
                let client = match self.grpc.take() {
                    Some(client) => client,
                    None => match grpc::client(Way::Names, authority) {
                        Ok(client) => client,
                        Err(end) => return end,
                    },
                };
                self.grpc = Some(client.clone());
                grpc::pay(client, nonce.unwrap_or_default()).await
            }
            Kind::Tcp(authority) => tcp::call(Way::Names, authority, nonce.unwrap_or("1 lantern"), true).await,
        }
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_with_its_port_and_path() {
        let target: Target = "http://cart.shop/items".parse().expect("valid");
        let Kind::Http { address, host, target } = target.kind else {
            panic!("HTTP")
        };
        assert_eq!(
            (address.as_str(), host.as_str(), target.as_str()),
            ("cart.shop:80", "cart.shop", "/items")
        );
        let target: Target = "grpc://payments.shop:50051".parse().expect("valid");
        assert_eq!(target.kind, Kind::Grpc("payments.shop:50051".to_owned()));
        for wrong in ["cart.shop", "ftp://x:1", "http:///x", "tcp://ledger.shop", "grpc://x"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
