use super::*;
use crate::control::fixture::Fixture;
use crate::control::setup;

const WAIT: Duration = Duration::from_secs(60);

const BEGINS_AT_SLOT: &str =
    "SELECT (frontier = confirmed_flush_lsn AND halt_reason IS NULL AND halted_at IS NULL
             AND NOT EXISTS (SELECT FROM walhook.settled))::text
     FROM walhook.checkpoint JOIN pg_replication_slots ON slot_name = pipeline";

const GAPS: &str = "SELECT coalesce(string_agg(concat_ws(' ', from_lsn, to_lsn), ', '), 'none')
                    FROM walhook.gaps WHERE pipeline = 'walhook'";

/// What `run` checks before it streams.
async fn halts(config: &Config) -> Option<Halt> {
    let sessions = Sessions::open(config).await.unwrap();
    if let Err(halt) = halt::check_source(&sessions.found, &sessions.stored) {
        return Some(halt);
    }
    let slot = slot::read(&sessions.source, &config.source.slot).await.unwrap();
    let from = sessions.state.frontier().await.unwrap();
    let slot = slot.as_ref().map(Slot::state);
    halt::check_slot(&config.source.slot, slot.as_ref(), from).err()
}

/// Recovers, and returns what it would have shown and what it did.
async fn recovered(config: &Config, adopt: bool) -> Result<(String, RecoveredView), Failure> {
    let mut sessions = Sessions::open(config).await?;
    match find(config, &sessions, adopt).await? {
        Found::Nothing(why) => panic!("nothing to recover: {why:?}"),
        Found::Plan(plan) => {
            let text = plan.to_text(config, &sessions);
            Ok((text, recover(config, &mut sessions, *plan, WAIT, &mut |_| {}).await?))
        }
    }
}

async fn nothing(config: &Config, adopt: bool) -> String {
    let sessions = Sessions::open(config).await.unwrap();
    match find(config, &sessions, adopt).await.unwrap() {
        Found::Nothing(why) => why.detail,
        Found::Plan(plan) => panic!("{plan:?}"),
    }
}

/// A pipeline that has halted, with something settled and a dead letter.
async fn halted(fixture: &Fixture, config: &Config) {
    setup::quietly(config).await.unwrap();
    fixture
        .run(
            "UPDATE walhook.checkpoint SET halt_reason = 'x', halted_at = now();
             INSERT INTO walhook.settled (pipeline, last_commit_lsn, ranges) VALUES ('walhook', '0/1', '');
             INSERT INTO walhook.settled (pipeline, last_commit_lsn, ranges) VALUES ('other', '0/1', '');
             INSERT INTO walhook.dead_letters (pipeline, event_id, endpoint, reason, detail, attempts)
             VALUES ('walhook', 'e', '1', 'exhausted', '', 1)",
        )
        .await;
}

async fn is_well_again(fixture: &Fixture, config: &Config) {
    fixture.run("DELETE FROM walhook.settled WHERE pipeline = 'other'").await;
    assert_eq!(fixture.text(BEGINS_AT_SLOT).await, "true");
    assert_eq!(fixture.text("SELECT count(*)::text FROM walhook.dead_letters").await, "1");
    assert_eq!(fixture.text("SELECT epoch::text FROM walhook.lease").await, "1");
    assert_eq!(halts(config).await, None);
    setup::quietly(config).await.unwrap();
    assert!(nothing(config, false).await.contains("reaches back to the checkpoint"));
}

#[tokio::test]
async fn recover_makes_a_new_slot_where_it_is_gone_and_records_the_gap() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    halted(&fixture, &config).await;
    let from = fixture.text("SELECT frontier::text FROM walhook.checkpoint").await;
    fixture.run("SELECT pg_drop_replication_slot('walhook')").await;
    fixture.run("INSERT INTO subscribers (account_id, email) VALUES (1, 'never sent')").await;
    let halt = halts(&config).await.unwrap();
    assert!(matches!(halt, Halt::SlotMissing { .. }), "{halt}");
    let setup_says = setup::quietly(&config).await.unwrap_err();
    assert_eq!((setup_says.exit_code(), setup_says.to_string()), (3, halt.to_string()));

    let (text, done) = recovered(&config, false).await.unwrap();
    assert!(text.contains(&format!("from the checkpoint {from} to the present")), "{text}");
    assert!(text.contains("creates the slot walhook") && text.contains("dead letters stay"));
    assert_eq!((done.from.as_str(), done.epoch), (from.as_str(), 1));
    assert!(done.bytes.unwrap() > 0);
    let settled = "SELECT string_agg(pipeline, ' ') FROM walhook.settled";
    assert_eq!(fixture.text(settled).await, "other");
    assert_eq!(fixture.text(GAPS).await, format!("{from} {}", done.to));
    let reason = fixture.text("SELECT reason FROM walhook.gaps").await;
    assert_eq!(reason, "replication slot \"walhook\" did not exist any more");
    is_well_again(&fixture, &config).await;
}

