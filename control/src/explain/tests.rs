#![allow(clippy::unwrap_used)]

mod custom;
mod doors;
mod questions;
