//! What is logged of what people ask: a program of its own. In one with other tests a place that logs for the first time on
//! another thread is switched off for good while a single listener is known (`tracing`'s cache of interests), and whether the
//! listener had heard of it before was a matter of luck.
#![cfg(feature = "kubernetes")]
#![allow(clippy::unwrap_used)]

use streams::world;

mod streams {
    pub(crate) mod api {
        #[allow(dead_code)] // Of the other program: it uses all of it.
        mod played;
        mod unlogged;
    }
    #[allow(dead_code)] // The same.
    pub(crate) mod world;
}
