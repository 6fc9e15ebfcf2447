//! What is said while a command works.

use std::io::{IsTerminal, Write};

use super::table::one_line;
use super::{job, print_remark, replay};
use crate::control::Progress;

/// How wide standard output is, where it is a terminal.
pub(super) fn width() -> Option<usize> {
    let out = std::io::stdout();
    let size = out.is_terminal().then(|| rustix::termios::tcgetwinsize(&out).ok())??;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Remarks go to standard error; how far a job or a replay is, too, where that is a terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    is_terminal: bool,
    quiet: bool,
}

impl Terminal {
    /// This process's.
    pub(super) fn new() -> Self {
        Self { is_terminal: std::io::stderr().is_terminal(), quiet: false }
    }

    /// The same, to which nothing is said beside a result as JSON.
    pub(super) fn unless(json: bool) -> Self {
        Self { quiet: json, ..Self::new() }
    }

    /// Says it.
    pub(super) fn tell(&self, progress: Progress<'_>) {
        match progress {
            _ if self.quiet => {}
            Progress::Note(text) => print_remark(text),
            // Steps are the result, which goes to standard output.
            Progress::Step(_) => {}
            Progress::Job(job) => self.draw(&job::text(job)),
            Progress::Replay(replay) => self.draw(&replay::bar(replay)),
            Progress::Ended if self.is_terminal => {
                let _nobody_reads_it = writeln!(std::io::stderr());
            }
            Progress::Ended => {}
        }
    }

    fn draw(&self, text: &str) {
        if self.is_terminal {
            let _nobody_reads_it = write!(std::io::stderr(), "\r{}", one_line(text));
        }
    }
}
