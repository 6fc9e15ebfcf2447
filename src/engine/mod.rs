//! Decides. No I/O, no sockets, no clock, no ambient randomness: `now` and a random source are
//! arguments, so that everything here can be property-tested and simulated in virtual time.
//!
//! In the order of the flow:

pub mod feedback;

pub mod coverage;

pub mod answer_head;

pub mod frames;

pub mod sign;

pub mod egress;

pub mod retry_after;

pub mod pace;
