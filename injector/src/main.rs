//! `postern-injector` as a program.
fn main() {}
