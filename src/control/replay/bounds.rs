//! From what an operator names, a position or a time, to a range that can be read.

use anyhow::{Context, anyhow};

use crate::config::Config;
use crate::control::time::time_us;
use crate::control::{Databases, Failure};
use crate::server::range;
use walhook_core::event::rfc3339;
use walhook_core::lsn::Lsn;
use walhook_core::replay::{ReplayFilter, ReplayRange};
use walhook_postgres::slot;
use walhook_process::clock;
use walhook_state::StateStore;

/// The server's clock may be so far ahead of ours.
const SKEW_US: i64 = 60_000_000;

/// A position as an operator names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// An LSN.
    Position(Lsn),
    /// Microseconds since 1970-01-01 UTC.
    Time(i64),
    /// As far back as anything can be sent again, wherever that is when it is.
    Oldest,
}

impl Moment {
    /// Reads an LSN, an RFC 3339 time, an age, or the word `oldest`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "oldest" {
            return Ok(Self::Oldest);
        }
        if let Ok(lsn) = text.parse() {
            return Ok(Self::Position(lsn));
        }
        time_us(text).map(Self::Time).map_err(|_| {
            format!(
                "{text:?} is no position; write it as an LSN (16/B374D848), a time \
                 (2026-11-23T17:46:00Z), an age (2h), or oldest"
            )
        })
    }

    /// Refuses a range that ends before it begins, as far as that can be told without a look at the window.
    pub(super) fn ensure_forward(from: Self, to: Option<Self>) -> Result<(), Failure> {
        let is_backwards = match (from, to) {
            (Self::Time(from), Some(Self::Time(to))) => from > to,
            (Self::Position(from), Some(Self::Position(to))) => from > to,
            (_, None | Some(_)) => false,
        };
        if is_backwards {
            let problem =
                anyhow!("--from is later than --to, so nothing is in between: exchange them");
            return Err(Failure::Usage(problem));
        }
        Ok(())
    }
}

/// What can be replayed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// Where the anchor stands.
    pub(crate) oldest: Lsn,
    /// The checkpoint: what follows is still being delivered for the first time.
    pub(crate) checkpoint: Lsn,
    /// Where the WAL ends.
    pub(crate) wal_end: Lsn,
}

impl Window {
    /// Reads it.
    pub(crate) async fn read(config: &Config, state: &StateStore) -> Result<Self, Failure> {
        let source = Databases::of(config).open_source("walhook replay").await?;
        let oldest = range::oldest(config, &source).await?;
        // The checkpoint first: the WAL ends behind it.
        let checkpoint = state.frontier().await?;
        let wal_end = slot::wal_end(&source).await.context("cannot read the end of the WAL")?;
        Ok(Self { oldest, checkpoint, wal_end })
    }

    /// Bytes of WAL that are on their way for the first time.
    pub(crate) fn lag_bytes(&self) -> u64 {
        self.wal_end.bytes_since(self.checkpoint)
    }

    /// Those that a range leaves out since it ends at the checkpoint; 0 where it ends before that.
    pub(super) fn left_out_bytes(&self, range: &ReplayRange) -> u64 {
        if range.to < self.checkpoint { 0 } else { self.lag_bytes() }
    }

    /// The range between two moments, which must lie within the window.
    pub(crate) async fn range(
        &self,
        state: &StateStore,
        from: Moment,
        to: Option<Moment>,
        mut filter: ReplayFilter,
    ) -> Result<ReplayRange, Failure> {
        let from_oldest = from == Moment::Oldest;
        let from = match from {
            Moment::Oldest => self.oldest,
            Moment::Position(lsn) => lsn,
            Moment::Time(since_us) if since_us > clock::unix_us().saturating_add(SKEW_US) => {
                return Err(Failure::Usage(anyhow!("{} lies in the future", rfc3339(since_us))));
            }
            Moment::Time(since_us) => {
                filter.since_us = Some(since_us);
                state.position_before(since_us).await?.unwrap_or_default()
            }
        };
        let to = match to {
            None => self.checkpoint,
            Some(Moment::Oldest) => self.oldest,
            Some(Moment::Position(lsn)) => lsn,
            Some(Moment::Time(until_us)) => {
                filter.until_us = Some(until_us);
                let after = state.position_after(until_us).await?;
                after.map_or(self.checkpoint, |after| after.min(self.checkpoint))
            }
        };
        if from < self.oldest {
            let asked = filter.since_us.map_or_else(|| from.to_string(), rfc3339);
            return Err(self.refuse(state, &format!("{asked} lies before")).await);
        }
        if from > self.checkpoint || to > self.checkpoint {
            return Err(self.refuse(state, &format!("{} lies behind", from.max(to))).await);
        }
        if to < from {
            return Err(Failure::Usage(anyhow!(
                "the range ends at {to}, before it begins at {from}"
            )));
        }
        Ok(ReplayRange { from, to, from_oldest, filter })
    }

    async fn refuse(&self, state: &StateStore, what: &str) -> Failure {
        let since = match state.time_of(self.oldest).await {
            Ok(Some(at_us)) => format!(" (about {})", rfc3339(at_us)),
            Ok(None) | Err(_) => String::new(),
        };
        let Self { oldest, checkpoint, .. } = self;
        anyhow!(
            "{what} what can be sent again, which is {oldest}{since} to {checkpoint} (the checkpoint). \
             source.replay_window decides how much WAL is kept for that"
        )
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moment_is_a_position_a_time_or_an_age() {
        assert_eq!(Moment::parse("16/B374D848"), Ok(Moment::Position(Lsn(0x16_B374_D848))));
        assert_eq!(Moment::parse("1970-01-01T00:00:01Z"), Ok(Moment::Time(1_000_000)));
        assert!(matches!(Moment::parse("2h"), Ok(Moment::Time(_))));
        assert_eq!(Moment::parse("oldest"), Ok(Moment::Oldest));
        assert!(Moment::parse("yesterday").unwrap_err().contains("is no position"));
    }
}
