//! From a commit to its arrival at a steady rate, against the least that any program could do: a process
//! that reads the replication stream and posts each row as it comes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;
use tokio::time::sleep;
use walhook_core::endpoint::Secret;
use walhook_core::lsn::Lsn;
use walhook_decode::pgoutput::{Datum, Message, Tuple, decode};
use walhook_loadtest::books::Books;
use walhook_loadtest::sample::Spread as Latencies;
use walhook_loadtest::traffic;
use walhook_loadtest::world::{Layout, World};
use walhook_postgres::feedback::StatusUpdate;
use walhook_postgres::wire::{self, Frame};
use walhook_testkit::change::Change;
use walhook_testkit::oracle::Receipt;

use crate::bare::{Own, client, send};
use crate::sink::{Hook, Sink};
use walhook_loadtest::figure::{Better, Figure};

/// Commits a second, of one row each.
pub(crate) const RATE: f64 = 200.0;

/// Accounts that commit in turn.
pub(crate) const ACCOUNTS: i64 = 20;

/// Not measured: connections are opened.
const WARM_UP: Duration = Duration::from_secs(1);

/// For the last deliveries of a phase.
const PATIENCE: Duration = Duration::from_secs(30);

/// The slot of the bare reader.
pub(crate) const SLOT: &str = "figures";

/// Far above any row of ours.
const MESSAGE_MAX: usize = 1 << 20;

/// A database with its writers, and what arrives.
pub(crate) struct Side {
    pub(crate) world: World,
    pub(crate) books: Books,
    pub(crate) sink: Sink,
}

impl Side {
    pub(crate) async fn start() -> Result<Self> {
        Self::configured(&[]).await
    }

    /// The same; `env` configures walhook.
    pub(crate) async fn configured(env: &[(&str, &str)]) -> Result<Self> {
        let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self::arranged(Layout { env, ..Layout::default() }).await
    }

    /// The same, otherwise arranged.
    pub(crate) async fn arranged(layout: Layout<'_>) -> Result<Self> {
        let books = Books::default();
        let sink = Sink::start(Some(enter(books.clone()))).await?;
        let world = World::arranged(layout).await?;
        for account in 1..=ACCOUNTS {
            world.add_account(account, &format!("{}{account}", sink.url(0))).await?;
        }
        Ok(Self { world, books, sink })
    }

    /// Commits for so long; the latencies, without the warm-up's.
    pub(crate) async fn phase(&self, time: Duration) -> Result<Latencies> {
        let accounts: Vec<i64> = (1..=ACCOUNTS).collect();
        let traffic = traffic::start(&self.world, &self.books, &accounts, RATE).await?;
        sleep(WARM_UP).await;
        let from = self.books.now();
        sleep(time).await;
        let to = self.books.now();
        traffic.stop().await?;
        let all = async || Ok(self.books.delivered() >= self.books.committed());
        self.world.until("all that was committed arrives", PATIENCE, all).await?;
        let latencies = Latencies::of_micros(self.books.latencies(1..=ACCOUNTS, from, to));
        ensure!(latencies.n > 0, "nothing was committed within {time:?}");
        Ok(latencies)
    }
}

fn enter(books: Books) -> Hook {
    Arc::new(move |path, body| {
        let account = path.get(1..).and_then(|account| account.parse().ok());
        // What is no event of ours would be missing, and the phase would say so; other paths are not looked at.
        let (Some(endpoint), Ok(change)) = (account, Change::in_body(body)) else { return };
        let event_id = format!("{change:?}");
        books.received(Receipt {
            endpoint,
            event_id: &event_id,
            change,
            body: &[],
            taken: true,
            replay: false,
        });
    })
}

/// Median and 99th percentile.
pub(crate) async fn measure(time: Duration, pairs: usize) -> Result<Vec<Figure>> {
    let mut p50 = Figure::new("latency", "p50", "ms from commit to arrival, median", Better::Less);
    let mut p99 = Figure::new("latency", "p99", "ms from commit to arrival, p99", Better::Less);
    let mut ours = Side::start().await?;
    let theirs = Side::start().await?;
    ours.world.run().await?;
    let make = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')");
    theirs.world.sql.batch_execute(&make).await?;
    let args = ["pipe", &theirs.world.cluster.url("postgres"), &theirs.sink.url(0)];
    let mut pipe = Own::start(&args.map(str::to_owned), &[])?;
    pipe.said("ready").await?;
    for pair in 0..pairs {
        let (a, b) = if pair % 2 == 0 {
            let a = ours.phase(time).await?;
            (a, theirs.phase(time).await?)
        } else {
            let b = theirs.phase(time).await?;
            (ours.phase(time).await?, b)
        };
        p50.ratio(a.p50, b.p50);
        p99.ratio(a.p99, b.p99);
    }
    ours.world.walhook.stop().await?;
    Ok(vec![p50, p99])
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The database
    database: String,
    /// Where to post; the account follows
    url: String,
}

/// The process that reads and posts, until its standard input ends.
pub(crate) async fn pipe(Args { database, url }: Args) -> Result<()> {
    let client = client()?;
    let replication = wire::connect(&Secret::new(database), "figures").await?;
    let mut stream = replication.start(SLOT, "walhook", Lsn(0), MESSAGE_MAX).await?;
    let mut posts = JoinSet::new();
    let mut end = std::pin::pin!(crate::bare::say("ready"));
    loop {
        let frame = tokio::select! {
            ended = &mut end => return ended,
            Some(posted) = posts.join_next() => {
                posted??;
                continue;
            }
            frame = stream.next() => frame?,
        };
        match frame {
            Frame::XLogData { payload, .. } => {
                let message = decode(stream.protocol(), &payload)?;
                let (event_type, new) = if let Message::Insert { new, .. } = message {
                    ("subscriber.created", new)
                } else if let Message::Update { new, .. } = message {
                    ("subscriber.updated", new)
                } else {
                    continue;
                };
                let [id, account, version] = [0, 1, 4].map(|column| text(&new, column));
                let (id, account, version) = (id?.parse()?, account?.to_owned(), version?.parse()?);
                let (client, url) = (client.clone(), format!("{url}{account}").parse()?);
                posts.spawn(
                    async move { send(&client, url, event_type, &account, id, version).await },
                );
            }
            Frame::Keepalive { wal_end, .. } => {
                let update = StatusUpdate { write: wal_end, flush: wal_end, request_reply: false };
                stream.send_status(update).await?;
            }
            Frame::Oversize { .. } => {}
        }
    }
}

/// A column of the table `subscribers`.
fn text<'a>(tuple: &Tuple<'a>, column: usize) -> Result<&'a str> {
    match tuple.0.get(column) {
        Some(Datum::Text(text)) => Ok(text),
        other => Err(anyhow::anyhow!("column {column} is {other:?}")).context("a subscriber"),
    }
}
