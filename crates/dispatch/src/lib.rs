//! Decides: which delivery is sent when, what its outcome means, what is deferred, and how far the
//! checkpoint may move. No I/O, no clock, no ambient randomness: `now` and a random source are
//! arguments, so that all of it can be simulated in virtual time.
//!
//! ```text
//! Event ──route──► lane ──schedule──► Attempt ──(sent elsewhere)──► Outcome ──settle──► tracker
//!                   │ ▲                                                │
//!                   ▼ │ refill                                         ▼
//!                 deferred rows ◄──────────── PersistBatch ◄─── retry, dead letter
//! ```

pub mod backlog;
pub mod breaker;
pub mod clock;
pub mod dispatcher;
pub mod few;
#[cfg(test)]
mod fixture;
pub mod lane;
pub mod map;
#[cfg(feature = "record")]
pub mod recording;
pub mod retry;
pub mod route;
pub mod schedule;
pub mod settle;
pub mod settled;
pub mod tracker;
