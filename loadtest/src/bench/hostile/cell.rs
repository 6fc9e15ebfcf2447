//! One cell: one adversary in one stage, beside one victim, with a server and a walhook of their own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use walhook_loadtest::books::Books;
use walhook_loadtest::receiver;
use walhook_loadtest::report::mib;
use walhook_loadtest::sample::{Metrics, Resident, Spread, load};
use walhook_loadtest::traffic;
use walhook_loadtest::waits::{self, Means};
use walhook_loadtest::world::{Layout, World};
use walhook_postgres::sql::Connection;
use walhook_testkit::receiver::{Behaviour, Receiver};

use super::Args;
use super::adversaries::{Adversary, EVENTS, Plan, SCHEMA};
use super::servers::Servers;
use super::stages::Stage;

/// The account that must not feel anything.
const VICTIM: i64 = 1;

/// What the victim commits in a second, in one session of the four that [`traffic::start`] has.
const VICTIM_PER_SECOND: f64 = 60.0;

/// The part of the victim's attempts that fail, where deferred rows are to come back.
const VICTIM_FAILS: f64 = 0.1;

/// Not measured: connections are opened, caches filled.
const WARM_UP: Duration = Duration::from_secs(2);

/// For what was committed to be accounted for, twice: with the endpoints well, and with none. What failed waits in
/// memory for its next attempt, and is told nowhere until then.
const SETTLED_WITHIN: Duration = Duration::from_secs(20);

/// Rows of a large transaction, as far as a hundred commits in one come to so many; and how often there is one.
const LARGE: u64 = 20_000;
const LARGE_EVERY: Duration = Duration::from_secs(2);

/// Between two looks at walhook.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What resident memory may take beyond `memory.limit`.
const BEYOND_LIMIT: u64 = 128 << 20;

/// What the victim's p99 may be beyond twice that of the quiet phase.
const BEYOND_TWICE_MS: f64 = 20.0;

/// A latency in short, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Latency {
    n: usize,
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl From<Spread> for Latency {
    fn from(Spread { n, p50, p99, max, .. }: Spread) -> Self {
        Self { n, p50, p99, max }
    }
}

/// What came of one cell.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) stage: String,
    pub(super) adversary: String,
    /// Why it could not be run here, where it could not.
    pub(super) left_out: Option<String>,
    pub(super) quiet_ms: Latency,
    pub(super) hostile_ms: Latency,
    /// What the slowest hundredth of the hostile phase waited for, from the commit on.
    pub(super) slowest_ms: Means,
    /// The most, in bytes.
    pub(super) resident: u64,
    /// The machine's load average before and after.
    load: [f64; 2],
    seconds: f64,
    pub(super) books: Accounts,
    /// The bounds that are passed.
    pub(super) wrong: Vec<String>,
}

/// Where deliveries are.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Accounts {
    committed: u64,
    pub(super) delivered: u64,
    pub(super) deferred: u64,
    pub(super) dead: u64,
    pub(super) dropped: u64,
    pub(super) in_gaps: u64,
}

impl Accounts {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters and gauges are whole and above 0"
    )]
    fn of(metrics: &Metrics, committed: u64) -> Self {
        let count =
            |result| metrics.get(&format!("walhook_deliveries_total{{result=\"{result}\"}}"));
        Self {
            committed,
            delivered: count("delivered") as u64,
            deferred: metrics.get("walhook_deferred") as u64,
            dead: count("dead") as u64,
            dropped: count("dropped") as u64,
            in_gaps: count("gap") as u64,
        }
    }

    pub(super) fn lost(&self) -> u64 {
        let found = self.delivered + self.deferred + self.dead + self.dropped + self.in_gaps;
        self.committed.saturating_sub(found)
    }
}

