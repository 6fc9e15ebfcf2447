//! Feeds a recording of a live pipeline to a dispatcher, and compares what it asks for.
//!
//! A recording is a file that somebody was sent: it may be cut off, or altered. What cannot be read, and what a
//! dispatcher refuses as impossible, is told with the line where it stands.

use std::io::{BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use walhook_core::tick::Tick;
use walhook_dispatch::dispatcher::Dispatcher;
use walhook_dispatch::recording::{self, Digest, Line, VERSION};

use crate::panics;

/// Effects of a round that differs, of which a person is shown so many.
const SHOWN: usize = 20;

/// A line takes no more: that is as much as `run --record` writes of all.
const LINE_MAX: u64 = 256 << 20;

/// What a recording came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Dispatchers that began in it.
    pub dispatchers: u64,
    /// Inputs that were fed.
    pub inputs: u64,
    /// Rounds of polls, each with the same effects.
    pub rounds: u64,
    /// Effects that were the same.
    pub effects: u64,
    /// Why it ends; `None`: the process was killed, or still writes.
    pub ended: Option<String>,
}

/// Replays a recording.
///
/// # Errors
/// What differs first, for a person; or what of the recording is damaged or cut off, and in which line.
pub fn replay(mut recording: impl BufRead) -> Result<Replayed, String> {
    let mut replaying = Replaying::default();
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let read = recording.by_ref().take(LINE_MAX).read_until(b'\n', &mut line);
        read.map_err(|error| format!("line {number} cannot be read: {error}"))?;
        if line.is_empty() {
            break;
        }
        if !line.ends_with(b"\n") {
            return Err(format!(
                "line {number} is cut off after {} bytes: the recording was truncated, or its process was \
                 killed as it wrote. Of what comes before, {} inputs and {} rounds are the same",
                line.len(),
                replaying.so_far.inputs,
                replaying.so_far.rounds
            ));
        }
        let parsed = recording::parse(&line).map_err(|error| {
            format!("line {number} is none that this version can read: {error}")
        })?;
        // What its own process never fed to it may be refused as impossible.
        let taken = catch_unwind(AssertUnwindSafe(|| replaying.take(number, parsed)));
        taken.unwrap_or_else(|panic| {
            let why = panics::text(&*panic);
            Err(format!(
                "line {number} is damaged, or one before it: the dispatcher refuses it: {why}"
            ))
        })?;
    }
    if replaying.so_far.dispatchers == 0 {
        return Err("no dispatcher begins in the recording".to_owned());
    }
    Ok(replaying.so_far)
}

#[derive(Default)]
struct Replaying {
    so_far: Replayed,
    dispatcher: Option<Dispatcher>,
}

impl Replaying {
    fn take(&mut self, number: u64, line: Line) -> Result<(), String> {
        match line {
            Line::Begin(begin) if begin.version == VERSION => {
                self.so_far.dispatchers += 1;
                self.dispatcher = Some(begin.dispatcher());
            }
            Line::Begin(begin) => {
                return Err(format!(
                    "the recording has version {}, of walhook {}; this one replays version {VERSION}",
                    begin.version, begin.walhook
                ));
            }
            Line::Input { at, input } => {
                self.begun(number)?.handle(at, input);
                self.so_far.inputs += 1;
            }
            Line::Polled { at, effects } => self.poll(number, at, effects)?,
            Line::Ended { why } => self.so_far.ended = Some(why),
        }
        Ok(())
    }

    fn begun(&mut self, number: u64) -> Result<&mut Dispatcher, String> {
        let before = || format!("line {number} comes before a dispatcher begins");
        self.dispatcher.as_mut().ok_or_else(before)
    }

    fn poll(&mut self, number: u64, at: Tick, expected: Digest) -> Result<(), String> {
        let dispatcher = self.begun(number)?;
        let (mut found, mut shown) = (Digest::default(), Vec::new());
        // One more than expected tells that they differ; in a damaged one there may be no end of them.
        while found.count <= expected.count
            && let Some(effect) = dispatcher.poll(at)
        {
            found.add(&effect).map_err(|error| error.to_string())?;
            if shown.len() < SHOWN {
                shown.push(recording::describe(&effect).map_err(|error| error.to_string())?);
            }
        }
        if found != expected {
            let more = if found.count > expected.count { " or more" } else { "" };
            return Err(format!(
                "line {number}, at {} us: the recording has {} effects, and here were {}{more}, the first of \
                 them:\n{}",
                at.0,
                expected.count,
                found.count,
                shown.join("\n")
            ));
        }
        self.so_far.rounds += 1;
        self.so_far.effects += found.count;
        Ok(())
    }
}
