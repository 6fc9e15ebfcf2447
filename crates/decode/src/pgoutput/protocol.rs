//! What a stream's messages may be, which is agreed upon when it starts.

/// A version of pgoutput's protocol: a stream is started with it, and its messages are decoded by it.
///
/// Source: PostgreSQL manual, "Logical Streaming Replication Parameters" (`proto_version`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Version 1: each transaction as a whole, when it has committed. Every server has it.
    V1,
}

impl Protocol {
    /// The value of the option `proto_version`.
    #[must_use]
    pub const fn version(self) -> u8 {
        match self {
            Self::V1 => 1,
        }
    }
}
