//! What the tests, the demo and the load tests stand on.
//!
//! ```text
//! traffic ──COMMIT──► cluster ──(proxy)──► program (the real walhook) ──(proxy)──► receiver
//!    └──── what was committed ────► oracle ◄──── what arrived, and what is stored ────┘
//! ```
//!
//! It speaks URLs, paths and ports: it depends on no crate of the product, so that each of them can
//! be tested with it, and nothing of it is in the product's libraries.

pub mod address;
pub mod admin;
pub mod change;
pub mod clock;
pub mod cluster;
pub mod extent;
pub mod memory;
pub mod nats;
pub mod oracle;
pub mod pipeline;
pub mod program;
pub mod proxy;
pub mod receiver;
pub mod scratch;
pub mod script;
pub mod session;
pub mod sign;
pub mod stored;
#[cfg(feature = "tls")]
pub mod tls;
pub mod traffic;
pub mod wording;
