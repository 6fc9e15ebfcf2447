//! What a backlog of deliveries costs, against the bare loop or another build of walhook; and how long a
//! burst takes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::Instant;
use walhook_loadtest::world::{Layout, World};

use crate::bare;
use crate::sink::{Came, Sink};
use walhook_loadtest::cpu::{cpu_seconds, server_cpu_seconds};
use walhook_loadtest::figure::{Better, Figure};

/// For the checkpoint to pass what was delivered.
const PATIENCE: Duration = Duration::from_secs(300);

/// Rows of one transaction of the backlog.
const TRANSACTION: u64 = 1_000;

/// By how much the bodies of both sides may differ in length.
const BODIES_DIFFER_PERCENT: u64 = 5;

/// Who gets the deliveries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// The figures' group.
    pub(crate) group: &'static str,
    /// Accounts with an endpoint each.
    pub(crate) accounts: u64,
    /// Hosts that these endpoints are spread over.
    pub(crate) hosts: u8,
    pub(crate) tls: bool,
}

/// A database, accounts with an endpoint each, walhook, and what answers.
pub(crate) struct Side {
    case: Case,
    pub(crate) world: World,
    pub(crate) sink: Sink,
}

/// What one run took.
pub(crate) struct Took {
    pub(crate) cpu_s: f64,
    pub(crate) server_cpu_s: f64,
    pub(crate) came: Came,
}

impl Side {
    /// walhook does not run yet. It takes the sink's certificate, whatever `layout` says of its environment.
    pub(crate) async fn start(case: Case, layout: Layout<'_>) -> Result<Self> {
        let sink = if case.tls { Sink::start_tls().await? } else { Sink::start(None).await? };
        let env = sink.environment();
        let world = World::arranged(Layout { env, ..layout }).await?;
        let accounts = case.accounts;
        let urls: Vec<String> = (0..case.hosts).map(|host| sink.url(host)).collect();
        let insert =
            "INSERT INTO accounts SELECT n, 'Account ' || n FROM generate_series(1, $1::bigint) n";
        world.sql.execute(insert, &[&i64::try_from(accounts)?]).await?;
        let insert = "INSERT INTO webhooks (id, account_id, url, event_types, secret)
             SELECT n, n, ($2::text[])[1 + n % cardinality($2)], '{subscriber.created}', 'figures'
             FROM generate_series(1, $1::bigint) n";
        world.sql.execute(insert, &[&i64::try_from(accounts)?, &urls]).await?;
        Ok(Self { case, world, sink })
    }

    /// Commits so many rows, of the accounts in turn.
    pub(crate) async fn lay_up(&self, deliveries: u64) -> Result<()> {
        let mut left = deliveries;
        while left > 0 {
            let rows = left.min(TRANSACTION);
            let sql = format!(
                "INSERT INTO subscribers (account_id, email)
                 SELECT 1 + n % {}, 'someone@example.com' FROM generate_series({left} - {rows} + 1, {left}) n",
                self.case.accounts
            );
            self.world.sql.batch_execute(&sql).await?;
            left -= rows;
        }
        Ok(())
    }

