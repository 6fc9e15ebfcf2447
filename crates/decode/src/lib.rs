//! Bytes of the replication stream → pgoutput messages → the row changes of committed transactions.
//!
//! ```text
//! XLogData ──pgoutput──► Message ──change──► Step (a row, a message of the application, a commit)
//!     └──streamed──► (kept until its commit) ──┘
//! ```

pub mod change;
pub mod pgoutput;
pub mod streamed;
