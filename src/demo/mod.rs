//! The demo: the whole product against a throw-away PostgreSQL, with its own accounting.
//!
//! ```text
//! writers ──SQL──► PostgreSQL ──slot──► walhook run (child) ──HTTP──► receivers
//!    │ acknowledged commits                                  verified ids │
//!    └──────────────────────────────► oracle ◄───────────────────────────┘
//! ```
//!
//! The pipeline is the real command in a process of its own, and is killed with SIGKILL in the
//! middle. The oracle learns nothing from it but which deliveries became dead letters, and that from
//! the state tables. Everything started here ends with the value that owns it: an error, a panic or
//! a second Ctrl-C drops them all.

pub mod configuration;
pub mod keep;
pub mod plan;
pub mod receive;
pub mod receivers;
pub mod schema;
pub mod summary;
pub mod view;
pub mod waits;
pub mod workers;
pub mod writer;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use walhook_testkit::change::Change;
use walhook_testkit::cluster::Cluster;
use walhook_testkit::oracle::{Oracle, Shared, Stored};
use walhook_testkit::pipeline::Pipeline;
use walhook_testkit::program::Program;
use walhook_testkit::stored;
use walhook_testkit::traffic::{Traffic, Writer};

use self::configuration::configuration;
use self::keep::Ended;
use self::plan::Class;
use self::receivers::Receivers;
use self::summary::Summary;
use self::view::{Frame, View, grouped};
use self::waits::WaitSummary;
use self::workers::Workers;
use walhook_core::endpoint::Secret;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};

/// For `walhook run` to stream.
const LEADING_TIMEOUT: Duration = Duration::from_secs(30);

/// When the traffic has ended: without any progress for so long, what is missing is lost.
const DRAIN_STALLED: Duration = Duration::from_secs(20);

/// Between two looks at the state.
const TICK: Duration = Duration::from_millis(500);

/// How long the pipeline stays dead after the SIGKILL.
const DOWN_FOR: Duration = Duration::from_secs(1);

/// SQL connections that change the small accounts.
const SMALL_WRITERS: usize = 5;

/// What the command line asks for.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long the traffic runs.
    pub run_for: Duration,
    /// Decides the writers' choices.
    pub seed: u64,
    /// The whale's events a second, at most.
    pub whale_rate: u32,
    /// Workers that send for the pipeline; with 0 it sends itself.
    pub workers: u32,
    /// Standard output is for the JSON object.
    pub json: bool,
    /// Whether all but the traffic runs on afterwards.
    pub keep: bool,
}

/// Runs the demo. When `stop` is cancelled it ends the traffic early, drains and sums up; dropped,
/// it leaves nothing behind either.
///
/// # Errors
/// When something cannot be started or fails; that deliveries are missing is no error here but
/// [`Summary::fault`].
pub async fn run(options: Options, stop: CancellationToken) -> Result<Ended> {
    let mut view = View::new(options.json);
    let prepared = tokio::select! {
        () = stop.cancelled() => bail!("stopped before the traffic began"),
        prepared = Demo::prepare(&options, &mut view) => prepared?,
    };
    prepared.run(&options, view, stop).await
}

/// Everything that runs. Fields are dropped in this order: the pipeline before the servers.
struct Demo {
    pipeline: Pipeline,
    admin: SocketAddr,
    workers: Option<Workers>,
    receivers: Receivers,
    observer: Connection,
    url: Secret,
    oracle: Shared,
    state: State,
    kills: u32,
    waits: WaitSummary,
    retained: Option<u64>,
    last_dead_letter: i64,
    _cluster: Cluster,
}

/// What the pipeline is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Killed { at: Instant },
    Starting { killed_at: Instant },
    CatchingUp,
    Draining,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Killed { .. } => "killed",
            Self::Starting { .. } => "starting again",
            Self::CatchingUp => "catching up",
            Self::Draining => "draining",
        }
    }
}