/// Runs the cell.
pub(super) async fn measure(args: &Args, stage: Stage, adversary: Adversary) -> Result<Report> {
    let (began, load_before) = (Instant::now(), load()?);
    let mut report = Report::of(stage, adversary, load_before);
    let cell = match Cell::start(stage, adversary).await? {
        Ok(cell) => cell,
        Err(why) => {
            report.left_out = Some(why);
            return Ok(report);
        }
    };
    cell.measure(args, &mut report).await?;
    report.load = [load_before, load()?];
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

impl Report {
    fn of(stage: Stage, adversary: Adversary, load: f64) -> Self {
        Self {
            stage: stage.name().to_owned(),
            adversary: adversary.name().to_owned(),
            left_out: None,
            quiet_ms: Latency::default(),
            hostile_ms: Latency::default(),
            slowest_ms: Means::default(),
            resident: 0,
            load: [load; 2],
            seconds: 0.0,
            books: Accounts::default(),
            wrong: Vec::new(),
        }
    }
}

/// What runs for one cell.
struct Cell {
    stage: Stage,
    plan: Plan,
    books: Arc<Books>,
    servers: Servers,
    world: World,
    /// Where the victim's webhooks go.
    _receiver: Receiver,
}

impl Cell {
    /// A server, receivers, and a walhook that leads; or why they cannot be had here.
    async fn start(stage: Stage, adversary: Adversary) -> Result<Result<Self, String>> {
        let books = Arc::new(Books::default());
        let receiver = receiver::start(Arc::clone(&books)).await?;
        if stage == Stage::Refill {
            // The victim's rows are to come back too.
            let failure = StatusCode::INTERNAL_SERVER_ERROR;
            receiver.set_default(Behaviour { failure, ..Behaviour::flaky(VICTIM_FAILS) });
        }
        let servers = Servers::start().await?;
        let by_name = stage == Stage::Names || adversary == Adversary::SilentNames;
        let program = match (by_name, stage) {
            (true, _) => match servers.with_names().await? {
                Ok(program) => Some(program),
                Err(why) => return Ok(Err(why)),
            },
            (false, Stage::Sockets) => Some(servers.with_files(256)?),
            (false, _) => None,
        };
        let plan = adversary.plan(&servers, stage.answers(), by_name);
        let mut world = World::arranged(Layout {
            schema: SCHEMA,
            endpoints: "headers = \"headers\"\nmax_in_flight = \"max_in_flight\"\n\
                        rate_per_second = \"rate_per_second\"",
            events: EVENTS,
            extra: &stage.config(),
            program,
            ..Layout::default()
        })
        .await?;
        let url = receiver::url(&receiver, VICTIM);
        let url = if by_name { url.replace("127.0.0.1", "victim.well.test") } else { url };
        world.sql.execute("INSERT INTO accounts VALUES (1, 'Victim')", &[]).await?;
        let insert = "INSERT INTO webhooks (id, account_id, url) VALUES ('victim', 1, $1)";
        world.sql.execute(insert, &[&url]).await?;
        world.run().await?;
        Ok(Ok(Self { stage, plan, books, servers, world, _receiver: receiver }))
    }

    /// A quiet phase, then a hostile one, then what came of all.
    async fn measure(mut self, args: &Args, report: &mut Report) -> Result<()> {
        let (stop, stopped) = watch::channel(false);
        let mut sessions = JoinSet::new();
        if let Some(sql) = self.stage.churn() {
            let (session, churn) = (self.world.connect().await?, vec![(sql.to_owned(), 0)]);
            sessions.spawn(write(session, churn, LOOK_EVERY, usize::MAX, stopped.clone()));
        }
        let per_second = VICTIM_PER_SECOND * 4.0;
        let traffic = traffic::start(&self.world, &self.books, &[VICTIM], per_second).await?;
        sleep(WARM_UP).await;
        let quiet = self.phase(args.quiet).await;
        let from = self.world.wal_end().await?;
        let plan = std::mem::take(&mut self.plan);
        let mut act = Act { plan, stopped, sessions: &mut sessions };
        act.begin(&self.world, self.stage).await?;
        if self.stage.has_backlog() {
            sleep(args.backlog).await;
            self.bring_back(&from).await?;
        }
        let hostile = self.phase(args.hostile).await;

        stop.send_replace(true);
        let mut committed = 0;
        while let Some(ended) = sessions.join_next().await {
            committed += ended??;
        }
        traffic.stop().await?;
        (report.quiet_ms, report.hostile_ms) = (self.felt(quiet), self.felt(hostile));
        self.account(committed, hostile, report).await
    }

    /// Lets so much time pass; says from when until when it was.
    async fn phase(&self, length: Duration) -> (Duration, Duration) {
        let from = self.books.now();
        sleep(length).await;
        (from, self.books.now())
    }

    /// What the victim felt meanwhile.
    fn felt(&self, (from, to): (Duration, Duration)) -> Latency {
        Latency::from(Spread::of_micros(self.books.latencies(VICTIM..=VICTIM, from, to)))
    }

    /// Lets what was committed from there on come back, where the stage is about that.
    async fn bring_back(&self, from: &str) -> Result<()> {
        if self.stage == Stage::Drain {
            self.servers.calm();
        } else if self.stage == Stage::Replay {
            let to = self.world.wal_end().await?;
            self.world.walhook.beside(&["replay", "start", "--from", from, "--to", &to]).await?;
        }
        Ok(())
    }

    /// Lets all settle, and enters where everything is, what memory it took, and which bounds are passed.
    async fn account(
        mut self,
        committed: u64,
        (from, to): (Duration, Duration),
        report: &mut Report,
    ) -> Result<()> {
        self.servers.calm();
        let victim = || self.books.audit(VICTIM..=VICTIM);
        let all = || victim().sums.committed + committed;
        let mut settled = until_accounted(&self.world, all()).await?;
        if !settled {
            let others = "DELETE FROM webhooks WHERE account_id > 1";
            self.world.sql.batch_execute(others).await?;
            settled = until_accounted(&self.world, all()).await?;
        }
        let has_all = async || Ok(victim().missing() == 0);
        // What is missing is told by the audit.
        let _ = self.world.until("the victim has all it is to have", SETTLED_WITHIN, has_all).await;
        report.books = Accounts::of(&self.world.metrics().await?, all());
        let pid = self.world.walhook.pid().context("walhook has ended")?;
        report.resident = Resident::of(Some(pid))?.peak;
        let audit = victim().ensure(0).err();
        if audit.is_some() || !settled {
            eprintln!("{}", self.world.walhook.log_tail());
        }
        self.world.walhook.stop().await?;
        // Its lines are all stored by then.
        let mut lines = waits::read(&self.world, &self.books, |account| account == VICTIM).await?;
        lines.retain(|line| (from..to).contains(&line.committed));
        report.slowest_ms = Means::of_slowest(lines);
        report.wrong = judge(report, self.stage, settled);
        report.wrong.extend(audit.map(|error| format!("the victim: {error}")));
        Ok(())
    }
}

/// What the adversary does, from when it begins.
struct Act<'a> {
    plan: Plan,
    stopped: watch::Receiver<bool>,
    sessions: &'a mut JoinSet<Result<u64>>,
}

