//! One victim account beside each hostile behaviour in turn: rows, receivers, names, messages,
//! descriptors, costly rules, fan-out. What the victim feels of it, what memory it takes, and that nothing
//! is lost.
//!
//! Each behaviour has a server and a walhook of its own. Quiet and hostile phases take turns in one run,
//! and the victim commits throughout. It fails where the victim's p99 is more than twice that of the
//! quiet phases plus 20 ms, where resident memory passes `memory.limit` + 128 MiB, or where a committed
//! delivery is neither delivered nor stands anywhere.
//!
//! ```text
//! make hostile BENCH="--only receivers,fan-out --endpoints 200000 --json hostile.json"
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use walhook_loadtest::books::{Audit, Books};
use walhook_loadtest::receiver;
use walhook_loadtest::report::{mib, table, write_json};
use walhook_loadtest::sample::{Metrics, Resident, Spread};
use walhook_loadtest::traffic;
use walhook_loadtest::world::{Layout, World};
use walhook_postgres::sql::Connection;

use attacks::{Attack, Plan, SCHEMA};
use servers::Servers;

#[path = "hostile/attacks.rs"]
mod attacks;
#[path = "hostile/servers.rs"]
mod servers;

/// The account that must not feel anything.
const VICTIM: i64 = 1;

/// What the victim commits in a second, in one session of the four that [`traffic::start`] has.
const VICTIM_PER_SECOND: f64 = 40.0;

/// Not measured: connections are opened, caches filled.
const WARM_UP: Duration = Duration::from_secs(5);

/// For what was hostile to end, and for what is left of it to be settled.
const PATIENCE: Duration = Duration::from_secs(600);

/// For what was committed to be delivered, deferred or a dead letter: a timeout or two, and the second
/// quick attempt.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// Between two looks at walhook.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What resident memory may take beyond `memory.limit`.
const BEYOND_LIMIT: u64 = 128 << 20;

/// The default of `memory.limit`.
const MEMORY_LIMIT: u64 = 256 << 20;

/// What the victim's p99 may be beyond twice that of the quiet phases.
const BEYOND_TWICE_MS: f64 = 20.0;

#[derive(Debug, clap::Args)]
/// What can be chosen.
pub(crate) struct Args {
    /// These behaviours only, separated by commas
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Endpoints of the account of the fan-out
    #[arg(long, default_value_t = 200_000)]
    endpoints: u64,
    /// One quiet phase
    #[arg(long, default_value = "15s", value_parser = humantime::parse_duration)]
    quiet: Duration,
    /// One hostile phase
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    hostile: Duration,
    /// Phases of each kind
    #[arg(long, default_value_t = 2)]
    rounds: u32,
    /// Where to write all figures
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What came of one behaviour.
#[derive(Debug, Serialize)]
struct Report {
    name: &'static str,
    what: &'static str,
    /// Why it was left out, where it was.
    left_out: Option<String>,
    quiet_ms: Spread,
    hostile_ms: Spread,
    resident_peak: u64,
    victim: Option<Audit>,
    /// Deliveries, the victim's too.
    books: Accounts,
    wrong: Vec<String>,
}

/// Where deliveries are.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Accounts {
    committed: u64,
    delivered: u64,
    deferred: u64,
    dead: u64,
    dropped: u64,
    in_gaps: u64,
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

    fn lost(&self) -> u64 {
        let found = self.delivered + self.deferred + self.dead + self.dropped + self.in_gaps;
        self.committed.saturating_sub(found)
    }
}

/// Measures, prints, judges.
pub(crate) async fn run(args: Args) -> Result<()> {
    let known = Attack::ALL.iter().map(|attack| attack.name()).collect::<Vec<_>>();
    let unknown = args.only.iter().find(|name| !known.contains(&name.as_str()));
    ensure!(unknown.is_none(), "{unknown:?} is none of {}", known.join(", "));
    let mut reports = Vec::new();
    for attack in Attack::ALL {
        if args.only.is_empty() || args.only.iter().any(|name| name == attack.name()) {
            eprintln!("{} …", attack.name());
            let report = measure(&args, attack).await.with_context(|| attack.name())?;
            for wrong in &report.wrong {
                eprintln!("  {wrong}");
            }
            reports.push(report);
        }
    }
    print(&reports);
    write_json(args.json.as_ref(), &reports)?;
    let wrong: usize = reports.iter().map(|report| report.wrong.len()).sum();
    ensure!(wrong == 0, "{wrong} bounds are passed");
    Ok(())
}

