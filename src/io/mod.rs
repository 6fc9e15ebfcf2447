//! Does: sockets, SQL and HTTP. Nothing here decides.

pub mod pg;

pub mod cure;
pub mod fix;

pub mod preflight;

pub mod wire;

pub mod ident;

pub mod op;

pub mod source;

pub mod refused_writes;
pub mod row_security;

pub mod sql;

pub mod descriptors;
pub mod faults;
mod resolve;
pub mod sender;
pub mod slot;

pub mod anchor;

pub mod catalog;

pub mod coverage;

pub mod lookup;

pub mod state;

pub mod transport;

pub mod metrics;

pub mod admin;

pub mod health;
pub mod trouble;

pub mod log;

pub mod clock;

pub mod failpoint;
