//! Feeds a recording of a live pipeline to a dispatcher, and compares what it asks for.

use std::io::BufRead;

use walhook_dispatch::dispatcher::Dispatcher;
use walhook_dispatch::recording::{self, Digest, Line, VERSION};

/// Effects of a round that differs, of which a person is shown so many.
const SHOWN: usize = 20;

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
/// What differs first, for a person; or what of the recording cannot be read, and in which line.
pub fn replay(mut recording: impl BufRead) -> Result<Replayed, String> {
    let mut replayed = Replayed::default();
    let mut dispatcher: Option<Dispatcher> = None;
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let read = recording.read_until(b'\n', &mut line);
        read.map_err(|error| format!("line {number} cannot be read: {error}"))?;
        if !line.ends_with(b"\n") {
            // Where the process was killed, a line may have been cut off.
            break;
        }
        let parsed = recording::parse(&line).map_err(|error| {
            format!("line {number} is none that this version can read: {error}")
        })?;
        let began = |dispatcher: Option<Dispatcher>| {
            dispatcher.ok_or_else(|| format!("line {number} comes before a dispatcher begins"))
        };
        match parsed {
            Line::Begin(begin) if begin.version == VERSION => {
                replayed.dispatchers += 1;
                dispatcher = Some(begin.dispatcher());
            }
            Line::Begin(begin) => {
                return Err(format!(
                    "the recording has version {}, of walhook {}; this one replays version {VERSION}",
                    begin.version, begin.walhook
                ));
            }
            Line::Input { at, input } => {
                let mut it = began(dispatcher.take())?;
                it.handle(at, input);
                dispatcher = Some(it);
                replayed.inputs += 1;
            }
            Line::Polled { at, effects: expected } => {
                let mut it = began(dispatcher.take())?;
                let (mut found, mut shown) = (Digest::default(), Vec::new());
                while let Some(effect) = it.poll(at) {
                    found.add(&effect).map_err(|error| error.to_string())?;
                    if shown.len() < SHOWN {
                        shown
                            .push(recording::describe(&effect).map_err(|error| error.to_string())?);
                    }
                }
                if found != expected {
                    return Err(format!(
                        "line {number}, at {} us: the recording has {} effects, and here were {}, the first \
                         of them:\n{}",
                        at.0,
                        expected.count,
                        found.count,
                        shown.join("\n")
                    ));
                }
                dispatcher = Some(it);
                replayed.rounds += 1;
                replayed.effects += found.count;
            }
            Line::Ended { why } => replayed.ended = Some(why),
        }
    }
    if replayed.dispatchers == 0 {
        return Err("no dispatcher begins in the recording".to_owned());
    }
    Ok(replayed)
}
