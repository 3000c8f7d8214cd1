//! How many connections the process's descriptors allow.

use crate::limits::{MAX_CONNECTIONS, RESERVED_FDS};

/// How many connections a worker takes: [`MAX_CONNECTIONS`], or what the process's descriptors allow at two per connection
/// (both legs). Raises the soft limit to the hard one.
#[must_use]
pub(crate) fn connections_per_worker(workers: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let descriptors = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    // No limit at all reads as `None`.
    let descriptors = descriptors.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    share(descriptors, workers)
}

fn share(descriptors: usize, workers: usize) -> usize {
    (descriptors.saturating_sub(RESERVED_FDS) / 2 / workers.max(1)).clamp(16, MAX_CONNECTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_admin_and_never_pass_max_connections() {
        assert_eq!(share(1_024, 2), (1_024 - RESERVED_FDS) / 4);
        assert_eq!(share(usize::MAX, 2), MAX_CONNECTIONS);
        assert_eq!(share(40_000 + RESERVED_FDS, 2), MAX_CONNECTIONS);
        assert_eq!(share(39_996 + RESERVED_FDS, 2), MAX_CONNECTIONS - 1);
        assert_eq!(share(64, 2), 16, "a few, rather than none");
    }
}
