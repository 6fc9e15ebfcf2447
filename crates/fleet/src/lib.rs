//! The fleet: the processes that send for a leader, and how leader and worker keep to one picture of what is
//! under way. No I/O, no clock, no ambient randomness: time, frames and a seed are arguments.
//!
//! ```text
//!                  leader                            bus                        worker
//! dispatcher ──place──► Fleet ──Pack, Publish──► P.w.<session> ──► Serving ──Begin──► request
//!      ▲                 │ ▲                                          │ ▲                │
//!      └─────Ended───────┘ └──────────── P.l.<epoch>.<session> ◄──────┘ └────Ended───────┘
//!                          └──────────── P.hello (every eighth of a lease) ──┘
//! ```
//!
//! # The argument
//!
//! The bus may lose, delay and repeat what it carries, and may reorder what goes by different subjects. Either
//! process may stop for as long as it likes, at any instruction. Still:
//!
//! 1. *An attempt that the fleet took comes back once, and once only*: as its outcome, as unsent, or as lost. It is
//!    in one table ([`leader`]) under a key of its own, and whoever hands it back takes it out.
//! 2. *Unsent is surely not begun.* A worker takes the frames of a session in the order of their numbers and no
//!    other, so a frame that never reached it, and each behind it, is not begun; a worker that ends a session says
//!    up to where it took them, begins nothing of it after, and answers for each attempt that it had taken.
//! 3. *Nothing is begun after it was declared lost.* A worker begins a request only until its own clock shows the
//!    stamp of the last `Hello` that was granted, and a lease. The leader declares a session lost a lease and
//!    [`LOST_AFTER_LEASE`] after it last granted one, or a lease after it went on where it was stopped itself, whichever is
//!    later. The stamp is older than the grant, so the right to begin ends
//!    first, however long the grant was under way, as long as both clocks go at one rate within that second.
//!    That a worker is heard does not show that its outcomes are: where one has not come when its request's time-out
//!    and some time have passed, the leader grants that session nothing more, and loses it so.
//! 4. *Nothing that an earlier leader orders begins once a later one was heard.* Each frame has its leader's epoch; a
//!    worker that has seen a higher one takes none of a lower one, and a leader takes only its own.
//! 5. *What an earlier leader ordered settles that delivery and no other.* A worker tells a later leader of it by a key
//!    that the earlier one made of the delivery ([`walhook_core::delivery_key`]); of what has ended only that the
//!    endpoint took it. An attempt of that delivery then ends so, once, in place of being placed; or it is in flight
//!    where its request runs, and 1 to 3 hold for it ([`leader`], the module `adopt`).

pub mod frame;
pub mod leader;
#[cfg(test)]
mod simulation;
pub mod subjects;
pub mod worker;

use std::time::Duration;

/// A session is lost so long after its lease, counted from the last grant: what two clocks may differ by within
/// one lease.
pub const LOST_AFTER_LEASE: Duration = Duration::from_secs(1);

/// How often a leader says that it leads.
pub const LEAD_EVERY: Duration = Duration::from_millis(500);

/// A worker says how it is so many times a lease.
pub const HELLOS_PER_LEASE: u32 = 8;

/// A worker of which nothing was heard for so many sixteenths of a lease is given no work, and what it carries is in
/// doubt: with a lease of two seconds that is 0.6 s, in which it said how it is twice, or one of the version before
/// once. It is not lost yet, and comes back with the next word.
pub const QUIET_SIXTEENTHS: u32 = 5;

/// Bytes of requests that one worker has in flight, unless it says otherwise: below what a server of the bus keeps
/// for one connection (64 MB, NATS's `max_pending`), so that it is never cut off for being slow.
pub const BYTE_BUDGET: u64 = 16 << 20;
