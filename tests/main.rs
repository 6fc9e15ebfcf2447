//! The integration tests: one binary, so that it links once. Each test starts a PostgreSQL of its own
//! from the installed binaries, a receiver on real sockets, and the real program.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![allow(unreachable_pub, reason = "a binary's modules have no outside")]

#[allow(unreachable_pub, reason = "what the modules beside it use of it is public")]
mod support;

mod changes;
mod commands;
mod connections;
mod egress;
mod endpoint_commands;
mod endpoints;
mod failover;
mod files;
mod halts;
mod kills;
mod partitions;
mod refusals;
mod rows;
mod rules;
mod shape;
mod shutdown;
mod tls;
mod transactions;
mod values;
mod ways_out;
