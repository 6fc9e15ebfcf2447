use std::time::Duration;

use super::finish::{Plan, find, finish};
use super::prepare::Prepared;

use crate::config::Config;
use crate::control::fixture::Fixture;
use crate::control::{Failure, setup};
use walhook_state::StateStore;

const WAIT: Duration = Duration::from_secs(60);

/// Of those that last: the one that a prepare reads by goes with its session, a moment after that.
const SLOTS: &str = "SELECT string_agg(confirmed_flush_lsn::text, ' ')
    FROM pg_replication_slots WHERE NOT temporary";

async fn prepare(config: &Config) -> Result<Prepared, Failure> {
    Ok(super::prepare(config, WAIT).await?.prepared)
}

async fn state(config: &Config) -> StateStore {
    StateStore::open(&config.source.url, &config.state.schema, &config.source.slot).await.unwrap()
}

/// Makes the cluster look like another one, whose slots begin at other places.
async fn upgraded(fixture: &Fixture) {
    fixture.run("UPDATE walhook.meta SET system_identifier = 1").await;
    fixture.run("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await;
    for slot in ["walhook", "walhook_anchor"] {
        let create = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
        fixture.run(&create).await;
    }
}

#[tokio::test]
async fn prepare_moves_both_slots_behind_its_own_write_and_writes_nothing_when_it_is_run_again() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    let done = prepare(&config).await.unwrap();
    assert_eq!(fixture.text(SLOTS).await, format!("{0} {0}", done.lsn));
    let record = "SELECT concat_ws(' ', xmin, epoch, lsn) FROM walhook.upgrades";
    let before = fixture.text(record).await;
    fixture.run("CREATE TABLE somebody_writes ()").await;
    let again = prepare(&config).await.unwrap();
    assert_ne!(again.lsn, done.lsn);
    assert_eq!(fixture.text(SLOTS).await, format!("{0} {0}", again.lsn));
    assert_eq!(fixture.text(record).await, before);
}

#[tokio::test]
async fn prepare_refuses_while_something_is_owed_and_moves_no_slot() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    fixture.run("INSERT INTO subscribers (account_id, email) VALUES (1, 'a')").await;
    let at = fixture.text(SLOTS).await;
    // An insert makes no event here.
    prepare(&config).await.unwrap();
    assert_ne!(fixture.text(SLOTS).await, at);
    let at = fixture.text(SLOTS).await;
    fixture.run("UPDATE subscribers SET email = 'b'").await;
    let error = prepare(&config).await.unwrap_err().to_string();
    assert!(error.contains("1 changes") && error.contains("prepare again"), "{error}");
    assert_eq!(fixture.text(SLOTS).await, at);
    assert!(state(&config).await.prepared().await.unwrap().unwrap().holds, "the one before stands");

    let reader = fixture.read_slot().await;
    let error = prepare(&config).await.unwrap_err().to_string();
    assert!(error.contains("is in use by"), "{error}");
    drop(reader);
}

#[tokio::test]
async fn prepare_that_fails_at_first_leaves_no_record() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    fixture.run("INSERT INTO subscribers (account_id, email) VALUES (1, 'a')").await;
    fixture.run("UPDATE subscribers SET email = 'b'").await;
    assert!(prepare(&config).await.is_err());
    assert_eq!(state(&config).await.prepared().await.unwrap(), None);
}

#[tokio::test]
async fn finish_refuses_without_a_prepare_that_still_holds() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    let refused = async |says: &str, code: u8| {
        let error = find(&config).await.err().unwrap();
        assert!(error.to_string().contains(says), "{says} is not in: {error}");
        assert_eq!(error.exit_code(), code, "{error}");
    };
    refused("nothing to finish", 1).await;
    prepare(&config).await.unwrap();
    refused("upgrade it first", 1).await;
    fixture.run("UPDATE walhook.meta SET system_identifier = 1").await;
    fixture.run("UPDATE walhook.lease SET epoch = epoch + 1").await;
    refused("has led since", 3).await;
    fixture.run("DELETE FROM walhook.upgrades").await;
    refused("walhook recover --adopt-cluster", 3).await;
}

#[tokio::test]
async fn finish_records_a_gap_where_the_slots_did_not_come_along() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    let old = "UPDATE walhook.upgrades SET server_version = 140018";
    for dropped in ["none", "walhook"] {
        prepare(&config).await.unwrap();
        fixture.run(old).await;
        upgraded(&fixture).await;
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                    WHERE slot_name = ";
        fixture.run(&format!("{drop} '{dropped}'")).await;
        let (sessions, plan) = find(&config).await.map_err(|e: Failure| e.to_string()).unwrap();
        assert!(matches!(plan, Plan::Gap { .. }), "{plan:?}");
        let done = finish(&config, sessions, plan, WAIT, &mut |_| {}).await.unwrap();
        let gap = done.gap.unwrap();
        assert!(gap.replay.is_none() && gap.no_replay.unwrap().contains("earlier cluster"));
        assert_eq!(state(&config).await.frontier().await.unwrap().to_string(), done.from);
        setup::quietly(&config).await.unwrap();
    }
}
