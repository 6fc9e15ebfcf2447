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

mod bounds;
mod changes;
mod children;
mod clock;
mod commands;
mod connections;
mod coverage;
mod credentials;
mod deferral;
mod deliveries;
mod descriptors;
mod disk;
mod documented_commands;
mod egress;
mod encodings;
mod endpoint_commands;
mod endpoints;
mod errors;
mod events;
mod example_receivers;
mod examples;
mod failover;
mod failpoints;
mod faults_found;
mod files;
mod halts;
mod hostile;
mod idle_slots;
mod key_texts;
mod keys;
mod kills;
mod kubernetes;
mod locks;
mod log;
mod look_ups;
mod network;
mod notify;
mod operator;
mod outages;
mod pages;
mod partitions;
mod poolers;
mod receivers;
mod recording;
mod recovery;
mod refusals;
mod renamed;
mod replay;
mod reserved_slots;
mod retry_after;
mod rows;
mod rubbish;
mod rules;
mod runbooks;
mod search_path;
mod setup;
mod shape;
mod shutdown;
mod spool;
mod status;
mod takeover;
mod tls;
mod torture;
mod transactions;
mod turns;
mod unrouted;
mod upgrade;
mod values;
mod waits;
mod wal_that_went;
mod walk;
mod workers;
