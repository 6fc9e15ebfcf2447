//! What is said of a command while it works.

use super::jobs::JobView;
use super::replay::ReplayView;
use super::setup::StepView;

/// What is said of a command while it works.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Progress<'a> {
    /// A remark for whoever waits.
    Note(&'a str),
    /// A step of the set-up has ended.
    Step(&'a StepView),
    /// How far a job is.
    Job(&'a JobView),
    /// How far a replay is.
    Replay(&'a ReplayView),
    /// The wait for a job or a replay is over.
    Ended,
}

/// Whom it is said to.
pub(crate) type Tell<'a> = &'a mut (dyn FnMut(Progress<'_>) + Send);
