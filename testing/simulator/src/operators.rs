//! What operators do meanwhile.

use walhook_core::tick::Tick;

use crate::plan::Plan;
use crate::run::{Happens, Run};

#[derive(Debug, Default)]
pub(crate) struct Operators {}

impl Operators {
    pub(crate) fn new(_plan: &Plan) -> Self {
        Self::default()
    }

    pub(crate) fn is_idle(&self) -> bool {
        true
    }
}

impl Run {
    pub(crate) fn operate(&mut self) {
        let _ = (Tick(0), Happens::Operates);
    }

    pub(crate) fn tell_jobs(&mut self, _number: usize) {}
}