impl Demo {
    async fn prepare(options: &Options, view: &mut View) -> Result<Self> {
        let cluster = Cluster::start(&std::env::temp_dir(), &[]).await?;
        view.say(&format!("started a PostgreSQL of our own from {}", cluster.bin().display()))?;
        let url = Secret::new(cluster.url("postgres"));
        let accounts = plan::accounts();
        let endpoints = plan::endpoints(&accounts);
        let oracle = Shared::open(Oracle::new(&plan::owed(&endpoints)));
        let receivers = Receivers::start(&endpoints, oracle.clone()).await?;
        let observer = Connection::open_with_path(&url, "walhook demo", SERVER_SEARCH_PATH).await?;
        let urls: Vec<String> =
            endpoints.iter().map(|e| receivers.url(e)).collect::<Result<_>>()?;
        schema::create(&observer, &accounts, &endpoints, &urls).await?;
        view.say(&format!(
            "created {} accounts with {} endpoints on real sockets: one whale (its endpoint {}),\n\
             and {} small ones, of whose endpoints one {}, of one {}, and one {}",
            accounts.len(),
            endpoints.len(),
            Class::Whale.describe(),
            plan::SMALL_ACCOUNTS,
            Class::Slow.describe(),
            Class::Flaky.describe(),
            Class::Dead.describe()
        ))?;
        let program = std::env::current_exe().context("cannot tell which program this is")?;
        let workers = match options.workers {
            0 => None,
            count => Some(Workers::start(&program, count).await?),
        };
        let section = workers.as_ref().map(Workers::section).unwrap_or_default();
        let mut program =
            Program::new(program, |admin| configuration(url.expose(), admin) + &section)?;
        let admin = program.admin;
        // The demo stops the pipeline itself.
        program.own_group = true;
        program.set_up().await?;
        let mut pipeline = Pipeline::new(program);
        pipeline.start()?;
        let mut demo = Self {
            pipeline,
            admin,
            workers,
            receivers,
            observer,
            url,
            oracle,
            state: State::Running,
            kills: 0,
            waits: WaitSummary::default(),
            retained: None,
            last_dead_letter: 0,
            _cluster: cluster,
        };
        demo.wait_until_leading().await?;
        if let Some(workers) = &demo.workers {
            workers.until_serving(demo.admin).await?;
            view.say(&format!(
                "{} workers serve, over a nats-server of our own: all requests are sent by them",
                options.workers
            ))?;
        }
        let seconds = options.run_for.as_secs_f64();
        view.say(&format!(
            "walhook setup and walhook run are done and up; traffic for {seconds} s"
        ))?;
        Ok(demo)
    }

    async fn run(
        mut self,
        options: &Options,
        mut view: View,
        stop: CancellationToken,
    ) -> Result<Ended> {
        let began = Instant::now();
        self.traffic(options, &mut view, &stop, began).await?;
        let ran = began.elapsed();
        let why = if stop.is_cancelled() { "interrupted" } else { "the traffic has ended" };
        view.say(&format!("{why}; waiting for what is on its way"))?;
        if self.state != State::Running {
            self.wait_until_started().await?;
        }
        self.state = State::Draining;
        self.drain(options, &mut view, began).await?;
        self.count_waits().await;
        self.pipeline.stop().await?;
        let mut did = Vec::new();
        if let Some(workers) = &mut self.workers {
            workers.stop().await?;
            did = workers.summaries();
        }
        self.collect_stored().await?;
        self.retained = self.retained().await?;
        let (kills, retained) = (self.kills, self.retained);
        let ran = ran.as_secs_f64();
        let (mut summary, missing) = self.oracle.with(|oracle, _| {
            let missing: Vec<_> = oracle.missing().take(5).collect();
            (Summary::new(oracle, kills, ran, retained), missing)
        });
        summary.workers = did;
        summary.waits = std::mem::take(&mut self.waits);
        if !missing.is_empty() {
            view.say(&format!("missing, for example: {missing:?}"))?;
        }
        if summary.fault().is_some() {
            view.say(&format!("the pipeline's log ends with:\n{}", self.pipeline.log_tail()))?;
        }
        let kept = if options.keep { Some(self.keep(&mut view).await?) } else { None };
        Ok(Ended { summary, kept })
    }