#[tokio::test]
async fn recover_replaces_a_lost_slot() {
    let fixture =
        Fixture::start_with(&[("max_slot_wal_keep_size", "1MB"), ("min_wal_size", "32MB")]).await;
    let config = fixture.config("");
    halted(&fixture, &config).await;
    let client = fixture.connect().await;
    for _ in 0..10 {
        client.batch_execute("SELECT pg_logical_emit_message(true, '', 'x')").await.unwrap();
        client.batch_execute("SELECT pg_switch_wal()").await.unwrap();
        client.batch_execute("CHECKPOINT").await.unwrap();
        if slot::read(&client, "walhook").await.unwrap().unwrap().is_lost() {
            break;
        }
    }
    let halt = halts(&config).await.unwrap();
    assert!(matches!(halt, Halt::SlotLost { .. }), "{halt}");
    let setup_says = setup::quietly(&config).await.unwrap_err();
    assert_eq!((setup_says.exit_code(), setup_says.to_string()), (3, halt.to_string()));

    let (text, _) = recovered(&config, false).await.unwrap();
    assert!(text.contains("drops the slot walhook and creates it anew"), "{text}");
    is_well_again(&fixture, &config).await;
}

#[tokio::test]
async fn recover_replaces_a_slot_whose_wal_was_removed_by_hand() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    halted(&fixture, &config).await;
    let client = fixture.connect().await;
    anchor::create(&client, "walhook").await.unwrap();
    let needed =
        "SELECT current_setting('data_directory') || '/pg_wal/' || pg_walfile_name(restart_lsn)
                  FROM pg_replication_slots WHERE slot_name = 'walhook'";
    let needed = fixture.text(needed).await;
    for _ in 0..3 {
        fixture.run("SELECT pg_logical_emit_message(true, '', 'x')").await;
        fixture.run("SELECT pg_switch_wal()").await;
    }
    fixture.run("CHECKPOINT").await;
    assert!(nothing(&config, false).await.contains("reaches back to the checkpoint"));
    std::fs::remove_file(needed).unwrap();

    assert_eq!(halts(&config).await, None, "the slot's row tells nothing of it");
    // The anchor needs the same.
    let (text, view) = recovered(&config, false).await.unwrap();
    assert!(text.contains("drops the slot walhook and creates it anew"), "{text}");
    assert!(view.reason.contains("58P01") && view.gap.is_some(), "{view:?}");
    assert_eq!(halts(&config).await, None);
    assert!(nothing(&config, false).await.contains("reaches back to the checkpoint"));
}

#[tokio::test]
async fn recover_goes_on_where_a_recreated_slot_begins() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    halted(&fixture, &config).await;
    fixture.run("SELECT pg_drop_replication_slot('walhook')").await;
    fixture.run("SELECT pg_create_logical_replication_slot('walhook', 'pgoutput')").await;
    let slot = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots";
    let begins = fixture.text(slot).await;
    let halt = halts(&config).await.unwrap();
    assert!(matches!(halt, Halt::Gap { .. }), "{halt}");
    // Not the kind that was named: the halt says which is.
    let refused = recovered(&config, true).await.unwrap_err();
    assert_eq!((refused.exit_code(), refused.to_string()), (3, halt.to_string()));

    let (text, done) = recovered(&config, false).await.unwrap();
    assert!(text.contains(&format!("to {begins}: {} bytes", done.bytes.unwrap())), "{text}");
    assert!(!text.contains("creates the slot"), "{text}");
    assert_eq!((&done.to, &fixture.text(slot).await), (&begins, &begins));
    is_well_again(&fixture, &config).await;
}

