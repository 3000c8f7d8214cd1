//! What every component serves alike: metrics in the format a scraper asks for, readiness, and logs.

pub mod endpoint;
pub mod exposition;
mod give_way;
pub mod log;

pub use endpoint::{Endpoint, Readiness, bind};
pub use give_way::{give_way, rested};
pub use log::error_chain;
