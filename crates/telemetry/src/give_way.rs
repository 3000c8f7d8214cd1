//! A thread with long work that lets others run: what is between two of its pieces.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// A kernel without preemption lets whoever runs go on until its next tick (4 ms at 250 Hz), whoever else wakes up meanwhile,
/// and a request passes several processes. After so long the thread asks by itself; more often, and asking would cost more
/// than the work.
const PIECE: Duration = Duration::from_micros(250);

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
        std::thread::yield_now();
    }
    SINCE.set(Some(Instant::now()));
}