    /// Lays up a backlog, then has it delivered: what is measured is walhook, not the writer.
    pub(crate) async fn run(&mut self, deliveries: u64) -> Result<Took> {
        self.lay_up(deliveries).await?;
        self.sink.reset();
        let data = self.world.cluster.data();
        let server_before = server_cpu_seconds(&data)?;
        self.world.walhook.start()?;
        let pid = self.world.walhook.pid().context("walhook has ended")?;
        let came = self.sink.until(deliveries).await.with_context(|| self.world.walhook.log_tail());
        let (came, cpu_s) = (came?, cpu_seconds(pid)?);
        let server_cpu_s = server_cpu_seconds(&data)? - server_before;
        // Everything is to be stored before it ends, or the next run would send it again.
        self.world.settled(PATIENCE).await?;
        self.world.walhook.stop().await?;
        Ok(Took { cpu_s, server_cpu_s, came })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate is not exact")]
fn per_second(deliveries: u64, came: Came) -> f64 {
    deliveries as f64 / came.took.as_secs_f64()
}

/// CPU, rate and connections of a case.
pub(crate) async fn backlog(
    case: Case,
    deliveries: u64,
    pairs: usize,
    against: Option<&PathBuf>,
) -> Result<Vec<Figure>> {
    let Case { group, hosts, .. } = case;
    let mut cpu = Figure::new(group, "cpu", "CPU s", Better::Less);
    let mut rate = Figure::new(group, "rate", "deliveries/s", Better::More);
    let mut connections =
        Figure::new(group, "connections", "new connections a delivery", Better::Less);
    let mut server = Figure::new(group, "server_cpu", "PostgreSQL's CPU s, beside", Better::Less);
    let mut ours = Side::start(case, Layout::default()).await?;
    let mut theirs = match against {
        Some(program) => {
            let layout = Layout { program: Some(program.clone()), ..Layout::default() };
            Some(Side::start(case, layout).await?)
        }
        None => None,
    };
    for pair in 0..pairs {
        let mut took = [None, None];
        // Each side goes first in turn.
        for second in [pair % 2 == 1, pair % 2 == 0] {
            let done = match (&mut theirs, second) {
                (Some(theirs), true) => theirs.run(deliveries).await?,
                (None, true) => {
                    let (came, cpu_s) = bare::run(&ours.sink, deliveries, hosts).await?;
                    Took { cpu_s, server_cpu_s: 0.0, came }
                }
                (_, false) => ours.run(deliveries).await?,
            };
            let [first, other] = &mut took;
            *(if second { other } else { first }) = Some(done);
        }
        let [Some(ours), Some(theirs)] = took else { continue };
        let differ = ours.came.bytes.abs_diff(theirs.came.bytes) * 100 / theirs.came.bytes.max(1);
        ensure!(differ <= BODIES_DIFFER_PERCENT, "the bodies of both sides differ by {differ} %");
        cpu.ratio(ours.cpu_s, theirs.cpu_s);
        rate.ratio(per_second(deliveries, ours.came), per_second(deliveries, theirs.came));
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        connections.value(ours.came.connections as f64 / deliveries as f64);
        server.value(ours.server_cpu_s);
    }
    Ok(vec![cpu, rate, connections, server])
}

/// One account's burst of one transaction: what of it is deferred, and how long it takes.
pub(crate) async fn burst(deliveries: u64, pairs: usize) -> Result<Vec<Figure>> {
    let group = "burst";
    let mut deferred = Figure::new(group, "deferred", "share of the burst, deferred", Better::Less);
    let mut time = Figure::new(group, "time", "s from COMMIT to the last", Better::Less);
    let case = Case { group, accounts: 1, hosts: 1, tls: false };
    let mut side = Side::start(case, Layout::default()).await?;
    side.world.run().await?;
    for pair in 0..pairs {
        let mut bare = None;
        if pair % 2 == 1 {
            bare = Some(bare::run(&side.sink, deliveries, 1).await?);
        }
        let before = deferred_in_all(&side.world).await?;
        side.sink.reset();
        let sql = &side.world.sql;
        sql.batch_execute(&format!(
            "BEGIN; INSERT INTO subscribers (account_id, email)
             SELECT 1, 'someone@example.com' FROM generate_series(1, {deliveries})"
        ))
        .await?;
        let began = Instant::now();
        sql.batch_execute("COMMIT").await?;
        side.sink.until(deliveries).await.with_context(|| side.world.walhook.log_tail())?;
        let took = began.elapsed();
        side.world.settled(PATIENCE).await?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        deferred.value((deferred_in_all(&side.world).await? - before) / deliveries as f64);
        let (came, _) = match bare {
            Some(bare) => bare,
            None => bare::run(&side.sink, deliveries, 1).await?,
        };
        time.ratio(took.as_secs_f64(), came.took.as_secs_f64());
    }
    side.world.walhook.stop().await?;
    Ok(vec![deferred, time])
}

async fn deferred_in_all(world: &World) -> Result<f64> {
    Ok(world.metrics().await?.sum("walhook_deferred_total"))
}
