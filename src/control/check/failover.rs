//! What would end the slot while we are away: idle time-out, and failover to a standby.

use anyhow::Result;
use tokio_postgres::Client;

use super::{NAME, Report};
use walhook_postgres::op::{EQ, NE};
use walhook_postgres::source::server_version;
use walhook_postgres::standbys::{self, Standby};

/// `synchronized_standby_slots`, and slots that standbys follow.
const FAILOVER: i32 = 170_000;

pub(super) async fn settings(client: &Client, report: &mut Report) -> Result<()> {
    // Since version 18; null on older servers.
    let sql = "SELECT pg_catalog.current_setting('idle_replication_slot_timeout', true)";
    let timeout: Option<String> = client.query_one(sql, &[]).await?.try_get(0)?;
    match timeout.as_deref() {
        None => {}
        Some("0") => report.pass("idle_replication_slot_timeout", "0: a slot may stay idle"),
        Some(timeout) => report.warn(
            "idle_replication_slot_timeout",
            format!("{timeout}: when walhook is stopped for longer, its slot is lost, with a gap"),
            "set it to 0, or to longer than walhook may ever be stopped",
        ),
    }
    Ok(())
}

/// Whether the slot is there after a failover, and the standbys that it waits for until then are.
pub(super) async fn slot(client: &Client, name: &str, report: &mut Report) -> Result<()> {
    if server_version(client).await? < FAILOVER {
        if has_standby(client).await? {
            let finding = format!("{name} does not exist on a standby: a failover leaves a gap");
            let fix = "let the failover manager keep it (Patroni: slots), or expect \
                        `walhook recover` after one";
            report.warn("failover", finding, fix);
        }
        return Ok(());
    }
    let sql =
        format!("SELECT failover FROM pg_catalog.pg_replication_slots WHERE slot_name {EQ} $1");
    let follows: bool = client.query_one(&sql, &[&name]).await?.try_get(0)?;
    let standbys = standbys::read(client).await?;
    // A slot that no standby follows waits for none.
    if follows {
        waited_for(&standbys, report);
    }
    if !has_standby(client).await? {
        return Ok(());
    }
    match (follows, standbys.is_empty()) {
        (true, false) => report.pass("failover", format!("standbys keep {name}")),
        (true, true) => report.warn(
            "failover",
            "synchronized_standby_slots is empty: walhook may deliver what a standby lacks when it \
             is promoted",
            "name the standbys' slots in it",
        ),
        (false, _) => report.warn(
            "failover",
            format!("standbys do not keep {name}: a failover leaves a gap"),
            "with walhook stopped, drop the slot and let `walhook recover --accept-gap` make it anew",
        ),
    }
    Ok(())
}

/// Whether there is a standby to fail over to: one that has a slot, or streams now.
async fn has_standby(client: &Client) -> Result<bool> {
    // The connection that `check` has just tried may not be gone yet; it is no standby. Of another
    // role's the name may be hidden, which makes it null.
    let sql = format!("SELECT EXISTS (SELECT FROM pg_catalog.pg_replication_slots
                       WHERE slot_type {EQ} 'physical')
                   OR EXISTS (SELECT FROM pg_catalog.pg_stat_replication r
                              WHERE (application_name IS NULL OR application_name {NE} $1) AND NOT EXISTS (
                                  SELECT FROM pg_catalog.pg_replication_slots s
                                      WHERE s.active_pid {EQ} r.pid))");
    Ok(client.query_one(&sql, &[&NAME]).await?.try_get(0)?)
}

/// Those of `synchronized_standby_slots`: what one of them has not received the server does not send us.
fn waited_for(standbys: &[Standby], report: &mut Report) {
    let what = "synchronized_standby_slots";
    let mut down = 0;
    for standby in standbys {
        if let Some(fix) = standby.state.fix() {
            down += 1;
            let finding =
                format!("{standby}: the server holds the stream back, and nothing is delivered");
            report.fail(what, finding, fix);
        }
    }
    if down == 0 && !standbys.is_empty() {
        let names: Vec<&str> = standbys.iter().map(|standby| &*standby.slot).collect();
        report.pass(what, format!("standbys stream from {}", names.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use walhook_postgres::standbys::StandbyState;

    #[test]
    fn standby_that_does_not_stream_is_a_failure_with_its_slot_and_the_fix() {
        let standby = |slot: &str, state| Standby { slot: slot.to_owned(), state };
        let mut report = Report::default();
        waited_for(&[], &mut report);
        assert!(report.0.is_empty());
        let there = standby("there", StandbyState::Streams(None));
        waited_for(std::slice::from_ref(&there), &mut report);
        assert_eq!(report.0[0].verdict, Verdict::Pass);
        assert_eq!(report.0[0].finding, "standbys stream from there");
        let all =
            [there, standby("away", StandbyState::Away), standby("no", StandbyState::Missing)];
        waited_for(&all, &mut report);
        assert_eq!(report.count(Verdict::Fail), 2);
        for (finding, begins) in
            report.0[1..].iter().zip(["no standby streams from away: ", "there is no slot no: "])
        {
            assert!(finding.finding.starts_with(begins), "{finding}");
            assert!(finding.fix.as_ref().is_some_and(|fix| fix.contains("amend")), "{finding}");
        }
    }
}
