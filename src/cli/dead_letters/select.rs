//! Which dead letters the command line means.

use clap::builder::PossibleValuesParser;

use crate::cli::{Failure, filter};
use walhook_core::persist::DeadReason;
use walhook_state::DeadLetterFilter;

const REASONS: [&str; 4] = [
    DeadReason::Exhausted.as_str(),
    DeadReason::EndpointDisabled.as_str(),
    DeadReason::EndpointInvalid.as_str(),
    DeadReason::Unroutable.as_str(),
];

/// Filters; those given must all fit.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Filters {
    #[command(flatten)]
    pub(super) shared: filter::Shared,
    /// For this reason
    #[arg(long, value_parser = PossibleValuesParser::new(REASONS))]
    pub(super) reason: Option<String>,
}

/// Ids, filters or, said openly, all of them.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Selection {
    /// Their ids
    #[arg(value_name = "ID")]
    pub(super) ids: Vec<i64>,
    #[command(flatten)]
    pub(super) filters: Filters,
    /// All of them
    #[arg(long)]
    pub(super) all: bool,
}

impl Filters {
    pub(super) fn to_filter(&self) -> DeadLetterFilter {
        self.shared.to_filter(self.reason.clone())
    }
}

impl Selection {
    pub(super) fn to_filter(&self) -> Result<DeadLetterFilter, Failure> {
        let ids = (!self.ids.is_empty()).then(|| self.ids.clone());
        let filter = DeadLetterFilter { ids, ..self.filters.to_filter() };
        filter::openly(filter, self.all, "ids")
    }
}