impl Act<'_> {
    async fn begin(&mut self, world: &World, stage: Stage) -> Result<()> {
        let Plan { register, mut events, mut every, most } = std::mem::take(&mut self.plan);
        world.sql.batch_execute(&register).await?;
        if stage == Stage::Reader {
            let each = events.iter().map(|(_, deliveries)| *deliveries).max().unwrap_or(1);
            let together = usize::try_from(LARGE / each.max(1))?.clamp(1, 100);
            let (sql, deliveries): (Vec<_>, Vec<_>) =
                events.iter().cycle().take(together).cloned().unzip();
            events = vec![(sql.join(";"), deliveries.iter().sum())];
            every = LARGE_EVERY;
        }
        let session = world.connect().await?;
        self.sessions.spawn(write(session, events, every, most, self.stopped.clone()));
        Ok(())
    }
}

/// Commits in turn, until it is told to stop or has `most`. Returns how many deliveries that makes.
async fn write(
    connection: Connection,
    events: Vec<(String, u64)>,
    every: Duration,
    most: usize,
    mut stop: watch::Receiver<bool>,
) -> Result<u64> {
    let mut committed = 0;
    let mut due = Instant::now();
    for (sql, deliveries) in events.iter().cycle().take(most) {
        connection
            .batch_execute(sql)
            .await
            .with_context(|| sql.chars().take(200).collect::<String>())?;
        committed += deliveries;
        due += every;
        tokio::select! {
            biased;
            _ = stop.changed() => break,
            () = sleep_until(due) => {}
        }
    }
    Ok(committed)
}

/// Whether all that was committed has gone somewhere, by then.
async fn until_accounted(world: &World, committed: u64) -> Result<bool> {
    let began = Instant::now();
    while began.elapsed() < SETTLED_WITHIN {
        if Accounts::of(&world.metrics().await?, committed).lost() == 0 {
            return Ok(true);
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(false)
}

fn judge(report: &Report, stage: Stage, settled: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let bound = report.quiet_ms.p99 * 2.0 + BEYOND_TWICE_MS;
    if report.hostile_ms.p99 > bound {
        let (is, was) = (report.hostile_ms.p99, report.quiet_ms.p99);
        wrong.push(format!("the victim's p99 is {is:.1} ms, and {was:.1} ms when it is quiet"));
    }
    let may = stage.memory_limit() + BEYOND_LIMIT;
    if report.resident > may {
        wrong.push(format!("resident memory is {}, and may be {}", mib(report.resident), mib(may)));
    }
    if !settled {
        wrong.push(format!("{} deliveries are nowhere: {:?}", report.books.lost(), report.books));
    }
    wrong
}
