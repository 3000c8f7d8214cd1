//! `from[].source` and `to[].operation`.

use super::values::{blocks, ports, users, values};
use crate::document::{DocumentError, Fields, Place};
use crate::model::text::Form;
use crate::model::value;
use crate::{Operation, Source};

/// Istio's own limit.
const MAX_SERVICE_ACCOUNTS: usize = 16;

pub(super) fn source(
    mut fields: Fields<'_>,
    place: &Place,
    namespace: &str,
    errors: &mut Vec<DocumentError>,
) -> Source {
    let account = |text: &str| value::account(text, namespace);
    let source = Source {
        principals: values(&mut fields, "principals", Form::Plain, value::principal),
        not_principals: values(&mut fields, "notPrincipals", Form::Plain, value::principal),
        namespaces: values(&mut fields, "namespaces", Form::Wildcard, value::namespace),
        not_namespaces: values(&mut fields, "notNamespaces", Form::Wildcard, value::namespace),
        service_accounts: values(&mut fields, "serviceAccounts", Form::Wildcard, account),
        not_service_accounts: values(&mut fields, "notServiceAccounts", Form::Wildcard, account),
        trust_domains: values(&mut fields, "trustDomains", Form::Plain, value::trust_domain),
        not_trust_domains: values(&mut fields, "notTrustDomains", Form::Plain, value::trust_domain),
        request_principals: users(&mut fields, "requestPrincipals"),
        not_request_principals: users(&mut fields, "notRequestPrincipals"),
        ip_blocks: blocks(&mut fields, "ipBlocks"),
        not_ip_blocks: blocks(&mut fields, "notIpBlocks"),
        remote_ip_blocks: blocks(&mut fields, "remoteIpBlocks"),
        not_remote_ip_blocks: blocks(&mut fields, "notRemoteIpBlocks"),
    };
    let accounts = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
    let others = !source.principals.is_empty() || !source.namespaces.is_empty();
    if accounts && others {
        fields.error(
            place,
            "serviceAccounts",
            "cannot be combined with principals or namespaces",
        );
    }
    if source.service_accounts.len().max(source.not_service_accounts.len()) > MAX_SERVICE_ACCOUNTS {
        fields.error(
            place,
            "serviceAccounts",
            format!("at most {MAX_SERVICE_ACCOUNTS} are allowed"),
        );
    }
    let before = errors.len();
    fields.finish(errors);
    if source == Source::default() && errors.len() == before {
        errors.push(empty(place, "source"));
    }
    source
}

pub(super) fn operation(mut fields: Fields<'_>, place: &Place, errors: &mut Vec<DocumentError>) -> Operation {
    let operation = Operation {
        hosts: values(&mut fields, "hosts", Form::Plain, value::host),
        not_hosts: values(&mut fields, "notHosts", Form::Plain, value::host),
        ports: ports(&mut fields, "ports"),
        not_ports: ports(&mut fields, "notPorts"),
        methods: values(&mut fields, "methods", Form::Plain, value::method),
        not_methods: values(&mut fields, "notMethods", Form::Plain, value::method),
        paths: values(&mut fields, "paths", Form::Path, value::path),
        not_paths: values(&mut fields, "notPaths", Form::Path, value::path),
    };
    let before = errors.len();
    fields.finish(errors);
    if operation == Operation::default() && errors.len() == before {
        errors.push(empty(place, "operation"));
    }
    operation
}

fn empty(place: &Place, what: &str) -> DocumentError {
    DocumentError {
        place: place.clone(),
        path: what.to_owned(),
        what: format!("an empty {what} would match everything; leave it out if that is meant"),
        nearest: None,
    }
}
