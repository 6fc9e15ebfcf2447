//! Decides. No I/O, no sockets, no clock, no ambient randomness: `now` and a random source are
//! arguments, so that everything here can be property-tested and simulated in virtual time.
//!
//! In the order of the flow:

pub mod lsn;
pub mod tick;

pub mod halt;
pub mod heap;

pub mod pgoutput;

pub mod change;

pub mod feedback;

pub mod value;

pub mod row;

pub mod catalog;

pub mod coverage;

pub mod condition;

pub mod rule;

pub mod position;

pub mod escape;
pub mod event;
pub mod redact;
pub mod rule_settings;
pub mod settings;
pub mod size;
pub mod types;

pub mod endpoint;

pub mod route;

pub mod lane;

pub mod backlog;

pub mod room;

pub mod breaker;

pub mod schedule;

pub mod dispatcher;

pub mod attempt;

pub mod answer_head;

pub mod frames;

pub mod sign;

pub mod egress;

pub mod retry;
pub mod retry_after;

pub mod settle;

pub mod settled;

pub mod tracker;

pub mod persist;

pub mod notice;
pub mod pace;

pub mod replay;
