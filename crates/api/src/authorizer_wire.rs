//! Authorizers on the wire and back. What a peer sent is checked like a document: control may be older or newer.

use std::time::Duration;

use postern_policy::authorizer::{Address, Asks, Authorizer, Module, Rego, Server};
use postern_policy::document::Place;
use serde_json::Value;

use crate::control::v1 as wire;
use crate::control::v1::authorizer::Asks as OnWire;

/// For the wire; places stay behind.
#[must_use]
pub fn to_wire(authorizer: &Authorizer) -> wire::Authorizer {
    let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let asks = match &authorizer.asks {
        Asks::Server(server) => OnWire::ExtAuthz(wire::ExtAuthz {
            address: server.address.to_string(),
            timeout_us: microseconds(server.timeout),
            context_extensions: server.context.clone().into_iter().collect(),
            include_headers: server
                .include_headers
                .clone()
                .map(|names| wire::IncludedHeaders { names }),
        }),
        Asks::Rego(rego) => OnWire::Rego(wire::Rego {
            modules: rego
                .modules
                .iter()
                .map(|module| wire::RegoModule {
                    name: module.name.clone(),
                    text: module.text.clone(),
                })
                .collect(),
            query: rego.query.clone(),
            data_json: Value::Object(rego.data.clone()).to_string(),
            timeout_us: microseconds(rego.timeout),
            v0: rego.v0,
        }),
    };
    wire::Authorizer {
        key: authorizer.key(),
        asks: Some(asks),
    }
}

/// From the wire; the error says what is wrong.
pub fn from_wire(authorizer: wire::Authorizer) -> Result<Authorizer, String> {
    let key = authorizer.key;
    let (namespace, name) = key
        .split_once('/')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
        .ok_or_else(|| format!("authorizer `{key}` is not namespace/name"))?;
    let wrong = |why: &str| format!("authorizer {key}: {why}");
    let asks = match authorizer
        .asks
        .ok_or_else(|| wrong("it asks nobody that is known here"))?
    {
        OnWire::ExtAuthz(server) => Asks::Server(Server {
            address: Address::parse(&server.address).map_err(|why| wrong(&why))?,
            timeout: time(server.timeout_us, Server::MAX_TIMEOUT).map_err(|why| wrong(&why))?,
            context: server.context_extensions.into_iter().collect(),
            include_headers: server.include_headers.map(|included| included.names),
        }),
        OnWire::Rego(rego) => Asks::Rego(Rego {
            modules: rego
                .modules
                .into_iter()
                .map(|module| Module {
                    name: module.name,
                    text: module.text,
                    place: Place::default(),
                })
                .collect(),
            query: rego.query,
            data: match serde_json::from_str(&rego.data_json) {
                Ok(Value::Object(data)) => data,
                Ok(_) | Err(_) => return Err(wrong("its data is no JSON object")),
            },
            timeout: time(rego.timeout_us, Rego::MAX_TIMEOUT).map_err(|why| wrong(&why))?,
            v0: rego.v0,
        }),
    };
    Ok(Authorizer {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        place: Place::default(),
        asks,
    })
}

fn time(microseconds: u64, most: Duration) -> Result<Duration, String> {
    let time = Duration::from_micros(microseconds);
    if time.is_zero() || time > most {
        return Err(format!("a time of {time:?}; at most {most:?}"));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(spec: &str) -> Authorizer {
        let text = format!(
            "apiVersion: postern.dev/v1alpha1\nkind: Authorizer\nmetadata: {{name: a, namespace: shop}}\nspec: {spec}\n"
        );
        let object = postern_policy::document::parse("a.yaml", &text).unwrap().remove(0);
        let mut read = Authorizer::from_object(&object).unwrap();
        read.place = Place::default();
        if let Asks::Rego(rego) = &mut read.asks {
            rego.modules
                .iter_mut()
                .for_each(|module| module.place = Place::default());
        }
        read
    }

    #[test]
    fn an_authorizer_arrives_as_it_was_sent() {
        for spec in [
            "{extAuthz: {address: '127.0.0.1:9191'}}",
            "{extAuthz: {address: 'unix:/run/x', timeout: 10s, contextExtensions: {a: b}, includeHeaders: []}}",
            "{extAuthz: {address: 'opa.policy:1', includeHeaders: [cookie]}}",
            "{rego: {modules: [{name: a, text: 'package a'}, {name: b, text: 'package b'}], data: {a: [1, 1.5]}, regoVersion: v0}}",
        ] {
            let sent = read(spec);
            assert_eq!(from_wire(to_wire(&sent)), Ok(sent), "{spec}");
        }
    }

    #[test]
    fn what_a_document_could_not_say_is_refused_on_the_wire_too() {
        let good = to_wire(&read("{extAuthz: {address: '127.0.0.1:9191'}}"));
        let with = |change: &dyn Fn(&mut wire::ExtAuthz)| {
            let mut sent = good.clone();
            match &mut sent.asks {
                Some(OnWire::ExtAuthz(server)) => change(server),
                Some(OnWire::Rego(_)) | None => panic!("a server"),
            }
            from_wire(sent)
        };
        assert!(with(&|_| {}).is_ok());
        assert!(with(&|server| server.address = "10.0.0.1:9191".into()).is_err());
        assert!(with(&|server| server.timeout_us = 0).is_err());
        assert!(with(&|server| server.timeout_us = 10_000_001).is_err());
        for key in ["", "a", "/a", "a/"] {
            let key = key.to_owned();
            assert!(from_wire(wire::Authorizer { key, ..good.clone() }).is_err());
        }
        assert!(from_wire(wire::Authorizer { asks: None, ..good }).is_err());
    }
}
