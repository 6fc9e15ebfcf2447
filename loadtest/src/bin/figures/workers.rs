//! What workers add, and what they cost: over a real nats-server, each worker a process, on the same machine as
//! all else.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};
use walhook_loadtest::figure::{Better, Figure};
use walhook_loadtest::workers::Workers;
use walhook_loadtest::world::Layout;

use crate::latency::{ACCOUNTS, Side as Steady};
use crate::sink::Sink;
use crate::throughput::{Case, Side};

/// A backlog that outlasts a run waits in memory, or it would be measured how fast it is deferred.
const PATIENT: &str = "[wal]\nmax_hold = \"1h\"\nmax_retained = \"8GiB\"\n";

/// What `[scheduler]` gives by default to endpoints that answer within a second.
const SLOTS: u32 = 256;

/// How long an endpoint takes where slots are what bounds a rate.
const ANSWERS_AFTER: Duration = Duration::from_millis(200);

/// From when workers serve until they have all that they can carry.
const RAMP: Duration = Duration::from_secs(1);

/// Workers where it does not matter how many there are.
const SOME: usize = 2;

/// Many accounts, so that no endpoint's own limit counts, on many hosts.
fn spread(group: &'static str) -> Case {
    Case { group, accounts: 1_000, hosts: 100, tls: false }
}

/// A leader that sends nothing itself, and its workers.
struct Led {
    side: Side,
    workers: Workers,
}

impl Led {
    /// Neither leader nor worker runs yet.
    async fn start(case: Case, slots: u32) -> Result<Self> {
        let workers = Workers::start(slots).await?;
        let extra = format!("{}{PATIENT}", workers.section());
        let side = Side::start(case, Layout { extra: &extra, ..Layout::default() }).await?;
        Ok(Self { side, workers })
    }

    /// How many deliveries a second so many workers make, for so long.
    #[expect(clippy::cast_precision_loss, reason = "a rate is not exact")]
    async fn rate(&mut self, workers: usize, time: Duration) -> Result<f64> {
        self.workers.grow(workers).await?;
        self.workers.serve(&self.side.world).await?;
        sleep(RAMP).await;
        let (before, began) = (self.side.sink.requests(), Instant::now());
        sleep(time).await;
        let made = self.side.sink.requests() - before;
        Ok(made as f64 / began.elapsed().as_secs_f64())
    }

    async fn stop(&mut self) -> Result<()> {
        self.side.world.walhook.stop().await?;
        self.workers.stop().await
    }
}

/// Deliveries that so many slots make at most in this time.
fn at_most(slots: u32, answers_after: Duration, time: Duration) -> f64 {
    f64::from(slots) * time.as_secs_f64() / answers_after.as_secs_f64()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive number of some hundred thousand"
)]
fn deliveries(number: f64) -> u64 {
    number.ceil() as u64
}

/// The rate of two, four and eight workers, against as many times that of one; and that of one against what its
/// slots make at most.
pub(crate) async fn scale(time: Duration, pairs: usize) -> Result<Vec<Figure>> {
    let (group, what) = ("workers_scale", "deliveries/s");
    let mut one = Figure::new(group, "one", what, Better::More);
    let mut more = [("two", 2_u32), ("four", 4), ("eight", 8)]
        .map(|(key, workers)| (workers, Figure::new(group, key, what, Better::More)));
    let mut led = Led::start(spread(group), SLOTS).await?;
    led.side.sink.delay(ANSWERS_AFTER);
    let time = time / 2;
    for _ in 0..pairs {
        // Enough for all of them, and for the time in which workers start.
        let all = at_most(SLOTS * 15, ANSWERS_AFTER, time + 3 * RAMP);
        led.side.lay_up(deliveries(all)).await?;
        led.side.world.run().await?;
        let alone = led.rate(1, time).await?;
        one.ratio(alone, at_most(SLOTS, ANSWERS_AFTER, Duration::from_secs(1)));
        for (workers, figure) in &mut more {
            let rate = led.rate(usize::try_from(*workers)?, time).await?;
            figure.ratio(rate, f64::from(*workers) * alone);
        }
        led.stop().await?;
    }
    let [(_, two), (_, four), (_, eight)] = more;
    Ok(vec![one, two, four, eight])
}

/// So many workers, with few slots each, that whatever one costs would show.
const WORKERS: u32 = 100;
const EACH: u32 = 8;

