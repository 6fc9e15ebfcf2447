//! A recording of the first process, made as the program makes one of its own.

use walhook_core::record::Key;
use walhook_core::tick::Tick;
use walhook_dispatch::dispatcher::{Effect, Input, Settings, Start};
use walhook_dispatch::recording::{self, Recorder};

use super::Run;

/// The process that is recorded.
const FIRST: usize = 0;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    wished: bool,
    recorder: Option<Recorder>,
    bytes: Vec<u8>,
}

impl Recorded {
    pub(super) fn new(wished: bool) -> Self {
        Self { wished, ..Self::default() }
    }

    pub(super) fn input(&mut self, life: usize, now: Tick, input: &Input) {
        if let Some(recorder) = self.recorder.as_ref().filter(|_| life == FIRST) {
            self.bytes.extend(recorder.input(now, input).unwrap_or_default());
        }
    }

    pub(super) fn effect(&mut self, life: usize, effect: &Effect) {
        if let Some(recorder) = self.recorder.as_mut().filter(|_| life == FIRST) {
            // What cannot be serialised is missing in the digest, and found when it is replayed.
            let _ = recorder.effect(effect);
        }
    }

    pub(super) fn polled(&mut self, life: usize, now: Tick) {
        if let Some(recorder) = self.recorder.as_mut().filter(|_| life == FIRST) {
            self.bytes.extend(recorder.polled(now).unwrap_or_default());
        }
    }

    pub(super) fn take(&mut self) -> Vec<u8> {
        if self.recorder.take().is_some() {
            self.bytes.extend(recording::ended("the simulation has ended").unwrap_or_default());
        }
        std::mem::take(&mut self.bytes)
    }
}

impl Run {
    /// A process begins: the first is recorded, where that is wished.
    pub(super) fn record(&mut self, life: usize, settings: &Settings, start: &Start, seed: u64) {
        if !self.recorded.wished || life != FIRST {
            return;
        }
        let begun = Recorder::begin(Key::new([7; 32]), "simulated", settings, start, seed);
        if let Ok((recorder, line)) = begun {
            self.recorded.bytes.extend(line);
            self.recorded.recorder = Some(recorder);
        }
    }
}
