//! A part of a pipeline that is led by itself.

use std::fmt;

/// Which part of a pipeline: it has a lease, a checkpoint and settled ranges of its own.
///
/// Units: the column `partition` of the state tables. Today a pipeline is one partition,
/// [`Partition::SOLE`]; several slots of one pipeline will be one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(i32);

impl Partition {
    /// The only one of a pipeline that is not divided.
    pub const SOLE: Self = Self(0);

    /// Its number, as the state tables have it.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