    async fn traffic(
        &mut self,
        options: &Options,
        view: &mut View,
        stop: &CancellationToken,
        began: Instant,
    ) -> Result<()> {
        let end = began + options.run_for;
        let kill_at = began + options.run_for / 2;
        let mut kill_worker_at = Some(began + options.run_for / 4);
        let mut writers = self.start_writers(options).await?;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep_until(end) => break,
                error = writers.failed() => return Err(error),
                error = self.receivers.failed() => return Err(error),
                status = self.pipeline.exited() => return Err(self.died(status?)),
                _ = tick.tick() => {
                    if self.kills == 0 && Instant::now() >= kill_at {
                        self.kill(view).await?;
                    }
                    if kill_worker_at.take_if(|at| Instant::now() >= *at).is_some() {
                        self.kill_worker(view, began).await?;
                    }
                    self.look(view).await?;
                    view.draw(&self.frame(options, began))?;
                }
            }
        }
        writers.stop().await
    }

    async fn start_writers(&self, options: &Options) -> Result<Traffic> {
        let accounts = plan::accounts();
        let (whales, small): (Vec<_>, Vec<_>) =
            accounts.into_iter().partition(|account| account.class == Class::Whale);
        let mut writers = Traffic::default();
        let ids: Vec<i64> = small.iter().map(|account| account.id).collect();
        let mut seed = options.seed;
        for ids in ids.chunks(ids.len().div_ceil(SMALL_WRITERS)) {
            seed = seed.wrapping_add(1);
            let (writer, ids) = (self.writer().await?, ids.to_vec());
            writers.spawn(|stop| writer::small(writer, ids, seed, stop));
        }
        for whale in whales {
            seed = seed.wrapping_add(1);
            let (burster, flooder) = (self.writer().await?, self.writer().await?);
            let rate = options.whale_rate;
            writers.spawn(|stop| writer::bursts(burster, whale.id, self.oracle.clone(), stop));
            writers.spawn(|stop| {
                writer::flood(flooder, whale.id, rate, self.oracle.clone(), seed, stop)
            });
        }
        Ok(writers)
    }

    async fn writer(&self) -> Result<Writer> {
        Writer::open(self.url.expose(), self.oracle.clone()).await
    }

    /// Takes what the process has counted, which ends now.
    async fn count_waits(&mut self) {
        if let Ok(metrics) = self.pipeline.metrics().await {
            self.waits.add(&metrics);
        }
    }

    /// SIGKILL in the middle of the traffic.
    async fn kill(&mut self, view: &mut View) -> Result<()> {
        let in_flight = self.pipeline.in_flight().await;
        self.count_waits().await;
        self.pipeline.kill().await?;
        self.kills += 1;
        self.state = State::Killed { at: Instant::now() };
        let waiting = self.oracle.with(|oracle, at| {
            oracle.down(at);
            oracle.waiting_in_all()
        });
        let in_flight = in_flight
            .map_or_else(String::new, |n| format!("{} requests in flight and ", grouped(n)));
        view.say(&format!(
            "killed the pipeline (SIGKILL) with {in_flight}{} deliveries waiting",
            grouped(waiting)
        ))
    }

    /// SIGKILL of a worker, where there are some.
    async fn kill_worker(&mut self, view: &mut View, began: Instant) -> Result<()> {
        let Some(workers) = &mut self.workers else { return Ok(()) };
        match workers.kill(began.elapsed()).await? {
            Some(said) => view.say(&said),
            None => Ok(()),
        }
    }

    /// Looks at everything, and starts the pipeline again when it is time.
    async fn look(&mut self, view: &mut View) -> Result<()> {
        match self.state {
            State::Killed { at } if at.elapsed() >= DOWN_FOR => {
                self.pipeline.start()?;
                self.state = State::Starting { killed_at: at };
            }
            State::Starting { killed_at } if self.pipeline.is_leading().await => {
                self.state = State::CatchingUp;
                let down = killed_at.elapsed().as_secs_f64();
                view.say(&format!("started it again; it streams {down:.1} s after the kill"))?;
            }
            State::CatchingUp
                if self.oracle.with(|oracle, _| oracle.waiting(Class::Small.group())) < 10 =>
            {
                self.state = State::Running;
                self.oracle.with(|oracle, at| oracle.recovered(at));
            }
            State::Running
            | State::Killed { .. }
            | State::Starting { .. }
            | State::CatchingUp
            | State::Draining => {}
        }
        if let Some(workers) = &mut self.workers {
            workers.look().await;
        }
        if let Some(example) = self.receivers.take_example() {
            view.say(&format!("\n{example}"))?;
        }
        self.collect_dead_letters(self.last_dead_letter).await?;
        self.retained = self.retained().await?;
        Ok(())
    }

    /// Waits until nothing is waiting but what is deferred for the endpoint that is dead, or nothing
    /// moves any more.
    async fn drain(&mut self, options: &Options, view: &mut View, began: Instant) -> Result<()> {
        let mut last = (u64::MAX, Instant::now());
        loop {
            self.look(view).await?;
            view.draw(&self.frame(options, began))?;
            let waiting = self.oracle.with(|oracle, _| oracle.waiting_in_all());
            if waiting != last.0 {
                last = (waiting, Instant::now());
            }
            let stuck = self.oracle.with(|oracle, _| oracle.waiting(Class::Dead.group()));
            let is_deferred = stuck > 0 && self.deferred_of(Class::Dead).await? >= stuck;
            if waiting == 0 || (waiting == stuck && is_deferred) || last.1.elapsed() > DRAIN_STALLED
            {
                return Ok(());
            }
            tokio::select! {
                status = self.pipeline.exited() => return Err(self.died(status?)),
                () = sleep(TICK) => {}
            }
        }
    }

    async fn wait_until_started(&mut self) -> Result<()> {
        if let State::Killed { .. } = self.state {
            self.pipeline.start()?;
        }
        self.wait_until_leading().await
    }

    async fn wait_until_leading(&mut self) -> Result<()> {
        let deadline = Instant::now() + LEADING_TIMEOUT;
        while !self.pipeline.is_leading().await {
            if Instant::now() > deadline {
                bail!(
                    "walhook run does not stream after {LEADING_TIMEOUT:?}; its log ends with:\n{}",
                    self.pipeline.log_tail()
                );
            }
            tokio::select! {
                status = self.pipeline.exited() => return Err(self.died(status?)),
                () = sleep(Duration::from_millis(50)) => {}
            }
        }
        Ok(())
    }

    fn died(&self, status: std::process::ExitStatus) -> anyhow::Error {
        let log = self.pipeline.log_tail();
        anyhow::anyhow!("walhook run ended by itself with {status}; its log ends with:\n{log}")
    }

    /// Enters the dead letters that were stored after the one with this id.
    async fn collect_dead_letters(&mut self, after: i64) -> Result<()> {
        let sql = "SELECT d.id, d.endpoint, b.event_type, b.row
                   FROM walhook.dead_letters d JOIN walhook.bodies b USING (pipeline, event_id)
                   WHERE d.id > $1 AND d.endpoint <> '' ORDER BY d.id";
        for row in self.observer.query(sql, &[&after]).await? {
            self.last_dead_letter = self.last_dead_letter.max(row.get(0));
            let endpoint: i64 = row.get::<_, &str>(1).parse().context("dead_letters.endpoint")?;
            let change = Change::in_row(row.get(2), row.get(3)).context("bodies.row")?;
            self.oracle.with(|oracle, _| oracle.stored(endpoint, change, Stored::DeadLetter));
        }
        Ok(())
    }

    /// How many deliveries to this class of endpoint are deferred.
    async fn deferred_of(&self, class: Class) -> Result<u64> {
        let sql = "SELECT endpoint, deferred FROM walhook.backlog";
        let endpoints = plan::endpoints(&plan::accounts());
        let mut deferred = 0;
        for row in self.observer.query(sql, &[]).await? {
            let endpoint: i64 = row.get::<_, &str>(0).parse().context("backlog.endpoint")?;
            if endpoints.iter().any(|e| e.id == endpoint && e.class == class) {
                deferred += u64::try_from(row.get::<_, i64>(1)).unwrap_or(0);
            }
        }
        Ok(deferred)
    }

    /// Enters what the tables of state hold, when nothing runs any more that could send it.
    async fn collect_stored(&mut self) -> Result<()> {
        let stored = stored::deliveries(&self.observer).await?;
        // A dead letter whose route was not found has no endpoint.
        for delivery in stored.into_iter().filter(|delivery| !delivery.endpoint.is_empty()) {
            let endpoint: i64 = delivery.endpoint.parse().context("the endpoint's id")?;
            let change = Change::in_row(&delivery.event_type, &delivery.row).context("its row")?;
            self.oracle.with(|oracle, _| oracle.stored(endpoint, change, delivery.table));
        }
        Ok(())
    }

    /// WAL that the slot retains, in bytes.
    async fn retained(&self) -> Result<Option<u64>> {
        let sql = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint
                   FROM pg_replication_slots WHERE slot_name = 'walhook'";
        let row = self.observer.query_opt(sql, &[]).await?;
        Ok(row.and_then(|row| row.get::<_, Option<i64>>(0)).and_then(|n| u64::try_from(n).ok()))
    }

    fn frame(&self, options: &Options, began: Instant) -> Frame {
        let tallies = self.oracle.with(|oracle, _| {
            Class::ALL.map(|class| (class, oracle.tally(class.group()))).to_vec()
        });
        Frame {
            elapsed: began.elapsed(),
            total: (self.state != State::Draining).then_some(options.run_for),
            state: self.state.as_str(),
            retained: self.retained,
            tallies,
        }
    }
}
