//! Endpoints: list, test, pause, resume.

mod list;
mod probe;
mod stop;

pub(crate) use list::{EndpointPage, EndpointView, Query, list};
pub(crate) use probe::{ProbeView, probe};
pub(crate) use stop::{StopView, pause, resume};
