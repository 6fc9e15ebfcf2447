//! What disturbs small accounts: one file for each kind.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::Options;
use super::stage::{Needs, Stage};

mod backlog;
mod crowd;
mod dead;
mod million;
mod past;
mod rolled_back;
mod soak;
mod stopped;
mod weights;
mod whales;

pub(super) use backlog::Backlog;
pub(super) use crowd::Crowd;
pub(super) use dead::Dead;
pub(super) use million::Million;
pub(super) use past::Past;
pub(super) use rolled_back::RolledBack;
pub(super) use soak::Soak;
pub(super) use stopped::Stopped;
pub(super) use weights::Weights;
pub(super) use whales::Whales;

/// A step of a scenario.
pub(super) type Doing<'a> = Pin<Box<dyn Future<Output = Result<Vec<Fact>>> + 'a>>;

/// Something else that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Fact {
    /// What it is, with its unit.
    pub what: &'static str,
    /// How much.
    pub value: f64,
}

impl Fact {
    pub(super) fn new(what: &'static str, value: f64) -> Self {
        Self { what, value }
    }
}

/// In the order in which they are called; each may be left out.
pub(super) trait Disturbance: Debug + Send + Sync {
    /// Of the configuration.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Before walhook starts: adds accounts and receivers.
    fn arrange<'a>(&'a self, _: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        nothing()
    }

    /// Before it is measured, while walhook leads.
    fn prepare<'a>(&'a self, _: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        nothing()
    }

    /// Disturbs. The disturbed phase ends when this does.
    fn disturb<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a>;

    /// Makes it end soon. What is left is delivered before it is calm again.
    fn relent<'a>(&'a self, _: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        nothing()
    }

    /// What could be in flight while the disturbance waits, where that is known.
    fn capacity(&self) -> Option<Capacity> {
        None
    }
}

/// What walhook could have in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capacity {
    /// Requests.
    pub(super) in_flight: u32,
    /// What an endpoint takes for one.
    pub(super) delay: Duration,
    /// So long after the disturbance has begun: until then the endpoints' own limits grow.
    pub(super) after: Duration,
}

fn nothing<'a>() -> Doing<'a> {
    Box::pin(async { Ok(Vec::new()) })
}

/// Nothing disturbs.
#[derive(Debug)]
pub(super) struct Nothing;

impl Disturbance for Nothing {
    fn disturb<'a>(&'a self, _: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async {
            tokio::time::sleep(options.disturbed).await;
            Ok(Vec::new())
        })
    }
}
