//! What was delivered is sent again: ranges of the past, beside the live stream.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use bytes::Bytes;
use walhook_testkit::receiver::Received;

use crate::support::{World, text};

const ENDED: &str = "SELECT count(*) FROM walhook.jobs WHERE finished_at IS NULL";
const TEMPORARY: &str = "SELECT count(*) FROM pg_replication_slots WHERE temporary";

/// A world that has delivered the subscribers 1 to `rows` of account 1 and as many of account 2, each in a
/// transaction of its own, since the returned position.
async fn delivered(rows: i64) -> Result<(World, crate::support::Running, String)> {
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    world.hook(2, 2, "").await?;
    let running = world.run().await?;
    let anchor = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walhook_anchor'";
    world.until(anchor, "1").await?;
    world.settled().await?;
    let from = world.value("SELECT frontier FROM walhook.checkpoint").await?;
    for id in 1..=rows {
        world.subscribe(id, 1).await?;
        world.subscribe(1_000 + id, 2).await?;
    }
    world.delivered(u64::try_from(2 * rows)?).await?;
    world.settled().await?;
    Ok((world, running, from))
}

/// The bodies by id, of the requests that are replays, or of those that are not.
pub(crate) fn by_id(received: &[Received], replay: bool) -> BTreeMap<String, Bytes> {
    let these = received.iter().filter(|request| request.replay == replay);
    these.map(|request| (request.id.clone(), request.body.clone())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_07_same_window_replayed_twice_has_the_ids_and_bodies_of_the_first_time() {
    let (world, running, from) = delivered(20).await.unwrap();
    let dry = world.walhook_json(&["replay", "start", "--from", &from, "--dry-run"]).await.unwrap();
    assert_eq!(dry["deliveries"], 40, "{dry}");
    let first = by_id(&world.mock.received(), false);
    let mut before = world.mock.received().len();
    for _ in 0..2 {
        let replay = world.walhook_json(&["replay", "start", "--from", &from]).await.unwrap();
        assert_eq!((&replay["done"], &replay["failed"]), (&40.into(), &0.into()), "{replay}");
        let again = world.mock.received();
        assert!(again[before..].iter().all(|request| request.replay && request.verified));
        assert_eq!(by_id(&again[before..], true), first);
        before = again.len();
    }
    // By endpoint and type, and in the list.
    let filtered =
        ["replay", "start", "--from", &from, "--endpoint", "2", "--type", "subscriber.*"];
    let replay = world.walhook_json(&filtered).await.unwrap();
    assert_eq!(replay["done"], 20, "{replay}");
    assert!(world.mock.received()[before..].iter().all(|request| request.path == "/2"));
    let listed = world.walhook_json(&["replay", "list"]).await.unwrap();
    assert_eq!(listed["replays"].as_array().map(Vec::len), Some(3), "{listed}");
    world.until(TEMPORARY, "0").await.unwrap();
    assert!(running.terminate().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_29_replay_goes_on_after_a_kill_beside_the_live_stream_and_leaves_no_slot() {
    let (mut world, running, from) = delivered(150).await.unwrap();
    // The replayed requests take long enough to be interrupted.
    world
        .sql
        .batch_execute("UPDATE webhooks SET url = url || '?delay=300ms' WHERE id = 1")
        .await
        .unwrap();
    let asked = ["replay", "start", "--from", &from, "--account", "1", "--wait", "0s", "--json"];
    assert!(world.walhook(&asked).await.unwrap().status.success());
    let before = world.mock.stats().received;
    world
        .mock
        .wait_until("some replayed", crate::support::PATIENCE, |s| s.received >= before + 20)
        .await
        .unwrap();
    running.kill().await.unwrap();
    world.until(TEMPORARY, "0").await.unwrap();
    assert_eq!(world.value(ENDED).await.unwrap(), "1");

    let running = world.run().await.unwrap();
    world.subscribe(5_000, 2).await.unwrap();
    world.delivered(301).await.unwrap();
    world.until(ENDED, "0").await.unwrap();
    let received = world.mock.received();
    let account_1 = |requests: BTreeMap<String, Bytes>| -> BTreeMap<String, Bytes> {
        let ours = requests
            .into_iter()
            .filter(|(_, body)| String::from_utf8_lossy(body).contains(r#""account_id":"1""#));
        ours.collect()
    };
    assert_eq!(account_1(by_id(&received, true)), account_1(by_id(&received, false)));
    assert!(by_id(&received, true).len() == 150, "nothing of account 2");
    world.until(TEMPORARY, "0").await.unwrap();
    assert!(running.terminate().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_sends_each_delivery_once_where_its_session_is_lost() {
    let (world, running, from) = delivered(200).await.unwrap();
    world
        .sql
        .batch_execute("UPDATE webhooks SET url = url || '?delay=300ms' WHERE id = 1")
        .await
        .unwrap();
    let asked = ["replay", "start", "--from", &from, "--account", "1", "--wait", "0s", "--json"];
    let before = world.mock.received().len();
    assert!(world.walhook(&asked).await.unwrap().status.success());
    let sent = before as u64 + 30;
    world
        .mock
        .wait_until("some replayed", crate::support::PATIENCE, |s| s.received >= sent)
        .await
        .unwrap();
    let lose = "SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity
                WHERE application_name = 'walhook replay'";
    assert_eq!(world.value(lose).await.unwrap(), "t");
    world.until(ENDED, "0").await.unwrap();
    let received = world.mock.received();
    assert_eq!(by_id(&received[before..], true).len(), 200);
    assert_eq!(received.len(), before + 200, "some were sent twice");
    let listed = world.walhook_json(&["replay", "list"]).await.unwrap();
    let replay = &listed["replays"][0];
    assert_eq!((&replay["done"], &replay["failed"]), (&200.into(), &0.into()), "{listed}");
    assert!(running.terminate().await.unwrap().success());
}

async fn refused(world: &World, args: &[&str], code: i32, says: &str) -> Result<()> {
    let output = world.walhook(args).await?;
    let said = text(&output.stderr);
    ensure!(output.status.code() == Some(code) && said.contains(says), "{args:?}: {said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_03_checkpoint_is_reset_within_what_is_possible_only() {
    let (mut world, running, from) = delivered(5).await.unwrap();
    let possible = "what can be sent again, which is ";
    refused(&world, &["checkpoint", "reset", "--to", "0/1", "--yes"], 1, possible).await.unwrap();
    refused(
        &world,
        &["checkpoint", "reset", "--to", "FFFF/0", "--yes"],
        1,
        "beyond the end of the WAL",
    )
    .await
    .unwrap();
    let reset = world.walhook_json(&["checkpoint", "reset", "--to", &from, "--yes"]).await.unwrap();
    assert_eq!(reset["done"], 10, "everything since, as a replay: {reset}");
    assert!(running.terminate().await.unwrap().success());

    for id in 100..110 {
        world.subscribe(id, 1).await.unwrap();
    }
    let ahead = world.value("SELECT pg_current_wal_insert_lsn()").await.unwrap();
    world.subscribe(110, 1).await.unwrap();
    let forward = ["checkpoint", "reset", "--to", &ahead];
    refused(&world, &forward, 2, "add --skip").await.unwrap();
    let skipped = world.walhook(&[&forward[..], &["--skip", "--yes"]].concat()).await.unwrap();
    assert!(skipped.status.success(), "{}", text(&skipped.stderr));
    let gap =
        world.value("SELECT count(*) FROM walhook.gaps WHERE closed_at IS NULL").await.unwrap();
    assert_eq!(gap, "1");
    let running = world.run().await.unwrap();
    world.delivered(11).await.unwrap();
    world.settled().await.unwrap();
    let ids: Vec<i64> =
        crate::support::taken(&world.mock.received())["/1"].iter().map(|(_, id)| *id).collect();
    assert_eq!(ids.iter().filter(|id| **id >= 100).collect::<Vec<_>>(), [&110]);
    assert!(running.terminate().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_names_the_account_whose_endpoints_cannot_be_read_and_sends_the_others() {
    let (mut world, running, from) = delivered(3).await.unwrap();
    assert!(running.terminate().await.unwrap().success());
    let refused = "
        CREATE FUNCTION is_readable(bigint) RETURNS boolean STABLE LANGUAGE plpgsql
            AS $$ BEGIN IF $1 = 2 THEN RAISE 'no'; END IF; RETURN true; END $$;
        CREATE VIEW hooks AS SELECT * FROM webhooks WHERE public.is_readable(account_id)";
    world.sql.batch_execute(refused).await.unwrap();
    let view = "\"public.hooks\"\nwatch = [\"public.webhooks\"]";
    world.reconfigure("\"public.webhooks\"", view).unwrap();
    let running = world.run().await.unwrap();
    let replay = world.walhook_json(&["replay", "start", "--from", &from]).await.unwrap();
    let error = replay["error"].as_str().unwrap_or_default();
    assert!(error.contains("3 of account 2 ("), "{replay}");
    assert_eq!(replay["done"], 3, "{replay}");
    assert!(running.terminate().await.unwrap().success());
}

/// Where nothing listens.
const NOWHERE: &str = "UPDATE webhooks SET url = 'http://127.0.0.1:1/' WHERE id = 2";

/// Item 12: whatever the endpoint, a replay is read to its end, and says what waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_to_a_stopped_endpoint_waits_under_its_id_and_is_delivered_when_that_is_well() {
    let (world, running, from) = delivered(15).await.unwrap();
    let paused = world.walhook(&["endpoints", "pause", "2"]).await.unwrap();
    assert!(paused.status.success(), "{}", text(&paused.stderr));
    let first = world.walhook_json(&["replay", "start", "--from", &from]).await.unwrap();
    assert_eq!((&first["delivered"], &first["waiting"]), (&15.into(), &15.into()), "{first}");
    assert_eq!((&first["dead"], &first["finished"]), (&0.into(), &true.into()), "{first}");
    let id = first["id"].to_string();
    let listed = world.walhook_json(&["deferred", "list", "--replay", &id]).await.unwrap();
    assert_eq!(listed["deferred"].as_array().map(Vec::len), Some(15), "{listed}");
    // The next one is not held up by it.
    let second =
        world.walhook(&["replay", "start", "--from", &from, "--endpoint", "1"]).await.unwrap();
    assert!(second.status.success(), "{}", text(&second.stderr));
    assert!(text(&second.stdout).contains("delivered 15, waiting 0, dead 0"));
    // A wait for all of it ends when its time is over, and the replay goes on.
    let asked = ["replay", "start", "--from", &from, "--endpoint", "2", "--wait", "12s"];
    let third = world.walhook(&asked).await.unwrap();
    assert_eq!(third.status.code(), Some(1));
    let said = text(&third.stdout) + &text(&third.stderr);
    assert!(said.contains("waiting 15") && said.contains("deferred list --replay"), "{said}");
    assert!(said.contains("15 deliveries of replay"), "{said}");

    // Without a pause, but with nobody who listens: the breaker opens in the midst of it.
    world.sql.batch_execute(NOWHERE).await.unwrap();
    world.settled().await.unwrap();
    let resumed = world.walhook(&["endpoints", "resume", "2"]).await.unwrap();
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    let fourth = world.walhook(&["replay", "start", "--from", &from]).await.unwrap();
    assert!(fourth.status.success(), "{}", text(&fourth.stderr));
    assert!(text(&fourth.stdout).contains("delivered 15, waiting 15, dead 0"));
    let waiting = "SELECT count(*) FROM walhook.deliveries_pending WHERE replay_id > 0";
    assert_eq!(world.value(waiting).await.unwrap(), "45");

    // A cancelled one takes along what waits of it; the others are delivered, and counted so.
    let cancelled = world.walhook(&["replay", "cancel", &id]).await.unwrap();
    assert!(cancelled.status.success(), "{}", text(&cancelled.stderr));
    world.until(waiting, "30").await.unwrap();
    let well =
        format!("UPDATE webhooks SET url = 'http://{}/2' WHERE id = 2", world.mock.address());
    world.sql.batch_execute(&well).await.unwrap();
    let hurried = ["deferred", "retry", "--all", "--wait", "0s"];
    assert!(world.walhook(&hurried).await.unwrap().status.success());
    world.until(waiting, "0").await.unwrap();
    let listed = world.walhook_json(&["replay", "list"]).await.unwrap();
    let of = |n: usize, what: &str| listed["replays"][n][what].as_i64();
    for (n, delivered, dropped) in [(0, 30, 0), (1, 15, 0), (2, 15, 0), (3, 15, 15)] {
        assert_eq!(of(n, "delivered"), Some(delivered), "{listed}");
        assert_eq!((of(n, "waiting"), of(n, "dropped")), (Some(0), Some(dropped)), "{listed}");
    }
    let again = world.mock.received();
    let again = again.iter().filter(|request| request.replay && request.path == "/2");
    assert!(again.count() >= 30, "what waited came marked as a replay");
    assert!(running.terminate().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_says_what_is_dead_and_waits_for_all_of_it_where_that_is_asked() {
    let (world, running, from) = delivered(6).await.unwrap();
    // Slow enough to be waited for, and one that wants no more.
    let slow = "UPDATE webhooks SET url = url || '?delay=300ms' WHERE id = 1";
    let gone = "UPDATE webhooks SET url = url || '?status=410' WHERE id = 2";
    world.sql.batch_execute(&format!("{slow}; {gone}")).await.unwrap();
    world.settled().await.unwrap();
    let one = ["replay", "start", "--from", "oldest", "--endpoint", "1", "--wait"];
    let waited = world.walhook(&one).await.unwrap();
    let said = text(&waited.stdout) + &text(&waited.stderr);
    assert!(waited.status.success() && said.contains("waiting 0, dead 0"), "{said}");
    let dead = world.walhook(&["replay", "start", "--from", &from]).await.unwrap();
    let said = text(&dead.stdout) + &text(&dead.stderr);
    assert_eq!(dead.status.code(), Some(1), "{said}");
    assert!(said.contains("delivered 6, waiting 0, dead 6"), "{said}");
    assert!(said.contains("dead-letters list --replay"), "{said}");
    let id = world.value("SELECT max(id) FROM walhook.jobs WHERE kind = 'replay'").await.unwrap();
    let letters = world.walhook_json(&["dead-letters", "list", "--replay", &id]).await.unwrap();
    assert_eq!(letters["dead_letters"].as_array().map(Vec::len), Some(6), "{letters}");

    let mistyped = ["replay", "start", "--from", &from, "--type", "subscriber.creatd"];
    refused(&world, &mistyped, 1, "no rule makes an event of type subscriber.creatd")
        .await
        .unwrap();
    let nobody = ["replay", "start", "--from", &from, "--account", "99"];
    refused(&world, &nobody, 1, "has no endpoint of account 99").await.unwrap();
    let unknown = ["replay", "start", "--from", &from, "--endpoint", "99"];
    refused(&world, &unknown, 1, "has no endpoint 99").await.unwrap();
    world.sql.batch_execute("UPDATE webhooks SET enabled = false WHERE id = 1").await.unwrap();
    let off = ["replay", "start", "--from", &from, "--endpoint", "1"];
    refused(&world, &off, 1, "endpoint 1 is switched off").await.unwrap();
    assert!(running.terminate().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_that_waits_goes_on_across_a_kill_with_the_counts_that_it_had() {
    let (mut world, running, from) = delivered(20).await.unwrap();
    world.sql.batch_execute(NOWHERE).await.unwrap();
    world.settled().await.unwrap();
    let first = world.walhook_json(&["replay", "start", "--from", &from]).await.unwrap();
    assert_eq!((&first["delivered"], &first["waiting"]), (&20.into(), &20.into()), "{first}");
    running.kill().await.unwrap();
    let running = world.run().await.unwrap();
    let listed = world.walhook_json(&["replay", "list"]).await.unwrap();
    let replay = &listed["replays"][0];
    assert_eq!((&replay["delivered"], &replay["waiting"]), (&20.into(), &20.into()), "{replay}");
    // Whoever waits for it is told that it goes on.
    let mut waiting =
        world.start(&["replay", "start", "--from", &from, "--endpoint", "2", "--wait"]).unwrap();
    world
        .until("SELECT count(*) FROM walhook.deliveries_pending WHERE replay_id > 0", "40")
        .await
        .unwrap();
    let pid = i32::try_from(waiting.id().unwrap()).unwrap();
    let interrupt = std::process::Command::new("kill").args(["-INT", &pid.to_string()]).status();
    assert!(interrupt.unwrap().success());
    let ended = waiting.wait().await.unwrap();
    assert_eq!(ended.code(), Some(1));
    let cancelled = "SELECT count(*) FROM walhook.jobs WHERE error IS NOT NULL";
    assert_eq!(world.value(cancelled).await.unwrap(), "0", "it goes on");
    assert!(running.terminate().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_discarded_of_a_replay_that_is_read_stays_so_across_a_kill() {
    let (mut world, running, from) = delivered(10).await.unwrap();
    assert!(world.walhook(&["endpoints", "pause", "2"]).await.unwrap().status.success());
    // It is not over before these answer: fewer than it may have in memory.
    let hangs = format!("http://{}/1?delay=60s", world.mock.address());
    let point = |url: &str| format!("UPDATE webhooks SET url = '{url}' WHERE id = 1");
    world.sql.batch_execute(&point(&hangs)).await.unwrap();
    world.settled().await.unwrap();
    let asked = ["replay", "start", "--from", &from, "--wait", "0s"];
    let asked = world.walhook_json(&asked).await.unwrap();
    let id = asked["id"].to_string();
    let pending = "SELECT count(*) FROM walhook.deliveries_pending WHERE endpoint = '2'";
    world.until(pending, "10").await.unwrap();
    let discard = ["deferred", "discard", "--replay", &id, "--account", "2", "--yes"];
    let discarded = world.walhook_json(&discard).await.unwrap();
    assert_eq!(discarded["done"], 10, "{discarded}");
    assert_eq!(world.value(ENDED).await.unwrap(), "1", "it is read to its end too soon");
    running.kill().await.unwrap();
    world.sql.batch_execute(&point(&world.mock.url("/1"))).await.unwrap();

    let running = world.run().await.unwrap();
    world.until(ENDED, "0").await.unwrap();
    assert!(world.walhook(&["endpoints", "resume", "2"]).await.unwrap().status.success());
    world.until("SELECT count(*) FROM walhook.deliveries_pending", "0").await.unwrap();
    let listed = world.walhook_json(&["replay", "list"]).await.unwrap();
    let replay = &listed["replays"][0];
    assert_eq!((&replay["delivered"], &replay["dropped"]), (&10.into(), &10.into()), "{replay}");
    assert_eq!((&replay["waiting"], &replay["dead"]), (&0.into(), &0.into()), "{replay}");
    let received = world.mock.received();
    let again: Vec<&Received> = received.iter().filter(|request| request.replay).collect();
    assert!(again.iter().all(|request| request.path.starts_with("/1")), "{again:?}");
    let kept = "SELECT count(*) FROM walhook.replay_discards";
    assert_eq!(world.value(kept).await.unwrap(), "0");
    assert!(running.terminate().await.unwrap().success());
}
