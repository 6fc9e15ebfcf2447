//! What `dead-letters` and `deferred` can be filtered by, both.

use std::fmt::Debug;
use std::marker::PhantomData;

use anyhow::anyhow;
use clap::builder::{PossibleValuesParser, ValueParser};

use super::Failure;
use crate::control::Filter;
use crate::control::event_type::type_or_pattern;
use crate::control::time::time_us;
use walhook_core::event::rfc3339;

/// The kind of delivery that is filtered.
pub(super) trait Kind: Debug + Clone + Default + Send + Sync + 'static {
    /// What names one of them.
    type Id: Debug + Clone + Default + PartialEq + Send + Sync + 'static;

    /// Its name in the usage, such as `EVENT`.
    const ID: &'static str;

    /// Several of them, in a sentence.
    const PLURAL: &'static str;

    /// What the argument is for.
    const IDS: &'static str;

    /// Why there are deliveries of this kind.
    const REASONS: &'static [&'static str];

    /// Reads an id.
    fn parser() -> ValueParser;
}

/// Filters; those given must all fit.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Filters<K: Kind> {
    /// Of this endpoint
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    endpoint: Option<String>,
    /// Of this account
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    account: Option<String>,
    /// Of this event type; also a pattern such as subscriber.*
    #[arg(long = "type", value_name = "TYPE", value_parser = type_or_pattern)]
    event_type: Option<String>,
    /// Of this replay, as `replay list` shows it
    #[arg(long, value_name = "ID")]
    replay: Option<i64>,
    /// Stored at this time or later: RFC 3339, or an age such as 2h
    #[arg(long, value_name = "TIME", value_parser = time_us)]
    since: Option<i64>,
    /// Stored before this time: RFC 3339, or an age such as 2h
    #[arg(long, value_name = "TIME", value_parser = time_us)]
    until: Option<i64>,
    /// For this reason
    #[arg(long, value_parser = PossibleValuesParser::new(K::REASONS))]
    reason: Option<String>,
    #[arg(skip)]
    kind: PhantomData<K>,
}

/// Ids, filters or, said openly, all of them.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Selection<K: Kind> {
    #[arg(value_name = K::ID, help = K::IDS, value_parser = K::parser())]
    ids: Vec<K::Id>,
    #[command(flatten)]
    filters: Filters<K>,
    /// All of them
    #[arg(long)]
    all: bool,
}

impl<K: Kind> Filters<K> {
    /// The filter.
    ///
    /// # Errors
    /// [`Failure::Usage`] when the range of times ends before it begins.
    pub(super) fn to_filter(&self) -> Result<Filter<K::Id>, Failure> {
        ensure_forward(self.since, self.until)?;
        Ok(Filter {
            ids: None,
            endpoint: self.endpoint.clone(),
            account: self.account.clone(),
            event_type: self.event_type.clone(),
            reason: self.reason.clone(),
            replay: self.replay,
            since_us: self.since,
            until_us: self.until,
        })
    }
}

/// Refuses a range of times that ends before it begins, which nothing fits.
pub(super) fn ensure_forward(since: Option<i64>, until: Option<i64>) -> Result<(), Failure> {
    match (since, until) {
        (Some(since), Some(until)) if since > until => Err(Failure::Usage(anyhow!(
            "--since {} is later than --until {}: exchange them",
            rfc3339(since),
            rfc3339(until)
        ))),
        _ => Ok(()),
    }
}

impl<K: Kind> Selection<K> {
    /// The filter, where it names something, or `--all` says that nothing need be named.
    pub(super) fn to_filter(&self) -> Result<Filter<K::Id>, Failure> {
        let ids = (!self.ids.is_empty()).then(|| self.ids.clone());
        let filter = Filter { ids, ..self.filters.to_filter()? };
        if filter.is_empty() != self.all {
            return Err(Failure::Usage(anyhow!(
                "say which: give {}, filters such as --endpoint, or --all (and not both)",
                K::PLURAL
            )));
        }
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::dead_letters::DeadLetters;

    #[test]
    fn range_of_times_that_ends_before_it_begins_is_refused() {
        let of = |since, until| Filters::<DeadLetters> { since, until, ..Filters::default() };
        let refused = of(Some(2), Some(1)).to_filter().unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        let said = refused.to_string();
        assert!(said.contains("--since 1970") && said.contains("exchange"), "{said}");
        for (since, until) in
            [(Some(1), Some(2)), (Some(1), Some(1)), (Some(2), None), (None, Some(1))]
        {
            assert!(of(since, until).to_filter().is_ok());
        }
    }

    #[test]
    fn selection_of_everything_must_be_said_openly() {
        let filters = Filters::<DeadLetters>::default();
        let select = |ids: &[i64], all| {
            let filters = filters.clone();
            Selection { ids: ids.to_vec(), filters, all }.to_filter()
        };
        let one = Filter { ids: Some(vec![1]), ..Filter::default() };
        assert!(matches!(select(&[], false), Err(Failure::Usage(_))));
        assert_eq!(select(&[], true).unwrap(), Filter::default());
        assert!(matches!(select(&[1], true), Err(Failure::Usage(_))));
        assert_eq!(select(&[1], false).unwrap(), one);
    }
}