impl Report {
    /// Nothing is measured yet.
    fn of(attack: Attack) -> Self {
        Self {
            name: attack.name(),
            what: attack.what(),
            left_out: None,
            quiet_ms: Spread::default(),
            hostile_ms: Spread::default(),
            resident_peak: 0,
            victim: None,
            books: Accounts::default(),
            wrong: Vec::new(),
        }
    }
}

async fn measure(args: &Args, attack: Attack) -> Result<Report> {
    let mut report = Report::of(attack);
    let books = Arc::new(Books::default());
    let receiver = receiver::start(Arc::clone(&books)).await?;
    let servers = Servers::start().await?;
    let plan = match attack.plan(&servers, args.endpoints).await? {
        Ok(plan) => plan,
        Err(why) => {
            report.left_out = Some(why);
            return Ok(report);
        }
    };
    let mut world = World::arranged(Layout {
        schema: SCHEMA,
        endpoints: "headers = \"headers\"\nmax_in_flight = \"max_in_flight\"\n\
                    rate_per_second = \"rate_per_second\"",
        events: attacks::EVENTS,
        program: plan.program.clone(),
        ..Layout::default()
    })
    .await?;
    let url = match plan.victim_host {
        None => receiver::url(&receiver, VICTIM),
        Some(host) => receiver::url(&receiver, VICTIM).replace("127.0.0.1", host),
    };
    world.sql.execute("INSERT INTO accounts VALUES (1, 'Victim')", &[]).await?;
    let insert = "INSERT INTO webhooks (id, account_id, url) VALUES ('victim', 1, $1)";
    world.sql.execute(insert, &[&url]).await?;
    world.sql.batch_execute(&plan.prepare).await?;
    world.run().await?;
    let pid = world.walhook.pid().context("walhook has ended")?;
    let traffic = traffic::start(&world, &books, &[VICTIM], VICTIM_PER_SECOND * 4.0).await?;
    sleep(WARM_UP).await;
    let (mut quiet, mut hostile, mut committed) = (Vec::new(), Vec::new(), 0);
    for _ in 0..if plan.is_once { 1 } else { args.rounds } {
        let began = books.now();
        sleep(args.quiet).await;
        quiet.push((began, books.now()));
        let began = books.now();
        committed += act(args, &plan, &world, committed).await?;
        hostile.push((began, books.now()));
        if !plan.is_once {
            until_accounted(&world, &books, committed).await?;
            withdraw(&world).await?;
        }
    }
    traffic.stop().await?;
    let victim = || books.audit(VICTIM..=VICTIM);
    let all = async || Ok(victim().missing() == 0);
    world.until("the victim has all it is to have", PATIENCE, all).await?;
    let latencies = |phases: Vec<(Duration, Duration)>| {
        let of = |(from, to)| books.latencies(VICTIM..=VICTIM, from, to);
        Spread::of_micros(phases.into_iter().flat_map(of).collect())
    };
    (report.quiet_ms, report.hostile_ms) = (latencies(quiet), latencies(hostile));
    let committed = committed + victim().sums.committed;
    let found = async || Ok(Accounts::of(&world.metrics().await?, committed).lost() == 0);
    let settled = world.until("all is accounted for", SETTLED_WITHIN, found).await;
    let metrics = world.walhook.metrics().await?;
    report.books = Accounts::of(&Metrics::parse(&metrics), committed);
    if settled.is_err() {
        let is_shown = |line: &&str| {
            !line.starts_with('#') && !line.contains("_bucket{") && !line.ends_with(" 0")
        };
        metrics.lines().filter(is_shown).for_each(|line| eprintln!("  {line}"));
        eprintln!("{}", world.walhook.log_tail());
    }
    report.resident_peak = Resident::of(Some(pid))?.peak;
    report.victim = Some(victim());
    world.walhook.stop().await?;
    report.wrong = judge(&report, settled.is_ok());
    Ok(report)
}

