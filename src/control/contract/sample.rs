//! A view of each kind, for the tests of its JSON and of its text. They are told by what a view is about: what is
//! now, what is stored, what happened to events, endpoints, ranges of WAL, and the installation.

mod endpoints;
mod events;
mod installation;
mod ranges;
mod status;
mod stored;

pub(crate) use endpoints::*;
pub(crate) use events::*;
pub(crate) use installation::*;
pub(crate) use ranges::*;
pub(crate) use status::*;
pub(crate) use stored::*;

use crate::control::jobs::JobView;

const EVENT: &str = "evt_01KB4ZD2G0ABCDEFGHJKMNPQRS";

fn at(seconds: u32) -> String {
    format!("2026-11-28T12:00:{seconds:02}.000000Z")
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

pub(crate) fn job() -> JobView {
    JobView {
        id: 4,
        kind: "deferred.retry".into(),
        total: 3,
        done: 1,
        failed: 1,
        created_at: at(0),
        finished: true,
        error: None,
    }
}

pub(crate) fn job_with_error() -> JobView {
    JobView { error: text("the arguments cannot be read"), ..job() }
}
