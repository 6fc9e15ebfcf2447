//! The demo.

pub mod cluster;
pub mod ledger;
pub mod plan;
pub mod schema;
pub mod writer;
