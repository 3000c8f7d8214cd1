//! A thread with long work that lets others run: what is between two of its pieces.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// A kernel without preemption lets whoever runs go on until its next tick (4 ms at 250 Hz), whoever else wakes up meanwhile,
/// and a request passes several processes. After so long the thread lets go by itself; more often, and letting go would cost
/// more than the work.
const PIECE: Duration = Duration::from_micros(250);
/// Asleep, however short: a thread that only yields is picked again while the scheduler owes it time, and those that had
/// more than their share wait up to a tick for it. With the timer's slack it is about 100 us.
const PAUSE: Duration = Duration::from_micros(50);
/// Work that takes longer, on a machine that is busy, goes on without: a change of policy is to be in force within a second.
const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Clone, Copy)]
struct Work {
    began: Instant,
    piece: Instant,
}

thread_local! {
    static WORK: Cell<Option<Work>> = const { Cell::new(None) };
}

/// Lets others run first, if this thread has run for a quarter of a millisecond since it last [`rested`].
pub fn give_way() {
    let Some(work) = WORK.get() else {
        let now = Instant::now();
        WORK.set(Some(Work { began: now, piece: now }));
        return;
    };
    if work.piece.elapsed() < PIECE {
        return;
    }
    if work.began.elapsed() < PATIENCE {
        std::thread::sleep(PAUSE);
    } else {
        std::thread::yield_now();
    }
    WORK.set(Some(Work {
        piece: Instant::now(),
        ..work
    }));
}

/// This thread has waited for something, and others ran: what comes now is new work. For the runtime, when it wakes up.
pub fn rested() {
    WORK.set(None);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn began() -> Option<Instant> {
        WORK.get().map(|work| work.began)
    }

    #[test]
    fn work_that_comes_after_a_rest_is_a_piece_of_its_own() {
        give_way();
        let first = began();
        give_way();
        assert_eq!(began(), first);
        std::thread::sleep(PIECE);
        rested();
        give_way();
        let second = WORK.get().map(|work| (work.began, work.piece));
        assert!(second.is_some_and(|(began, piece)| began == piece && Some(began) > first));
    }
}
