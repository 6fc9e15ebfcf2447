//! The integration tests: one binary, so that it links once. Each test starts a PostgreSQL of its own
//! from the installed binaries, a receiver on real sockets, and the real program.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

mod changes;
mod endpoints;
mod files;
mod kills;
mod shape;
mod shutdown;
