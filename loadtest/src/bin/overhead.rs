//! What walhook costs beside the requests themselves: its CPU seconds and rate for a backlog of
//! deliveries to one endpoint, against a bare reqwest loop that sends bodies of the same shape with as
//! many requests in flight to the same endpoint.
//!
//! ```text
//! cargo build --release -p walhook -p walhook-loadtest && target/release/overhead --help
//! ```
//!
//! With `--against PROGRAM` it is compared with another build of walhook instead: what a change costs.
//!
//! The two run in turn, so that a machine that others use too slows both: what counts is the ratio of
//! each pair. CPU seconds are those of the process alone (the kernel's work for its sockets included),
//! rates are from its first request to its last. PostgreSQL and the endpoint share the machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use walhook_core::endpoint::Secret;
use walhook_dispatch::lane::DEFAULT_MAX_IN_FLIGHT;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};
use walhook_testkit::cluster::Cluster;
use walhook_testkit::scratch::Scratch;

/// For one run of either side.
const PATIENCE: Duration = Duration::from_secs(600);

/// Linux reports CPU time in hundredths of a second to every program.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU and rate of walhook for a backlog, against a bare loop of requests or another build of walhook
#[derive(Debug, clap::Parser)]
struct Args {
    /// Deliveries of each run
    #[arg(default_value_t = 100_000)]
    deliveries: u64,

    /// Pairs of runs, each side first in turn
    #[arg(default_value_t = 5)]
    pairs: u64,

    /// Accounts with an endpoint each, all on one host
    #[arg(long, default_value_t = 1)]
    accounts: u64,

    /// Another build of walhook to compare with, instead of the bare loop
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,

    /// What the bare loop's own process is called with
    #[arg(long, hide = true, value_name = "URL")]
    bare: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let Some(url) = args.bare.clone() else { return compare(&args).await };
    let loaded = bare(url, args.deliveries).await;
    println!("done");
    // The parent reads our CPU time before it lets us go.
    std::io::stdin().read_line(&mut String::new())?;
    loaded
}

/// What one side took.
#[derive(Debug, Clone, Copy)]
struct Took {
    cpu_s: f64,
    rate: f64,
}

/// What runs on one side of a pair.
enum Side<'a> {
    Walhook(&'a Path),
    Bare,
}

async fn compare(args: &Args) -> Result<()> {
    let world = World::start(args.accounts).await?;
    let this = std::env::current_exe()?.with_file_name("walhook");
    world.walhook(&this, "setup")?.wait_with_output()?;
    let (ours, theirs, name) = match &args.against {
        Some(other) => (Side::Walhook(&this), Side::Walhook(other), "other"),
        None => (Side::Walhook(&this), Side::Bare, "bare"),
    };

    let Args { deliveries, pairs, accounts, .. } = args;
    println!(
        "{deliveries} deliveries, {DEFAULT_MAX_IN_FLIGHT} in flight for each of {accounts} endpoints"
    );
    println!("pair   walhook CPU s  {name:>5} CPU s   ratio   walhook /s  {name:>5} /s   ratio");
    let (mut cpu, mut rate) = (vec![], vec![]);
    for pair in 1..=*pairs {
        // Each side goes first in turn.
        let (ours, theirs) = if pair % 2 == 0 {
            let theirs = world.run(&theirs, *deliveries).await?;
            (world.run(&ours, *deliveries).await?, theirs)
        } else {
            let ours = world.run(&ours, *deliveries).await?;
            (ours, world.run(&theirs, *deliveries).await?)
        };
        cpu.push(ours.cpu_s / theirs.cpu_s);
        rate.push(ours.rate / theirs.rate);
        println!(
            "{pair:4}   {:13.2}  {:11.2}   {:5.2}   {:10.0}  {:8.0}   {:5.2}",
            ours.cpu_s,
            theirs.cpu_s,
            ours.cpu_s / theirs.cpu_s,
            ours.rate,
            theirs.rate,
            ours.rate / theirs.rate
        );
    }
    println!("CPU, walhook / {name}:  {}", spread(&mut cpu));
    println!("rate, walhook / {name}: {}", spread(&mut rate));
    Ok(())
}

/// A database, accounts with an endpoint each, and what answers for all of them.
struct World {
    accounts: u64,
    sql: Connection,
    sink: Sink,
    scratch: Scratch,
    _cluster: Cluster,
}

impl World {
    async fn start(accounts: u64) -> Result<Self> {
        let cluster = Cluster::start(&std::env::temp_dir(), &[]).await?;
        let url = Secret::new(cluster.url("postgres"));
        let sql = Connection::open_with_path(&url, "overhead", SERVER_SEARCH_PATH).await?;
        sql.batch_execute(include_str!("../../../sql/demo.sql")).await?;
        let sink = Sink::start().await?;
        sql.batch_execute(&format!(
            "INSERT INTO accounts SELECT n, 'Account ' || n FROM generate_series(1, {accounts}) n;
             INSERT INTO webhooks (id, account_id, url, event_types, secret)
             SELECT n, n, 'http://{}/', '{{subscriber.created}}', 'overhead'
             FROM generate_series(1, {accounts}) n",
            sink.address
        ))
        .await?;
        let scratch = Scratch::new()?;
        write_config(scratch.path(), &cluster)?;
        Ok(Self { accounts, sql, sink, scratch, _cluster: cluster })
    }

    async fn run(&self, side: &Side<'_>, deliveries: u64) -> Result<Took> {
        match side {
            Side::Walhook(program) => self.run_walhook(program, deliveries).await,
            Side::Bare => run_bare(&self.sink, deliveries).await,
        }
    }

