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

thread_local! {
    /// The beginning of the present piece.
    static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Lets others run first, if this thread has run for a quarter of a millisecond.
pub fn give_way() {
    let since = SINCE.get();
    if since.is_some_and(|since| since.elapsed() < PIECE) {
        return;
    }
    if since.is_some() {
        std::thread::sleep(PAUSE);
    }
    SINCE.set(Some(Instant::now()));
}
