//! One buffer per thread that reads go through: a connection that waits holds none.

use std::cell::Cell;

use crate::limits::COPY_BUFFER;

thread_local! {
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Lends the thread's buffer to `f`, which must not wait. What is in it is nobody's.
pub(crate) fn with<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut scratch = SCRATCH
        .take()
        .unwrap_or_else(|| vec![0; COPY_BUFFER].into_boxed_slice());
    let result = f(&mut scratch);
    SCRATCH.set(Some(scratch));
    result
}