/// One hostile phase. Returns how many deliveries it committed.
async fn act(args: &Args, plan: &Plan, world: &World, before: u64) -> Result<u64> {
    world.sql.batch_execute(&plan.register).await?;
    let (stop, stopped) = watch::channel(false);
    let mut sessions = JoinSet::new();
    sessions.spawn(write(world.connect().await?, plan.events.clone(), plan.every, stopped));
    if plan.is_once {
        let wanted = async || {
            let accounts = Accounts::of(&world.metrics().await?, 0);
            Ok(accounts.delivered + accounts.deferred >= before + plan.once_done)
        };
        world.until("the event is with all endpoints", PATIENCE, wanted).await?;
    } else {
        sleep(args.hostile).await;
    }
    stop.send_replace(true);
    let mut committed = 0;
    while let Some(ended) = sessions.join_next().await {
        committed += ended??;
    }
    Ok(committed)
}

/// Commits what is hostile, in turn, until it is told to stop. Returns how many deliveries that makes.
async fn write(
    connection: Connection,
    events: Vec<(String, u64)>,
    every: Option<Duration>,
    mut stop: watch::Receiver<bool>,
) -> Result<u64> {
    let mut committed = 0;
    let mut due = Instant::now();
    for (sql, deliveries) in events.iter().cycle() {
        connection
            .batch_execute(sql)
            .await
            .with_context(|| sql.chars().take(200).collect::<String>())?;
        committed += deliveries;
        let Some(every) = every else { break };
        due += every;
        tokio::select! {
            biased;
            _ = stop.changed() => break,
            () = sleep_until(due) => {}
        }
    }
    Ok(committed)
}

/// Waits, for a minute at most, until all that was hostile has gone somewhere: what is routed after its
/// endpoint was removed would be owed to nobody.
async fn until_accounted(world: &World, books: &Books, committed: u64) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < SETTLED_WITHIN {
        let victims = books.delivered();
        if Accounts::of(&world.metrics().await?, committed + victims).lost() == 0 {
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// The customers remove their endpoints, and what is in flight ends.
async fn withdraw(world: &World) -> Result<()> {
    world.sql.batch_execute("DELETE FROM webhooks WHERE account_id > 1").await?;
    let began = Instant::now();
    while world.walhook.in_flight().await.is_none_or(|n| n > 1) {
        if began.elapsed() > SETTLED_WITHIN {
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    sleep(WARM_UP / 2).await;
    Ok(())
}

fn judge(report: &Report, settled: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let bound = report.quiet_ms.p99 * 2.0 + BEYOND_TWICE_MS;
    if report.hostile_ms.p99 > bound {
        let (is, was) = (report.hostile_ms.p99, report.quiet_ms.p99);
        wrong.push(format!("the victim's p99 is {is:.1} ms, and {was:.1} ms when it is quiet"));
    }
    if report.resident_peak > MEMORY_LIMIT + BEYOND_LIMIT {
        let (is, may) = (mib(report.resident_peak), mib(MEMORY_LIMIT + BEYOND_LIMIT));
        wrong.push(format!("resident memory is {is}, and may be {may}"));
    }
    if !settled {
        wrong.push(format!("{} deliveries are nowhere: {:?}", report.books.lost(), report.books));
    }
    if let Some(Err(error)) = report.victim.map(|audit| audit.ensure(0)) {
        wrong.push(format!("the victim: {error}"));
    }
    wrong
}

fn print(reports: &[Report]) {
    let cells = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    let mut rows = vec![cells(&[
        "Beside it",
        "p50, p99, max without",
        "and with (ms)",
        "memory",
        "delivered, deferred, dead, dropped",
        "lost",
        "holds",
    ])];
    let spread = |s: &Spread| format!("{:.1}, {:.1}, {:.0}", s.p50, s.p99, s.max);
    for report in reports {
        let Accounts { delivered, deferred, dead, dropped, .. } = report.books;
        let holds = match (&report.left_out, report.wrong.is_empty()) {
            (Some(why), _) => format!("left out: {why}"),
            (None, true) => "yes".to_owned(),
            (None, false) => "**no**".to_owned(),
        };
        rows.push(vec![
            report.what.to_owned(),
            spread(&report.quiet_ms),
            spread(&report.hostile_ms),
            mib(report.resident_peak),
            format!("{delivered}, {deferred}, {dead}, {dropped}"),
            report.books.lost().to_string(),
            holds,
        ]);
    }
    table(&rows);
    for wrong in reports.iter().flat_map(|report| report.wrong.iter().map(|w| (report.name, w))) {
        println!("{}: {}", wrong.0, wrong.1);
    }
}