    async fn run_walhook(&self, program: &Path, deliveries: u64) -> Result<Took> {
        let sql = &self.sql;
        // The backlog is there before it starts: what is measured is walhook, not the writer.
        let transactions = deliveries.div_ceil(1_000);
        for _ in 0..transactions {
            sql.batch_execute(&format!(
                "INSERT INTO subscribers (account_id, email)
             SELECT 1 + n % {}, 'someone@example.com' FROM generate_series(1, 1000) n",
                self.accounts
            ))
            .await?;
        }
        let child = Killed(self.walhook(program, "run")?);
        let rate = self.sink.until(transactions * 1_000).await?;
        let cpu_s = cpu_seconds(child.0.id())?;
        // Everything is to be stored before it ends, or the next run would send it again.
        let end: String =
            sql.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
        let passed = "SELECT frontier >= $1::text::pg_lsn FROM walhook.checkpoint";
        while !sql.query_one(passed, &[&end]).await?.get::<_, bool>(0) {
            sql.batch_execute("SELECT pg_logical_emit_message(true, 'overhead', '')").await?;
            sleep(Duration::from_millis(100)).await;
        }
        Ok(Took { cpu_s, rate })
    }

    fn walhook(&self, program: &Path, command: &str) -> Result<Child> {
        let dir = self.scratch.path();
        let log = std::fs::File::create(dir.join(format!("{command}.log")))?;
        let mut walhook = Command::new(program);
        walhook.arg(command).arg("--config").arg(dir.join("overhead.toml"));
        walhook.stdout(Stdio::null()).stderr(log);
        walhook.spawn().with_context(|| format!("cannot run {}; build it first", program.display()))
    }
}

fn spread(ratios: &mut [f64]) -> String {
    ratios.sort_by(f64::total_cmp);
    let at = |n: usize| ratios.get(n).copied().unwrap_or(f64::NAN);
    let last = ratios.len().saturating_sub(1);
    format!("median {:.2}, from {:.2} to {:.2}", at(last / 2), at(0), at(last))
}

async fn run_bare(sink: &Sink, deliveries: u64) -> Result<Took> {
    use std::io::{BufRead, BufReader};
    let mut child = Killed(
        Command::new(std::env::current_exe()?)
            .args([&deliveries.to_string(), "--bare", &format!("http://{}/", sink.address)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let rate = sink.until(deliveries).await?;
    let mut done = String::new();
    BufReader::new(child.0.stdout.take().context("no output")?).read_line(&mut done)?;
    ensure!(done == "done\n", "the bare loop failed");
    Ok(Took { cpu_s: cpu_seconds(child.0.id())?, rate })
}

/// The bare loop: nothing but requests.
async fn bare(url: String, deliveries: u64) -> Result<()> {
    let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?;
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..DEFAULT_MAX_IN_FLIGHT {
        let (client, url, next) = (client.clone(), url.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= deliveries {
                    return anyhow::Ok(());
                }
                let body = format!(
                    "{{\"id\":\"evt_01M85RH0YWZA1NWYMWREKE545X\",\"type\":\"subscriber.created\",\
                     \"operation\":\"insert\",\"timestamp\":\"2026-11-24T03:10:25.756862Z\",\
                     \"account_id\":\"1\",\"data\":{{\"id\":{n},\"version\":{n}}}}}"
                );
                let request = client.post(&url).header("content-type", "application/json");
                request.body(body).send().await?.error_for_status()?.bytes().await?;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// The endpoint: counts and answers.
struct Sink {
    address: SocketAddr,
    count: Arc<AtomicU64>,
    _server: JoinSet<std::io::Result<()>>,
}

impl Sink {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let count = Arc::new(AtomicU64::new(0));
        let router = Router::new().fallback(answer).with_state(Arc::clone(&count));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, count, _server: server })
    }

    /// Waits for so many requests; their rate a second.
    async fn until(&self, requests: u64) -> Result<f64> {
        self.count.store(0, Ordering::Relaxed);
        let waiting = async {
            while self.count.load(Ordering::Relaxed) == 0 {
                sleep(Duration::from_millis(1)).await;
            }
            let began = Instant::now();
            while self.count.load(Ordering::Relaxed) < requests {
                sleep(Duration::from_millis(1)).await;
            }
            began.elapsed()
        };
        let Ok(took) = timeout(PATIENCE, waiting).await else {
            bail!("{} of {requests} came", self.count.load(Ordering::Relaxed));
        };
        #[expect(clippy::cast_precision_loss, reason = "a rate is not exact")]
        Ok(requests as f64 / took.as_secs_f64())
    }
}

async fn answer(State(count): State<Arc<AtomicU64>>, _body: Bytes) -> StatusCode {
    count.fetch_add(1, Ordering::Relaxed);
    StatusCode::OK
}

/// A child that does not outlive us.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write_config(dir: &Path, cluster: &Cluster) -> Result<()> {
    let text = format!(
        "[source]\nurl = \"{}\"\n[endpoints]\ntable = \"public.webhooks\"\n\
         [[events]]\ntype = \"subscriber.created\"\ntable = \"public.subscribers\"\non = [\"insert\"]\n\
         account = \"account_id\"\ncolumns = [\"id\", \"version\"]\n\
         [egress]\nallow = [\"127.0.0.0/8\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n",
        cluster.url("postgres")
    );
    Ok(std::fs::write(dir.join("overhead.toml"), text)?)
}

/// User and system time of a process.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The program's name, in brackets, may hold spaces.
    let (_, fields) = stat.rsplit_once(") ").context("unreadable /proc/pid/stat")?;
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_SECOND)
}
