//! What every component serves alike: metrics in the format a scraper asks for, readiness, and logs.

pub mod endpoint;
pub mod exposition;
pub mod log;

pub use endpoint::{Endpoint, Readiness, bind};
