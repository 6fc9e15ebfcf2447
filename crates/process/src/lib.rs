//! What concerns the process itself: its clock, what it has run out of, how many files it may open, and
//! where a test lets it crash.

pub mod clock;
pub mod descriptors;
pub mod failpoint;
pub mod faults;
