//! All that was told and asked for, line by line: two runs of one seed must have the same.

use std::hash::{DefaultHasher, Hasher};

use walhook_core::tick::Tick;
use walhook_dispatch::dispatcher::{Effect, Input};

use crate::run::Wishes;

#[derive(Debug)]
pub(crate) struct Trace {
    on: bool,
    print: bool,
    lines: u64,
    hasher: DefaultHasher,
    hashes: Vec<u64>,
    wanted: Option<usize>,
    found: Option<String>,
}

impl Trace {
    pub(crate) fn new(wishes: &Wishes) -> Self {
        Self {
            on: wishes.trace || wishes.line.is_some() || wishes.print,
            print: wishes.print,
            lines: 0,
            hasher: DefaultHasher::new(),
            hashes: Vec::new(),
            wanted: wishes.line,
            found: None,
        }
    }

    pub(crate) fn note(&mut self, now: Tick, text: impl FnOnce() -> String) {
        if !self.on {
            return;
        }
        let line = format!("{:>12} {}", now.0, text());
        let mut hasher = DefaultHasher::new();
        hasher.write(line.as_bytes());
        self.hasher.write(line.as_bytes());
        if self.wanted == Some(self.hashes.len()) {
            self.found = Some(line.clone());
        }
        if self.print {
            println!("{line}");
        }
        self.hashes.push(hasher.finish());
        self.lines += 1;
    }

    pub(crate) fn input(&mut self, now: Tick, life: usize, input: &Input) {
        self.note(now, || format!("life {life} is told {input:?}"));
    }

    pub(crate) fn effect(&mut self, now: Tick, life: usize, effect: &Effect) {
        self.note(now, || format!("life {life} asks for {effect:?}"));
    }

    pub(crate) fn digest(&self) -> u64 {
        self.hasher.finish()
    }

    pub(crate) fn lines(&self) -> u64 {
        self.lines
    }

    pub(crate) fn take(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.hashes)
    }

    pub(crate) fn line(&mut self) -> Option<String> {
        self.found.take()
    }
}
