//! Attempts → HTTP requests → outcomes: where requests may go, names and connections, signatures,
//! requests, and the one place in which an answer becomes an outcome.
//!
//! ```text
//! Attempt ─► egress ─► resolve ─► connect (proxy, TLS) ─► request ─► Exchange ─► Outcome
//! ```

pub mod answer_head;
pub mod attempts;
pub mod egress;
pub mod exchange;
pub mod frames;
pub mod resolve;
pub mod retry_after;
pub mod sender;
pub mod transport;
