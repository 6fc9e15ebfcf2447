//! What status updates do to the slot and to a shutdown.

use tokio::time::sleep_until;

use super::*;
use crate::feedback::Feedback;
use walhook_process::clock::Clock;
use walhook_testkit::cluster::StopMode;

/// Drives a connection as the module's documentation says, with nothing settled but what `settle`
/// says of each commit, until it ends or `done` is reached.
async fn drive(
    mut stream: Stream,
    feedback: &mut Feedback,
    clock: Clock,
    settle: impl Fn(Lsn) -> bool,
) -> WireError {
    let mut changes = Changes::new(Lsn::ZERO);
    loop {
        while let Some(update) = feedback.poll(clock.now()) {
            if let Err(error) = stream.send_status(update).await {
                return error;
            }
        }
        if feedback.silent(clock.now()) {
            return WireError::Silent;
        }
        let frame = tokio::select! {
            () = sleep_until(clock.instant(feedback.deadline())) => continue,
            frame = stream.next() => frame,
        };
        match frame {
            Err(error) => return error,
            Ok(Frame::Keepalive { wal_end, reply_requested }) => {
                feedback.handle_keepalive(wal_end, reply_requested, clock.now());
            }
            Ok(Frame::XLogData { wal_start, wal_end, payload }) => {
                feedback.handle_received(wal_end, clock.now());
                let steps = changes
                    .handle(wal_start, decode(stream.protocol(), &payload).unwrap())
                    .unwrap();
                if let Some(Step::Commit { end_lsn }) = steps.last()
                    && settle(*end_lsn)
                {
                    feedback.handle_flushed(*end_lsn);
                }
            }
            Ok(Frame::Oversize { bytes, .. }) => panic!("a message of {bytes} bytes"),
        }
    }
}

#[tokio::test]
async fn status_moves_the_slot_to_what_is_flushed_and_not_beyond() {
    let cluster = cluster().await;
    let sql = sql(&cluster).await;
    source(&sql).await;
    let before = flushed_of(&sql, "s").await;
    sql.batch_execute("INSERT INTO t VALUES (1, 'settled')").await.unwrap();
    let between = "SELECT pg_current_wal_insert_lsn()::text";
    let between: Lsn =
        sql.query_one(between, &[]).await.unwrap().get::<_, String>(0).parse().unwrap();
    sql.batch_execute("INSERT INTO t VALUES (2, 'pending')").await.unwrap();

    let clock = Clock::start();
    let mut feedback = Feedback::new(Lsn::ZERO, Lsn::ZERO, Duration::from_secs(60), clock.now());
    let stream = start(&cluster, "s", "p", Lsn::ZERO).await;
    tokio::select! {
        error = drive(stream, &mut feedback, clock, |end_lsn| end_lsn <= between) => panic!("{error:?}"),
        () = async {
            let deadline = Instant::now() + PATIENCE;
            while flushed_of(&sql, "s").await <= before {
                assert!(Instant::now() < deadline, "the slot does not move");
                sleep(Duration::from_millis(5)).await;
            }
        } => {}
    }
    assert!(flushed_of(&sql, "s").await <= between);
    let mut stream = start(&cluster, "s", "p", Lsn::ZERO).await;
    let told = read(&mut stream, &mut Changes::new(Lsn::ZERO), commits(1)).await;
    assert_eq!(texts(&told), ["begin", "relation t(id,v)", "t: insert 2,pending", "commit"]);
}

#[tokio::test]
async fn status_lets_the_server_shut_down_while_everything_is_pending() {
    let mut cluster = cluster().await;
    let sql = sql(&cluster).await;
    source(&sql).await;
    sql.batch_execute("INSERT INTO t VALUES (1, 'pending')").await.unwrap();
    let before = flushed_of(&sql, "s").await;
    let clock = Clock::start();
    let mut feedback = Feedback::new(Lsn::ZERO, before, Duration::from_secs(60), clock.now());
    let stream = start(&cluster, "s", "p", Lsn::ZERO).await;
    let stopping = Instant::now();
    let (error, stopped) = timeout(PATIENCE, async {
        tokio::join!(drive(stream, &mut feedback, clock, |_| false), cluster.stop(StopMode::Fast))
    })
    .await
    .expect("the shutdown waits for us");
    stopped.unwrap();
    // It is told when it asks, and not with the next update that comes unasked, after ten seconds.
    assert!(stopping.elapsed() < Duration::from_secs(8), "{:?}", stopping.elapsed());
    assert!(matches!(error, WireError::Ended), "{error:?}");
    assert_eq!(classify(&error), Class::Shutdown);

    cluster.start_again().await.unwrap();
    let sql = self::sql(&cluster).await;
    assert!(flushed_of(&sql, "s").await <= before, "the slot stays at what is settled");
}

/// Sends a signal to a process that this test's cluster started.
fn signal(name: &str, pid: i32) {
    let sent = std::process::Command::new("kill").args([name, &pid.to_string()]).status().unwrap();
    assert!(sent.success());
}

#[tokio::test]
async fn status_keeps_an_idle_connection_and_notices_a_frozen_server() {
    let cluster = cluster().await;
    let sql = sql(&cluster).await;
    source(&sql).await;
    let url = format!("{}?options=-c%20wal_sender_timeout%3D3s", cluster.url("postgres"));
    let mut replication = connect(&Secret::new(url), "idle").await.unwrap();
    let wal_sender_timeout = replication.wal_sender_timeout().await.unwrap();
    let stream = replication.start("s", "p", Lsn::ZERO, MAX_MESSAGE).await.unwrap();
    let clock = Clock::start();
    let mut feedback = Feedback::new(Lsn::ZERO, Lsn::ZERO, wal_sender_timeout, clock.now());
    let mut driven = Box::pin(drive(stream, &mut feedback, clock, |_| false));
    let early = timeout(wal_sender_timeout * 2, &mut driven).await;
    assert!(early.is_err(), "the idle connection ended: {early:?}");

    let walsender = "SELECT pid FROM pg_stat_replication WHERE application_name = 'idle'";
    let pid = sql.query_one(walsender, &[]).await.unwrap().get(0);
    signal("-STOP", pid);
    let error = timeout(PATIENCE, &mut driven).await;
    signal("-CONT", pid);
    assert!(matches!(error, Ok(WireError::Silent)), "{error:?}");
}