/// The rate of a hundred workers of eight slots, against what their slots make at most.
pub(crate) async fn many(time: Duration, pairs: usize) -> Result<Vec<Figure>> {
    let group = "workers_many";
    let mut rate = Figure::new(group, "rate", "deliveries/s", Better::More);
    let answers_after = 2 * ANSWERS_AFTER;
    let mut led = Led::start(spread(group), EACH).await?;
    led.side.sink.delay(answers_after);
    for _ in 0..pairs {
        let slots = WORKERS * EACH;
        led.side.lay_up(deliveries(at_most(slots, answers_after, time + 30 * RAMP))).await?;
        led.side.world.run().await?;
        let made = led.rate(usize::try_from(WORKERS)?, time).await?;
        rate.ratio(made, at_most(slots, answers_after, Duration::from_secs(1)));
        led.stop().await?;
    }
    Ok(vec![rate])
}

/// CPU seconds of the leader's process for a backlog that workers send, against those of one that sends it itself: on
/// connections that stay open, and where each delivery opens TLS.
pub(crate) async fn cpu(all: u64, pairs: usize) -> Result<Vec<Figure>> {
    let (group, what) = ("workers_cpu", "leader's CPU s");
    let mut warm = Figure::new(group, "warm", what, Better::Less);
    let mut cold = Figure::new(group, "cold_tls", what, Better::Less);
    for (figure, tls, deliveries) in [(&mut warm, false, all), (&mut cold, true, all / 4)] {
        let case = Case { group, accounts: 100, hosts: 100, tls };
        let mut workers = Workers::start(SLOTS).await?;
        let extra = workers.section();
        let mut ours = Side::start(case, Layout { extra: &extra, ..Layout::default() }).await?;
        let mut alone = Side::start(case, Layout::default()).await?;
        if tls {
            ours.sink.close();
            alone.sink.close();
        }
        workers.set_environment(ours.sink.environment());
        workers.grow(SOME).await?;
        for pair in 0..pairs {
            let (a, b) = if pair % 2 == 0 {
                let a = ours.run(deliveries).await?;
                (a, alone.run(deliveries).await?)
            } else {
                let b = alone.run(deliveries).await?;
                (ours.run(deliveries).await?, b)
            };
            figure.ratio(a.cpu_s, b.cpu_s);
        }
        workers.stop().await?;
    }
    Ok(vec![warm, cold])
}

/// From commit to arrival at a steady rate, by workers and without.
pub(crate) async fn latency(time: Duration, pairs: usize) -> Result<Vec<Figure>> {
    let group = "workers_latency";
    let mut added = Figure::new(group, "p50", "ms more from commit to arrival", Better::Less);
    let mut p99 = Figure::new(group, "p99", "ms from commit to arrival, p99", Better::Less);
    let mut workers = Workers::start(SLOTS).await?;
    let extra = workers.section();
    let mut ours = Steady::arranged(Layout { extra: &extra, ..Layout::default() }).await?;
    let mut alone = Steady::arranged(Layout::default()).await?;
    workers.grow(SOME).await?;
    ours.world.run().await?;
    workers.serve(&ours.world).await?;
    alone.world.run().await?;
    for pair in 0..pairs {
        let (a, b) = if pair % 2 == 0 {
            let a = ours.phase(time).await?;
            (a, alone.phase(time).await?)
        } else {
            let b = alone.phase(time).await?;
            (ours.phase(time).await?, b)
        };
        added.value(a.p50 - b.p50);
        p99.ratio(a.p99, b.p99);
    }
    ours.world.walhook.stop().await?;
    alone.world.walhook.stop().await?;
    workers.stop().await?;
    Ok(vec![added, p99])
}

/// What a leader asks of PostgreSQL at a steady rate, with a hundred workers and without any.
pub(crate) async fn database(time: Duration, pairs: usize) -> Result<Vec<Figure>> {
    let group = "workers_database";
    let mut sessions = Figure::new(group, "sessions", "sessions", Better::Less);
    let mut transactions =
        Figure::new(group, "transactions", "transactions a second", Better::Less);
    let mut workers = Workers::start(EACH).await?;
    let extra = workers.section();
    let mut ours = Steady::arranged(Layout { extra: &extra, ..Layout::default() }).await?;
    let mut alone = Steady::arranged(Layout::default()).await?;
    workers.grow(usize::try_from(WORKERS)?).await?;
    ours.world.run().await?;
    workers.serve(&ours.world).await?;
    alone.world.run().await?;
    for _ in 0..pairs {
        let [a, b] = [asks(&ours, time).await?, asks(&alone, time).await?];
        sessions.ratio(a.sessions, b.sessions);
        transactions.ratio(a.transactions, b.transactions);
    }
    ours.world.walhook.stop().await?;
    alone.world.walhook.stop().await?;
    workers.stop().await?;
    Ok(vec![sessions, transactions])
}

