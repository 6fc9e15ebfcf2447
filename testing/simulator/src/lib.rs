//! Runs all that walhook decides in virtual time, by seed, against everything that can go wrong around it.
//!
//! ```text
//!             bytes           items          Input                      Effect
//!  virtual ──pgoutput──► decode ► rules ──► handle ► Dispatcher ► poll ──┬─ Send ─────► virtual receivers
//!  PostgreSQL                                 ▲                          ├─ LookUp ───► what SQL shows
//!     ▲                                       │                          ├─ Store ────► model of the state tables
//!     └────────────── flush LSN ──────────────┼──────────────────────────┴─ Flush
//!                                             └── outcomes, routes, pages, stored, operators, retries, replays
//! ```
//!
//! What is real: the decoder, the rules, and the dispatcher behind its one door. All else is a model that can
//! be broken at will: processes that die with all they had in memory, others that take over while they live
//! on, answers that get lost, look-ups that fail, receivers of every temper, operators. A seed says all of it,
//! and nothing else does: the same seed has the same trace, line by line.
//!
//! What must be true is told by `checkers`, one a promise, from what is seen outside. Faults that are
//! planted around walhook on purpose (`plants`) show that they see what they should.

mod again;
mod checkers;
mod counts;
mod encode;
mod facts;
mod faults;
mod life;
mod operators;
mod outages;
mod panics;
mod plan;
mod plants;
mod postgres;
mod receivers;
mod replay;
mod run;
mod schema;
pub mod state;
mod trace;
mod workers;

pub use again::{doublecheck, minimize};
pub use counts::Counts;
pub use faults::Fault;
pub use plan::{ACCOUNTS, Options, TRANSACTIONS};
pub use plants::Plant;
pub use replay::{Replayed, replay};
pub use run::{Failure, Report, Wishes, run};
