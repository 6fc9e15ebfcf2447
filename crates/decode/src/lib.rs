//! Bytes of the replication stream → pgoutput messages → the row changes of committed transactions.
//!
//! ```text
//! XLogData ──pgoutput──► Message ──change──► Step (a row, a message of the application, a commit)
//! ```

pub mod change;
pub mod pgoutput;
