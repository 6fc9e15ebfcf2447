use super::*;
use serde_json::json;

use crate::control::fixture::Fixture;
use crate::control::setup;
use walhook_core::lsn::Lsn;
use walhook_postgres::anchor;
use walhook_postgres::sql::Connection;

/// A database that is set up, with an anchor, and `rounds` updates of one subscriber behind it; returns
/// where each of them begins, and where the last one ends.
async fn history(fixture: &Fixture, config: &Config, rounds: usize) -> (Connection, Vec<Lsn>) {
    setup::quietly(config).await.unwrap();
    let source = fixture.connect().await;
    anchor::create(&source, "walhook").await.unwrap();
    fixture
        .run(
            "INSERT INTO webhooks (account_id, url, event_types, secret)
             VALUES (1, 'http://127.0.0.1:1/', '{a.*}', 's'), (1, 'http://127.0.0.1:1/', '{x}', 's');
             INSERT INTO subscribers (account_id, email) VALUES (1, 'a@example.com')",
        )
        .await;
    let mut positions = vec![];
    for round in 0..rounds {
        positions.push(end_of_wal(fixture).await);
        fixture.run(&format!("UPDATE subscribers SET email = '{round}@example.com'")).await;
        fixture.run("BEGIN; UPDATE subscribers SET email = 'never'; ROLLBACK").await;
    }
    positions.push(end_of_wal(fixture).await);
    (source, positions)
}

async fn end_of_wal(fixture: &Fixture) -> Lsn {
    // `insert`, not `current`: a commit may not be flushed yet.
    fixture.text("SELECT pg_current_wal_insert_lsn()::text").await.parse().unwrap()
}

async fn move_checkpoint(fixture: &Fixture, to: Lsn) {
    fixture.run(&format!("UPDATE walhook.checkpoint SET frontier = '{to}'")).await;
}

#[tokio::test]
async fn dry_run_counts_exactly_the_range_and_leaves_no_slot() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    let (source, at) = history(&fixture, &config, 4).await;
    let count = async |from: Lsn, to: Lsn| {
        let range = ReplayRange { from, to, from_oldest: false, filter: ReplayFilter::default() };
        let counts =
            serde_json::to_value(dry_run::count(&config, &range, 0).await.unwrap()).unwrap();
        assert_eq!(counts["events"], counts["deliveries"], "one endpoint wants them");
        counts["events"].as_u64().unwrap()
    };
    assert_eq!(count(at[0], at[4]).await, 4);
    assert_eq!(count(at[1], at[3]).await, 2);
    assert_eq!(count(at[2], at[2]).await, 0);
    let filter = ReplayFilter { endpoint: Some("2".into()), ..ReplayFilter::default() };
    let range = ReplayRange { from: at[0], to: at[4], from_oldest: false, filter };
    let counts = serde_json::to_value(dry_run::count(&config, &range, 0).await.unwrap()).unwrap();
    assert_eq!((&counts["events"], &counts["deliveries"]), (&json!(4), &json!(0)));

    let temporary = "SELECT count(*)::text FROM pg_replication_slots WHERE temporary";
    let gone = async {
        while fixture.text(temporary).await != "0" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("a temporary slot stayed");
    drop(source);
}

#[tokio::test]
async fn range_outside_of_the_window_is_refused_with_what_is_possible() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    let (source, at) = history(&fixture, &config, 2).await;
    let state = Databases::of(&config).open_state().await.unwrap();
    move_checkpoint(&fixture, at[1]).await;
    let window = Window::read(&config, &state).await.unwrap();
    assert_eq!(window.checkpoint, at[1]);
    let none = ReplayFilter::default;
    let to_end = window.range(&state, Moment::Oldest, None, none()).await.unwrap();
    assert_eq!((to_end.to, window.left_out_bytes(&to_end)), (at[1], window.wal_end.0 - at[1].0));
    assert!(window.wal_end >= at[2], "what follows the checkpoint is left out");
    let before_end = ReplayRange { to: at[0], ..to_end };
    assert_eq!(window.left_out_bytes(&before_end), 0, "it ends where it was asked to");
    let refused = async |from: Moment, to: Option<Moment>| {
        window.range(&state, from, to, none()).await.unwrap_err().to_string()
    };
    let possible = format!("{} to {}", window.oldest, window.checkpoint);
    let (before, behind) = (Lsn(window.oldest.0 - 1), Lsn(at[1].0 + 1));
    assert!(refused(Moment::Position(before), None).await.contains(&possible));
    assert!(
        refused(Moment::Position(at[0]), Some(Moment::Position(behind))).await.contains(&possible)
    );
    assert!(refused(Moment::Time(i64::MAX), None).await.contains("lies in the future"));
    assert!(
        refused(Moment::Time(0), None).await.contains("1970-01-01T00:00:00.000000Z lies before")
    );
    let backwards = refused(Moment::Position(at[1]), Some(Moment::Position(at[0]))).await;
    assert!(backwards.contains("before it begins"), "{backwards}");

    anchor::advance(&source, "walhook", at[1]).await.unwrap();
    let error = dry_run::count(
        &config,
        &ReplayRange { from: at[0], to: at[1], from_oldest: false, filter: none() },
        0,
    )
    .await;
    assert!(error.unwrap_err().to_string().contains("before the replay window"));
    anchor::drop(&source, "walhook").await.unwrap();
    let error = Window::read(&config, &state).await.unwrap_err().to_string();
    assert!(error.contains("walhook_anchor is missing"), "{error}");
}

#[tokio::test]
async fn replay_is_listed_and_cancelled_once() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    let mut state = Databases::of(&config).open_state().await.unwrap();
    let range = ReplayRange {
        from: Lsn(1),
        to: Lsn(9),
        from_oldest: false,
        filter: ReplayFilter::default(),
    };
    let replay = state.create_replay(&range).await.unwrap();
    assert_eq!((replay.position, &replay.range), (Lsn(1), &range));
    assert_eq!(state.next_replay().await.unwrap().as_ref(), Some(&replay));

    // One goes after the other, and whoever waits is told of which.
    let later = state.create_replay(&range).await.unwrap();
    let listed = list(Databases::of(&config), 10).await.unwrap().replays;
    let waits: Vec<_> = listed.iter().map(|replay| (replay.id, replay.waits_for)).collect();
    assert_eq!(waits, [(later.id.0, Some(replay.id.0)), (replay.id.0, None)]);
    let told = std::sync::Mutex::new(Vec::new());
    let mut tell = |progress: Progress<'_>| {
        if let Progress::Note(note) = progress {
            told.lock().unwrap().push(note.to_owned());
        }
    };
    let until_told = wait_for(
        Databases::of(&config),
        later.clone().into(),
        false,
        Duration::from_secs(60),
        &mut tell,
    );
    let is_told = async {
        while told.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        _ = until_told => panic!("nobody carries it out"),
        () = is_told => {}
    }
    assert_eq!(*told.lock().unwrap(), [format!("replay {} (0 %) is before it", replay.id)]);
    cancel(Databases::of(&config), later.id.0).await.unwrap();

    cancel(Databases::of(&config), replay.id.0).await.unwrap();
    assert_eq!(state.next_replay().await.unwrap(), None);
    let listed = state.replays(10).await.unwrap();
    assert_eq!(listed[1].error.as_deref(), Some("cancelled"));
    let error = cancel(Databases::of(&config), replay.id.0).await.unwrap_err().to_string();
    assert!(error.contains("has ended already"), "{error}");
    let error = cancel(Databases::of(&config), 99).await.unwrap_err().to_string();
    assert!(error.contains("there is no replay 99"), "{error}");
}