/// What a leader asks of PostgreSQL.
struct Asks {
    sessions: f64,
    /// A second.
    transactions: f64,
}

/// Of the server's transactions those that are not the writers'.
#[expect(clippy::cast_precision_loss, reason = "some thousands")]
async fn asks(steady: &Steady, time: Duration) -> Result<Asks> {
    let all = "SELECT sum(xact_commit + xact_rollback)::bigint FROM pg_stat_database";
    let theirs = async || -> Result<f64> {
        Ok(steady.world.number(all).await? as f64 - steady.books.committed() as f64)
    };
    let (before, began) = (theirs().await?, Instant::now());
    steady.phase(time).await?;
    let made = theirs().await? - before;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'walhook%'";
    let sessions = steady.world.number(sessions).await? as f64;
    Ok(Asks { sessions, transactions: made / began.elapsed().as_secs_f64() })
}

/// Small accounts at a steady rate, and one that always has more than its endpoints take.
struct BesideWhale {
    steady: Steady,
    whales: Sink,
}

/// The large account, and its endpoints: together they take more than there are slots.
const WHALE: i64 = ACCOUNTS + 1;
const ENDPOINTS: u32 = 16;

impl BesideWhale {
    async fn start(extra: &str) -> Result<Self> {
        let extra = format!("{extra}{PATIENT}");
        let steady = Steady::arranged(Layout { extra: &extra, ..Layout::default() }).await?;
        let whales = Sink::start(None).await?;
        whales.delay(ANSWERS_AFTER);
        let sql = &steady.world.sql;
        sql.execute("INSERT INTO accounts VALUES ($1, 'Large')", &[&WHALE]).await?;
        let insert = "INSERT INTO webhooks (id, account_id, url, event_types, secret)
             SELECT 1000 + n, $1::bigint, $2::text || n, '{subscriber.created}', 'figures'
             FROM generate_series(1, $3::integer) n";
        let (url, endpoints) = (whales.url(1), i32::try_from(ENDPOINTS)?);
        sql.execute(insert, &[&WHALE, &url, &endpoints]).await?;
        Ok(Self { steady, whales })
    }

    /// The 99th percentile of the small accounts' latencies, in ms, while the large one fills all slots.
    async fn phase(&mut self, time: Duration, workers: Option<&Workers>) -> Result<f64> {
        let rows = at_most(SLOTS, ANSWERS_AFTER, time + 10 * RAMP) / f64::from(ENDPOINTS);
        let insert = format!(
            "INSERT INTO subscribers (account_id, email)
             SELECT {WHALE}, 'someone@example.com' FROM generate_series(1, {})",
            deliveries(rows)
        );
        self.steady.world.sql.batch_execute(&insert).await?;
        self.steady.world.run().await?;
        if let Some(workers) = workers {
            workers.serve(&self.steady.world).await?;
        }
        sleep(RAMP).await;
        let before = self.whales.requests();
        let latencies = self.steady.phase(time).await?;
        let log = || self.steady.world.walhook.log_tail();
        let least = at_most(SLOTS, ANSWERS_AFTER, time) / 2.0;
        let taken = self.whales.requests() - before;
        (taken >= deliveries(least)).then_some(()).with_context(|| {
            format!("the large account had {taken} deliveries, and fills no slots:\n{}", log())
        })?;
        self.steady.world.walhook.stop().await?;
        Ok(latencies.p99)
    }
}

/// What small accounts feel of a large one whose requests fill all slots, with workers and without.
pub(crate) async fn whale(time: Duration, pairs: usize) -> Result<Vec<Figure>> {
    let what = "ms from commit to arrival, p99";
    let mut p99 = Figure::new("workers_whale", "p99", what, Better::Less);
    let some = u32::try_from(SOME)?;
    let mut workers = Workers::start(SLOTS / some).await?;
    let mut ours = BesideWhale::start(&workers.section()).await?;
    let mut alone = BesideWhale::start("").await?;
    workers.grow(SOME).await?;
    for pair in 0..pairs {
        let (a, b) = if pair % 2 == 0 {
            let a = ours.phase(time, Some(&workers)).await?;
            (a, alone.phase(time, None).await?)
        } else {
            let b = alone.phase(time, None).await?;
            (ours.phase(time, Some(&workers)).await?, b)
        };
        p99.ratio(a, b);
    }
    workers.stop().await?;
    Ok(vec![p99])
}
