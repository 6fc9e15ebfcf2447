//! A recording: what came in at a dispatcher's door and when it was polled, line by line, and what the effects
//! came to.
//!
//! ```text
//! {"begin":…}     version, settings, start and seed: a dispatcher begins
//! {"input":…}     what came in, and when
//! {"polled":…}    a round of polls: when, how many effects, and their digest
//! {"ended":…}     why there is no more; a process that was killed leaves none
//! ```
//!
//! JSON, one object a line. What is somebody's stands in it by its length and a hash, see
//! [`walhook_core::record`]. A recording holds one dispatcher after the other, where a process led more than
//! once. Whoever feeds the inputs to another dispatcher of the same version, and polls it at the same moments,
//! has the same effects: the digests say so.

use std::io;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};

use crate::dispatcher::{Dispatcher, Effect, Input, Settings, Start};
use walhook_core::record::{Key, keyed};
use walhook_core::tick::Tick;

/// What the lines look like. Grows with each change of them.
pub const VERSION: u32 = 3;

/// One line, as it is read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A dispatcher begins.
    Begin(Box<Begin>),
    /// Something came in.
    Input {
        /// When.
        at: Tick,
        /// What.
        input: Input,
    },
    /// It was polled until nothing was left.
    Polled {
        /// When.
        at: Tick,
        /// What came out.
        effects: Digest,
    },
    /// There is no more.
    Ended {
        /// Why, for a person.
        why: String,
    },
}

/// How a dispatcher begins.
#[derive(Debug, Deserialize)]
pub struct Begin {
    /// [`VERSION`].
    pub version: u32,
    /// The version of walhook.
    pub walhook: String,
    /// Its settings.
    pub settings: Settings,
    /// Where it goes on.
    pub start: Start,
    /// What its random source was made of.
    pub seed: u64,
}

impl Begin {
    /// The dispatcher that begins so.
    #[must_use]
    pub fn dispatcher(self) -> Dispatcher {
        Dispatcher::new(self.settings, self.start, SmallRng::seed_from_u64(self.seed))
    }
}

/// One line, as it is written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Written<'a> {
    Begin { version: u32, walhook: &'a str, settings: &'a Settings, start: &'a Start, seed: u64 },
    Input { at: Tick, input: &'a Input },
    Polled { at: Tick, effects: Digest },
    Ended { why: &'a str },
}

impl Written<'_> {
    /// With its line end.
    fn line(&self, key: Key) -> io::Result<Vec<u8>> {
        let mut line = keyed(key, || serde_json::to_vec(self))?;
        line.push(b'\n');
        Ok(line)
    }
}

/// What the effects of a round came to: FNV-1a of their JSON, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// How many there were.
    pub count: u64,
    /// All they say, with lengths for what is somebody's.
    pub hash: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self { count: 0, hash: 0xCBF2_9CE4_8422_2325 }
    }
}

impl Digest {
    /// Takes one more.
    ///
    /// # Errors
    /// It cannot be serialised; that is a mistake of ours.
    pub fn add(&mut self, effect: &Effect) -> io::Result<()> {
        serde_json::to_writer(&mut *self, effect)?;
        self.count += 1;
        Ok(())
    }
}

impl io::Write for Digest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes the lines of one dispatcher.
#[derive(Debug)]
pub struct Recorder {
    key: Key,
    round: Digest,
}

impl Recorder {
    /// One with this key, and the line with which its dispatcher begins.
    ///
    /// # Errors
    /// It cannot be serialised; that is a mistake of ours.
    pub fn begin(
        key: Key,
        walhook: &str,
        settings: &Settings,
        start: &Start,
        seed: u64,
    ) -> io::Result<(Self, Vec<u8>)> {
        let line = Written::Begin { version: VERSION, walhook, settings, start, seed }.line(key)?;
        Ok((Self { key, round: Digest::default() }, line))
    }

    /// The line of what comes in.
    ///
    /// # Errors
    /// It cannot be serialised; that is a mistake of ours.
    pub fn input(&self, at: Tick, input: &Input) -> io::Result<Vec<u8>> {
        Written::Input { at, input }.line(self.key)
    }

    /// Takes what goes out into the round's digest.
    ///
    /// # Errors
    /// It cannot be serialised; that is a mistake of ours.
    pub fn effect(&mut self, effect: &Effect) -> io::Result<()> {
        self.round.add(effect)
    }

    /// The line of a round that has come to its end.
    ///
    /// # Errors
    /// It cannot be serialised; that is a mistake of ours.
    pub fn polled(&mut self, at: Tick) -> io::Result<Vec<u8>> {
        let effects = std::mem::take(&mut self.round);
        Written::Polled { at, effects }.line(self.key)
    }
}

/// The last line of a recording.
///
/// # Errors
/// It cannot be serialised; that is a mistake of ours.
pub fn ended(why: &str) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&Written::Ended { why })?;
    line.push(b'\n');
    Ok(line)
}

/// Reads one line.
///
/// # Errors
/// It is no line of a recording, or of one of another version.
pub fn parse(line: &[u8]) -> io::Result<Line> {
    Ok(serde_json::from_slice(line)?)
}

/// All that an effect says, as its digest has it.
///
/// # Errors
/// It cannot be serialised; that is a mistake of ours.
pub fn describe(effect: &Effect) -> io::Result<String> {
    Ok(serde_json::to_string(effect)?)
}

#[cfg(test)]
mod tests;
