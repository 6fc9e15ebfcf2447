//! The program crashes between one step and the next: what is not stored is sent again, what is stored
//! is not, and nothing is stored twice.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use walhook_dispatch::dispatcher::UNPERSISTED_MAX;
use walhook_process::clock::unix_us;
use walhook_process::failpoint::Failpoint;

use crate::kills::{endpoints, until_heard_out};
use crate::support::World;
use crate::support::audit::{Demand, End, Endpoint, audit};
use crate::support::traffic::{self, Traffic};

/// Few attempts soon after one another.
const QUICK: &str = "[delivery]\nretry_base = \"100ms\"\nretry_cap = \"1s\"\n";

/// The pause between two transactions of a writer's session is at most this.
const REST: Duration = Duration::from_millis(40);

/// Requests in flight are at most as many as the slots.
const SLOTS: u64 = 256 + 1_024;

/// What `abort` ends a process with.
const SIGABRT: i32 = 6;

/// Runs it until it crashes at the place.
async fn crash(world: &mut World, at: Failpoint, passage: u32) -> Result<End> {
    let armed = format!("{}:{passage}", at.name());
    let running = world.spawn_with(&[("WALHOOK_FAILPOINT", &armed)])?;
    let (status, log) = running.ended_with_log().await.with_context(|| armed.clone())?;
    ensure!(status.signal() == Some(SIGABRT), "{armed}: {status}\n{log}");
    until_heard_out(world).await?;
    Ok(End { received: world.mock.stats().received, at_unix_us: unix_us() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_between_any_two_steps_of_a_delivery_loses_and_invents_nothing() {
    let mut world = traffic::world(QUICK, &[]).await.unwrap();
    let mut endpoints = endpoints(&world).await.unwrap();
    // Without a secret each of its deliveries is a dead letter at once.
    let insert = "INSERT INTO webhooks (id, account_id, url) VALUES (71, 7, 'http://127.0.0.1:1/')";
    world.sql.batch_execute(insert).await.unwrap();
    endpoints.push(Endpoint { id: 71, account: 7, demand: Demand::Ended, since: 0 });
    let traffic = Traffic::start(&world, 14, REST).await.unwrap();
    let mut lives = Vec::new();
    // Nothing is suspended here: tests/bounds.rs crashes there.
    for at in Failpoint::ALL.into_iter().filter(|at| *at != Failpoint::GapCommitted) {
        for passage in [1, 5] {
            lives.push(crash(&mut world, at, passage).await.unwrap());
        }
    }
    let running = world.run().await.unwrap();
    let oracle = traffic.stop().await;
    world.settled().await.with_context(|| running.log()).unwrap();
    let audit = audit(&world, oracle, &endpoints, &lives).await.unwrap();
    println!("{audit:?}");
    let bound = SLOTS + u64::try_from(UNPERSISTED_MAX).unwrap();
    assert!(audit.repeated.iter().all(|repeated| *repeated <= bound), "{audit:?}");
    assert!(audit.dead > 0 && audit.repeated_within == 0, "{audit:?}");
    assert!(running.terminate().await.unwrap().success());
}

/// Runs it until it crashes right behind the transaction that holds a dead letter, then refuses to
/// store the next one.
#[tokio::test]
async fn case_28_crash_behind_a_dead_letter_leaves_one_and_one_that_cannot_be_stored_is_not_passed()
{
    let mut world = World::new().await.unwrap();
    let insert = "INSERT INTO webhooks (id, account_id, url) VALUES (1, 1, 'http://127.0.0.1:1/')";
    world.sql.batch_execute(insert).await.unwrap();
    world.subscribe(1, 1).await.unwrap();
    crash(&mut world, Failpoint::DeadLetterCommitted, 1).await.unwrap();
    let running = world.run().await.unwrap();
    world.settled().await.unwrap();
    let dead = "SELECT count(*) FROM walhook.dead_letters";
    assert_eq!(world.value(dead).await.unwrap(), "1");
    assert!(running.terminate().await.unwrap().success());

    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
                      AS $$ BEGIN RAISE 'the disk is full' USING ERRCODE = '53100'; END $$;
                  CREATE TRIGGER refuse BEFORE INSERT ON walhook.dead_letters EXECUTE FUNCTION refuse()";
    world.sql.batch_execute(refuse).await.unwrap();
    let running = world.run().await.unwrap();
    world.subscribe(2, 1).await.unwrap();
    let committed = world.value("SELECT pg_current_wal_insert_lsn()").await.unwrap();
    running.until_logged("the disk is full").await.unwrap();
    let passed = format!(
        "SELECT frontier >= '{committed}' OR (SELECT confirmed_flush_lsn FROM pg_replication_slots
                                              WHERE slot_name = 'walhook') >= '{committed}'
         FROM walhook.checkpoint"
    );
    assert_eq!(world.value(&passed).await.unwrap(), "f", "{}", running.log());
    world.sql.batch_execute("DROP TRIGGER refuse ON walhook.dead_letters").await.unwrap();
    world.settled().await.unwrap();
    assert_eq!(world.value(dead).await.unwrap(), "2");
    assert!(running.terminate().await.unwrap().success());
}
