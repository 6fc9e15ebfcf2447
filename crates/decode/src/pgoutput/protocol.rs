//! What a stream's messages may be, which is agreed upon when it starts.

/// A version of pgoutput's protocol: a stream is started with it, and its messages are decoded by it.
///
/// Outside of the blocks of streamed transactions all versions have the same messages.
///
/// Source: PostgreSQL manual, "Logical Streaming Replication Parameters" (`proto_version`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Version 1: each transaction as a whole, when it has committed. Every server has it.
    V1,
    /// Version 2, since PostgreSQL 14: a large transaction is sent in blocks while it is open.
    V2,
    /// Version 4, since PostgreSQL 16: the same, as long as blocks are not asked for `parallel`.
    V4,
}

impl Protocol {
    /// The value of the option `proto_version`.
    #[must_use]
    pub const fn version(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
            Self::V4 => 4,
        }
    }

    /// Whether transactions are sent while they are open: the option `streaming` is then `on`.
    #[must_use]
    pub const fn streams(self) -> bool {
        match self {
            Self::V1 => false,
            Self::V2 | Self::V4 => true,
        }
    }
}
