//! `kind: Authorizer`: whom a CUSTOM policy asks. A server of Envoy's ext_authz protocol, or Rego that proxies evaluate.
//!
//! A policy names one by `provider.name`: it is looked for in the policy's own namespace, then in the root namespace.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Map, Value as Json};

use crate::document::{DocumentError, Object, Place};

mod address;
mod decode;

/// A provider and where it may be named from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorizer {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Where it was read.
    pub place: Place,
    /// What is asked.
    pub asks: Asks,
}

/// One of two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asks {
    /// `spec.extAuthz`.
    Server(Server),
    /// `spec.rego`.
    Rego(Rego),
}

/// A server of `envoy.service.auth.v3.Authorization`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where it is.
    pub address: Address,
    /// How long a request waits for its answer.
    pub timeout: Duration,
    /// Sent with each question: `contextExtensions`.
    pub context: BTreeMap<String, String>,
    /// Which fields of the head it is told, in lower case; `None`: all.
    pub include_headers: Option<Vec<String>>,
}

/// Where a server is. Nothing is asked in clear of another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `unix:/path`: a socket beside the proxy.
    Unix(String),
    /// `127.0.0.1:9191`: beside the proxy, too.
    Loopback(SocketAddr),
    /// `opa.policy:9191`: a service of the mesh, asked over mutual TLS.
    Mesh {
        /// Lower case, at least `service.namespace`.
        host: String,
        /// The service's port.
        port: u16,
    },
}

/// Rego that the proxy evaluates itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rego {
    /// At least one, each name once.
    pub modules: Vec<Module>,
    /// The rule that decides.
    pub query: String,
    /// Merged under `data`.
    pub data: Map<String, Json>,
    /// How long one evaluation may take.
    pub timeout: Duration,
    /// Rego before OPA 1.0.
    pub v0: bool,
}

/// A module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// For messages.
    pub name: String,
    /// Rego.
    pub text: String,
    /// Where the text was read.
    pub place: Place,
}

impl Authorizer {
    /// Decodes `kind: Authorizer` under `postern.dev/v1alpha1`. Whether Rego means anything is not looked at here.
    pub fn from_object(object: &Object) -> Result<Self, Vec<DocumentError>> {
        decode::authorizer(object)
    }

    /// `namespace/name`, as policies are told of it.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl Server {
    /// Envoy's own default; Istio's of ten minutes has taken meshes down.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(200);
    /// Somebody waits for every answer.
    pub const MAX_TIMEOUT: Duration = Duration::from_secs(10);
    /// Pairs sent with each question.
    pub const MAX_CONTEXT: usize = 64;
}

impl Rego {
    /// What OPA-Envoy asks unless told otherwise.
    pub const DEFAULT_QUERY: &str = "data.envoy.authz.allow";
    /// An evaluation holds up the worker's other connections.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(2);
    /// The most that may be asked for.
    pub const MAX_TIMEOUT: Duration = Duration::from_millis(5);
    /// Modules of one policy.
    pub const MAX_MODULES: usize = 32;
    /// Text of all modules, and the data as JSON: every proxy that such a policy selects gets both.
    pub const MAX_BYTES: usize = 256 * 1024;
}
