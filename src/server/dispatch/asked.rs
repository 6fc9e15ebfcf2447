//! What an operator asks of what is in memory: where one event is, and what work there is.

use super::Driver;
use crate::server::work::{self, EventWork, Work};
use walhook_dispatch::dispatcher::Find;
use walhook_process::clock::unix_us;

impl Driver {
    /// An event is to be sought; the one that was meanwhile is given up.
    pub(super) fn seek(&mut self) {
        let event = *self.sought.borrow_and_update();
        self.find = event.map(|event| (event, Find::new(event)));
    }

    /// Looks for it a little, where one is sought.
    pub(super) fn find_on(&mut self) {
        let Some((event, mut find)) = self.find.take() else { return };
        if self.dispatcher.find(&mut find, work::LOOKED_AT_ONCE, self.tools.clock.now()) {
            let found = EventWork::new(&self.tools.pipeline, find.into_found());
            self.tools.work.tell(event, found);
        } else {
            self.find = Some((event, find));
        }
    }

    pub(super) fn show_work(&mut self) {
        let now = self.tools.clock.now();
        let (dispatcher, recent, tools) = (&self.dispatcher, &mut self.recent, &self.tools);
        tools.work.show(|| {
            let (standing, pace) = (dispatcher.standing(work::ACCOUNTS, now), recent.pace(now));
            Work::new(&tools.pipeline, unix_us(), standing, pace)
        });
    }
}