#[tokio::test]
async fn recover_adopts_another_cluster_and_records_both_positions() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    halted(&fixture, &config).await;
    fixture
        .run(
            "UPDATE walhook.meta SET system_identifier = 7, timeline = 3, host = 'old';
             UPDATE walhook.checkpoint SET frontier = 'FF/1'",
        )
        .await;
    fixture.run("SELECT pg_drop_replication_slot('walhook')").await;
    let halt = halts(&config).await.unwrap();
    let refused = recovered(&config, false).await.unwrap_err();
    assert_eq!((refused.exit_code(), refused.to_string()), (3, halt.to_string()));
    assert!(refused.to_string().contains("recover --adopt-cluster"), "{refused}");

    let (text, done) = recovered(&config, true).await.unwrap();
    assert!(text.contains("host old, database app, system identifier 7, timeline 3"), "{text}");
    assert!(text.contains("do not compare") && text.contains("If that is a copy"), "{text}");
    assert_eq!((done.bytes, done.from.as_str()), (None, "FF/1"));
    assert_eq!(fixture.text(GAPS).await, format!("FF/1 {}", done.to));
    is_well_again(&fixture, &config).await;
    assert!(nothing(&config, true).await.contains("this is the database that was set up"));
}

#[tokio::test]
async fn recover_gives_nothing_up_where_only_the_address_changed() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    halted(&fixture, &config).await;
    fixture.run("UPDATE walhook.meta SET host = 'old'").await;
    let gap = "INSERT INTO walhook.gaps (pipeline, from_lsn, to_lsn, reason) VALUES ('walhook', '0/1', '0/2', 'x')";
    fixture.run(gap).await;
    let refused = recovered(&config, false).await.unwrap_err().to_string();
    assert!(refused.contains("it was old; cluster and database are the same"), "{refused}");
    let (text, _) = recovered(&config, true).await.unwrap();
    assert!(text.contains("Only the hosts in source.url differ."), "{text}");
    assert!(text.contains("Nothing is given up"), "{text}");
    assert_eq!(fixture.text(GAPS).await, "0/1 0/2");
    // It can still be sent again.
    assert_eq!(fixture.text("SELECT other_wal::text FROM walhook.gaps").await, "false");
    fixture.run("DELETE FROM walhook.gaps").await;
    assert_eq!(fixture.text("SELECT count(*)::text FROM walhook.settled").await, "2");
    fixture.run("DELETE FROM walhook.settled WHERE pipeline = 'walhook'").await;
    is_well_again(&fixture, &config).await;
}

#[tokio::test]
async fn recover_refuses_without_the_publication_and_changes_nothing() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    halted(&fixture, &config).await;
    fixture.run("DROP PUBLICATION walhook").await;
    fixture.run("SELECT pg_drop_replication_slot('walhook')").await;
    let refused = recovered(&config, false).await.unwrap_err().to_string();
    assert!(refused.contains("walhook setup --print-sql"), "{refused}");
    assert_eq!(fixture.text("SELECT count(*)::text FROM pg_replication_slots").await, "0");
    assert_eq!(fixture.text(GAPS).await, "none");
}

#[tokio::test]
async fn recover_refuses_while_the_slot_is_active_and_names_the_process() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    halted(&fixture, &config).await;
    let reader = fixture.read_slot().await;
    let source = fixture.connect().await;
    let pid = slot::read(&source, "walhook").await.unwrap().unwrap().active_pid.unwrap();
    let refused = recovered(&config, false).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("pid {pid} (postgres, a reader")), "{refused}");
    drop(reader);
}

#[tokio::test]
async fn recover_changes_nothing_when_the_checkpoint_moves_meanwhile() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    halted(&fixture, &config).await;
    fixture.run("SELECT pg_drop_replication_slot('walhook')").await;
    let mut sessions = Sessions::open(&config).await.unwrap();
    let Found::Plan(plan) = find(&config, &sessions, false).await.unwrap() else {
        panic!("nothing to recover")
    };
    fixture.run("UPDATE walhook.checkpoint SET frontier = 'FF/1'").await;
    let error =
        recover(&config, &mut sessions, *plan, WAIT, &mut |_| {}).await.unwrap_err().to_string();
    assert!(error.contains("to FF/1 meanwhile"), "{error}");
    let state = "SELECT concat_ws(' ', epoch, frontier, halt_reason)
                 FROM walhook.checkpoint JOIN walhook.lease USING (pipeline, partition)";
    assert_eq!(fixture.text(state).await, "0 FF/1 x");
    assert_eq!(fixture.text(GAPS).await, "none");
}
