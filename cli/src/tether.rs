//! A child that ends with its parent, however the parent ends.
//!
//! The kernel sends the signal, so that a parent that is killed (SIGKILL, out of memory) leaves nothing behind either.
//! The child asks for it itself: asking between fork and exec would need `unsafe`.

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// Why a child does not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TetherError {
    #[error("--tether {0}: not a process id")]
    NoPid(i32),
    #[error("cannot ask to be ended with the parent")]
    Refused(#[source] rustix::io::Errno),
    #[error("the parent, process {0}, has ended already")]
    Orphaned(i32),
}

/// From now on this process is killed when the thread that started it ends. `parent` is who should have started it.
pub(crate) fn hold(parent: i32) -> Result<(), TetherError> {
    let wanted = Pid::from_raw(parent).ok_or(TetherError::NoPid(parent))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(TetherError::Refused)?;
    // It may have ended before we asked: then somebody else has become our parent, and no signal will come.
    if getppid() == Some(wanted) {
        Ok(())
    } else {
        Err(TetherError::Orphaned(parent))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_child_whose_parent_is_gone_does_not_go_on() {
        // No process has the id of a thread group that never was: the largest possible.
        assert!(matches!(hold(i32::MAX), Err(TetherError::Orphaned(i32::MAX))));
        assert!(matches!(hold(0), Err(TetherError::NoPid(0))));
    }
}
