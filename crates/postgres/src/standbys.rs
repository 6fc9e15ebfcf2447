//! The standbys that our slot waits for: those of `synchronized_standby_slots`, from PostgreSQL 17 on.
//!
//! The sender of a slot that standbys follow sends nothing that they have not received. Where one of them is down,
//! it sends nothing at all, goes on with its keepalives, and says so in warnings.

use std::fmt;

use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, Type};

use crate::op::{EQ, NE};
use walhook_core::lsn::Lsn;

/// So many are named at most.
const NAMED: usize = 5;

/// A slot that `synchronized_standby_slots` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standby {
    /// The slot's name.
    pub slot: String,
    /// How it stands.
    pub state: StandbyState,
}

/// How such a slot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandbyState {
    /// There is none of the name.
    Missing,
    /// It is a logical one.
    Logical,
    /// Its WAL is gone.
    Lost,
    /// No standby streams from it.
    Away,
    /// A standby does, and has received so much.
    Streams(Option<Lsn>),
}

impl StandbyState {
    /// What the slot is in need of, where that shows by itself.
    #[must_use]
    pub fn fix(self) -> Option<&'static str> {
        match self {
            Self::Missing => Some(
                "create the physical slot and let the standby stream from it, or amend synchronized_standby_slots",
            ),
            Self::Logical => {
                Some("let synchronized_standby_slots name physical slots of standbys only")
            }
            Self::Lost => {
                Some("make the standby and its slot anew, or amend synchronized_standby_slots")
            }
            Self::Away => Some("start the standby, or amend synchronized_standby_slots"),
            Self::Streams(_) => None,
        }
    }
}

impl fmt::Display for Standby {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slot = &self.slot;
        match self.state {
            StandbyState::Missing => write!(f, "there is no slot {slot}"),
            StandbyState::Logical => write!(f, "{slot} is a logical slot"),
            StandbyState::Lost => write!(f, "the slot {slot} is lost"),
            StandbyState::Away => write!(f, "no standby streams from {slot}"),
            StandbyState::Streams(_) => write!(f, "the standby of {slot} does not get on"),
        }
    }
}

/// Who holds the stream back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBack(Vec<Standby>);

impl HeldBack {
    /// Those of `now`, of whom the server waits for some, that are as they were `before`. `None` where all get on:
    /// a standby that receives what is written takes a moment for it, too.
    #[must_use]
    pub fn by(before: &[Standby], now: &[Standby]) -> Option<Self> {
        let stuck = || now.iter().filter(|standby| before.contains(standby));
        let down = stuck().filter(|standby| standby.state.fix().is_some());
        let mut by: Vec<Standby> = down.cloned().collect();
        if by.is_empty() {
            let least = stuck().map(|standby| standby.state).min_by_key(|state| match state {
                StandbyState::Streams(received) => *received,
                StandbyState::Missing
                | StandbyState::Logical
                | StandbyState::Lost
                | StandbyState::Away => None,
            });
            by = stuck().filter(|standby| Some(standby.state) == least).cloned().collect();
        }
        (!by.is_empty()).then_some(Self(by))
    }

    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        let of_first = self.0.iter().find_map(|standby| standby.state.fix());
        of_first.unwrap_or(
            "find out what keeps the standby from receiving the WAL, or amend synchronized_standby_slots",
        )
    }
}

impl fmt::Display for HeldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = || self.0.iter().take(NAMED);
        let slots: Vec<&str> = named().map(|standby| &*standby.slot).collect();
        let why: Vec<String> = named().map(Standby::to_string).collect();
        let more = if self.0.len() > NAMED { ", ..." } else { "" };
        write!(
            f,
            "the server holds the stream back until the standbys of synchronized_standby_slots ({}{more}) have \
             received it: {}{more}",
            slots.join(", "),
            why.join(", ")
        )
    }
}

/// Those that `synchronized_standby_slots` names, as they stand; none before version 17.
///
/// # Errors
/// The server's.
pub async fn read(client: &Client) -> Result<Vec<Standby>, tokio_postgres::Error> {
    let sql = "SELECT coalesce(pg_catalog.current_setting('synchronized_standby_slots', true), '')";
    let row = client.query_typed_one(sql, &[]).await?;
    of_names(client, &names(row.try_get(0)?)).await
}

/// The standbys, where the server process that streams from our slot waits for one of them at this moment. A role
/// other than the stream's is not told what that process waits for, unless it may read all statistics.
///
/// # Errors
/// The server's.
pub async fn waited_for(
    client: &Client,
    slot: &str,
) -> Result<Option<Vec<Standby>>, tokio_postgres::Error> {
    let sql = format!(
        "SELECT pg_catalog.current_setting('synchronized_standby_slots', true)
         FROM pg_catalog.pg_replication_slots s
         JOIN pg_catalog.pg_stat_activity a ON a.pid {EQ} s.active_pid
         WHERE pg_catalog.current_setting('synchronized_standby_slots', true) {NE} ''
           AND s.slot_name {EQ} $1 AND a.wait_event {EQ} 'WaitForStandbyConfirmation'"
    );
    let Some(row) = client.query_typed_opt(&sql, &[(&slot, Type::TEXT)]).await? else {
        return Ok(None);
    };
    of_names(client, &names(row.try_get(0)?)).await.map(Some)
}

