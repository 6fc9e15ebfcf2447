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
//! One way. Only two things flow back: the outcome of an attempt (to the dispatcher), and the flush
//! LSN (to the replication connection).
//!
//! - `walhook-core` holds the words that the parts speak with each other.
//! - `walhook-decode` and `walhook-rules` turn bytes into row changes, and those into events.
//! - `walhook-dispatch` decides: no I/O, no clock, no ambient randomness.
//! - `walhook-postgres`, `walhook-state` and `walhook-http` do: sockets, SQL, HTTP.
//! - [`server`] wires: bounded channels, tasks, shutdown.
//! - [`cli`] has a file for each command; [`config`] is what `walhook.toml` says.
//! - [`demo`] is the demo; what it and the tests stand on is the crate `walhook-testkit`.
//!
//! # Glossary
//!
//! One word for one thing, in code, configuration, metrics, SQL and documentation alike.
//!
//! | word | meaning |
//! |---|---|
//! | account | the customer's customer: owns endpoints, is what fairness is about |
//! | endpoint | one row of the customer's endpoint table: a URL that wants certain event types |
//! | rule | what the configuration says about making events from a table's changes, or from messages |
//! | change | one row's insert, update or delete in a committed transaction |
//! | message | what `pg_logical_emit_message` wrote in a committed transaction |
//! | event | what a rule made of a change or message; has one id, whoever receives it |
//! | delivery | one event for one endpoint |
//! | attempt | one request for a delivery |
//! | outcome | what came of an attempt |
//! | lane | an account's pending deliveries, with a queue for each endpoint |
//! | settle | to bring a delivery to an end that the checkpoint may pass |
//! | dead letter | a delivery that ended without success, stored for the operator |
//! | notice | what whoever runs walhook is told of an endpoint, at `notify.url` |
//! | frontier | the end LSN of the longest prefix of settled transactions |
//! | checkpoint | the frontier as stored in the state database |
//! | epoch | counts the leaders; fences what an earlier one still writes |
//! | dispatcher | the one task that owns lanes, scheduler and tracker |

pub mod cli;
pub mod config;
mod control;
pub mod demo;
pub mod server;
