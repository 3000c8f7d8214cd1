//! Whose network the rules are for: another namespace's, entered by a thread of its own; and what to do where we may not.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::netlink::{self, NetlinkError};
use super::rules::Chain;
use crate::status::error_chain;

/// Where Kubernetes tells a container its namespace.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Sets the rules in the network namespace at `path`. The process stays where it is: only a thread goes there, and ends.
pub fn apply_in(path: &Path, program: &[Chain]) -> Result<(), String> {
    let shown = path.display();
    let namespace = File::open(path).map_err(|error| format!("cannot open the network namespace {shown}: {error}"))?;
    let there = move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|error| {
            let hint = match error {
                Errno::PERM => " (SYS_ADMIN is needed, in it and here)",
                Errno::INVAL => " (it is no network namespace)",
                _ => "",
            };
            format!("cannot enter the network namespace: {error}{hint}")
        })?;
        netlink::apply(program).map_err(|error| error_chain(&error))
    };
    std::thread::scope(|scope| scope.spawn(there).join())
        .unwrap_or_else(|_| Err("the thread that went there panicked".to_owned()))
        .map_err(|error| format!("{shown}: {error}"))
}

/// A failure in our own namespace, with what can be done about it.
pub(super) fn explained(error: &NetlinkError) -> String {
    let text = error_chain(error);
    if !error.is_lack_of_permission() {
        return text;
    }
    let namespace = std::fs::read_to_string(NAMESPACE_FILE).map_or_else(
        |_| "this pod's namespace".to_owned(),
        |name| format!("namespace `{}`", name.trim()),
    );
    format!(
        "{text}. This container has no NET_ADMIN capability. The Pod Security levels `baseline` and `restricted` refuse it: \
         label {namespace} `pod-security.kubernetes.io/enforce: privileged`, or have the rules set from the node \
         (`postern-proxy redirect --netns PATH`)"
    )
}
