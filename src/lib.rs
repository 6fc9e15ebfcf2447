//! walhook tails a PostgreSQL logical replication slot, turns row changes of customer tables into
//! webhook events, and POSTs them to the URLs that each account registered: reliably, at scale and
//! fairly.
//!
//! # The flow
//!
//! ```text
//! wire → pgoutput → change → event → route → lane → schedule → deliver → settle → checkpoint
//! ```
//!
//! Events go one way. What comes back to the dispatcher: outcomes of attempts, accounts' routes, pages of
//! deferred rows, what was stored, and how large the state tables are; beside the stream operators' jobs and
//! replays. What goes back to the replication connection: the flush LSN.
//!
//! - `walhook-core` holds the words that the parts speak with each other; `walhook-process` knows the process itself.
//! - `walhook-decode` and `walhook-rules` turn bytes into row changes, and those into events.
//! - `walhook-dispatch` decides: no I/O, no clock, no ambient randomness.
//! - `walhook-postgres`, `walhook-state` and `walhook-http` do: sockets, SQL, HTTP; `walhook-sign` signs.
//! - `walhook-fleet` decides which worker sends what; `walhook-bus` carries it.
//! - [`server`] wires: bounded channels, tasks, shutdown.
//! - `control` is what an operator may ask and order; [`cli`] has a file for each command; [`config`] is what `walhook.toml` says.
//! - [`demo`] is the demo; what it and the tests stand on is the crate `walhook-testkit`.
//!
//! The map with each part's invariant, and the glossary: `ARCHITECTURE.md`.

pub mod cli;
pub mod config;
mod control;
pub mod demo;
pub mod server;