async fn of_names(
    client: &Client,
    names: &[String],
) -> Result<Vec<Standby>, tokio_postgres::Error> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT slot_name::pg_catalog.text, slot_type {EQ} 'physical', wal_status {EQ} 'lost',
                active_pid IS NOT NULL, restart_lsn
         FROM pg_catalog.pg_replication_slots WHERE slot_name {EQ} ANY ($1)"
    );
    let rows = client.query_typed(&sql, &[(&names, Type::TEXT_ARRAY)]).await?;
    let state = |name: &String| {
        for row in &rows {
            if row.try_get::<_, &str>(0)? != name {
                continue;
            }
            let lost: Option<bool> = row.try_get(2)?;
            let received: Option<PgLsn> = row.try_get(4)?;
            return Ok(match (row.try_get(1)?, lost, row.try_get(3)?) {
                (false, _, _) => StandbyState::Logical,
                (true, Some(true), _) => StandbyState::Lost,
                (true, _, false) => StandbyState::Away,
                (true, _, true) => StandbyState::Streams(received.map(|lsn| Lsn(lsn.into()))),
            });
        }
        Ok(StandbyState::Missing)
    };
    names.iter().map(|name| Ok(Standby { slot: name.clone(), state: state(name)? })).collect()
}

/// The names of a list of identifiers. A slot's has small letters, digits and underscores only.
fn names(setting: &str) -> Vec<String> {
    let names = setting.split(',').map(|name| name.trim().trim_matches('"').to_lowercase());
    names.filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::start;
    use walhook_testkit::wording::is_imperative;

    fn standby(slot: &str, state: StandbyState) -> Standby {
        Standby { slot: slot.to_owned(), state }
    }

    #[test]
    fn names_are_those_of_a_list_of_identifiers() {
        assert_eq!(names(" one, \"two\" ,THREE"), ["one", "two", "three"]);
        assert_eq!(names(""), [""; 0]);
    }

    #[test]
    fn stream_is_held_back_by_those_that_are_down_else_by_those_that_stand_still_furthest_behind() {
        let streams = |at: u64| StandbyState::Streams(Some(Lsn(at)));
        let before = [
            standby("gone", StandbyState::Missing),
            standby("away", StandbyState::Away),
            standby("slow", streams(7)),
            standby("still", streams(5)),
            standby("stiller", streams(4)),
        ];
        let by = HeldBack::by(&before, &before).unwrap();
        assert_eq!(
            by.to_string(),
            "the server holds the stream back until the standbys of synchronized_standby_slots (gone, away) \
             have received it: there is no slot gone, no standby streams from away"
        );
        assert!(is_imperative(by.fix()), "{}", by.fix());
        let now = [
            standby("away", streams(3)),
            standby("slow", streams(8)),
            standby("still", streams(5)),
            standby("stiller", streams(4)),
        ];
        let by = HeldBack::by(&before, &now).unwrap();
        assert_eq!(by, HeldBack(vec![standby("stiller", streams(4))]));
        assert!(is_imperative(by.fix()), "{}", by.fix());
        assert_eq!(HeldBack::by(&before, &now[..2]), None, "they get on");
        assert_eq!(HeldBack::by(&[], &before), None);
    }

    #[test]
    fn each_standby_that_is_none_has_a_fix() {
        for state in
            [StandbyState::Missing, StandbyState::Logical, StandbyState::Lost, StandbyState::Away]
        {
            assert!(state.fix().is_some_and(is_imperative), "{state:?}");
        }
    }

    #[tokio::test]
    async fn slots_are_told_apart_by_what_they_lack() {
        let (_cluster, client) = start().await;
        assert_eq!(read(&client).await.unwrap(), []);
        assert_eq!(waited_for(&client, "walhook").await.unwrap(), None);
        let slots = "SELECT pg_create_physical_replication_slot('away', true);
             SELECT pg_create_logical_replication_slot('logical', 'pgoutput')";
        client.batch_execute(slots).await.unwrap();
        let named = ["away", "logical", "none"].map(str::to_owned);
        let found = of_names(&client, &named).await.unwrap();
        let states = [StandbyState::Away, StandbyState::Logical, StandbyState::Missing];
        assert_eq!(found.iter().map(|standby| standby.state).collect::<Vec<_>>(), states);
    }
}
