//! Does: sockets, SQL and HTTP. Nothing here decides.

pub mod wire;

pub mod sql;

pub mod catalog;

pub mod lookup;

pub mod slot;

pub mod state;

pub mod transport;

pub mod guard;

pub mod metrics;

pub mod admin;

pub mod log;

pub mod clock;
