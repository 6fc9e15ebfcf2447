//! What concerns the process itself: its clock, what it has run out of, how many files it may open, and
//! where a test lets it crash.
//!
//! ```text
//! clock ──now──► whoever drives what decides          descriptors ──► how many connections there may be
//! an error ──faults──► what has run out, and its fix  failpoint (debug builds alone) ──► the process ends here
//! ```

pub mod clock;
pub mod descriptors;
pub mod failpoint;
pub mod faults;
