//! What a scenario plays on: the server, walhook, receivers, books, and who writes.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use walhook_core::endpoint::Secret;
use walhook_testkit::change::Change;
use walhook_testkit::oracle::{Endpoint, Receipt};
use walhook_testkit::receiver::{Hook, Receiver, Settings};
use walhook_testkit::scratch::Scratch;
use walhook_testkit::traffic::{Traffic, Writer};

use super::Options;
use super::users::Ledger;
use super::watch::Pace;
use crate::books::Books;
use crate::world::{Layout, World};

/// The small accounts: the first are watched, the others make the background.
pub(super) const SMALL: RangeInclusive<i64> = 1..=1_000;

/// Accounts of disturbances begin here; so do their endpoints.
pub(super) const FIRST: i64 = 1_000_001;

/// Sessions that users and background have in turn: one for each of a thousand accounts would be measured too.
const SESSIONS: usize = 12;

/// For anything that is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// What a scenario asks of the configuration.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Needs {
    /// Run behind the demo's schema.
    pub(super) schema: &'static str,
    /// Sections of the configuration.
    pub(super) extra: &'static str,
}

/// See the module's documentation. Ends when it is dropped, walhook first.
#[derive(Debug)]
pub(super) struct Stage {
    /// Sessions for small accounts. They end before the server does.
    pub(super) writers: Vec<Arc<Writer>>,
    /// PostgreSQL and walhook.
    pub(super) world: World,
    /// What small accounts are owed.
    pub(super) small: Arc<Books>,
    /// What accounts of the disturbance are owed; apart, so that a million of their rows keep nobody waiting.
    pub(super) others: Arc<Books>,
    /// Answers at once, for small accounts.
    pub(super) quick: Receiver,
    /// Those of the disturbance.
    pub(super) theirs: Vec<Receiver>,
    /// How fast the disturbance may write.
    pub(super) pace: Arc<Pace>,
    /// walhook's process; 0: it does not run.
    pub(super) pid: Arc<AtomicU32>,
    pub(super) ledger: Arc<Ledger>,
    /// Of the disturbance, where it writes longer than it disturbs.
    pub(super) beside: Option<Traffic>,
    /// Where what of open transactions does not fit into memory goes.
    _spool: Scratch,
}

impl Stage {
    /// Starts the server and the receivers, and adds the small accounts.
    pub(super) async fn open(needs: Needs) -> Result<Self> {
        let spool = Scratch::new()?;
        let env = vec![("WALHOOK_SOURCE__SPOOL".to_owned(), spool.path().display().to_string())];
        let Needs { schema, extra } = needs;
        let world = World::arranged(Layout { schema, extra, env, ..Layout::default() }).await?;
        let (small, others) = (Arc::new(Books::default()), Arc::new(Books::default()));
        let ledger = Arc::new(Ledger::default());
        let told = Arc::clone(&ledger);
        let quick = receiver(&small, move |account, change, at| {
            told.tell(account, change.version, at);
        });
        let mut writers = Vec::new();
        for _ in 0..SESSIONS {
            writers.push(Arc::new(world.writer(&small).await?));
        }
        let stage = Self {
            quick: quick.await?,
            world,
            small,
            others,
            theirs: Vec::new(),
            pace: Arc::default(),
            pid: Arc::default(),
            writers,
            ledger,
            beside: None,
            _spool: spool,
        };
        stage.add(SMALL, &stage.quick).await?;
        Ok(stage)
    }

    /// Adds accounts with one endpoint each, of the same id.
    ///
    /// # Errors
    /// When a statement fails.
    pub(super) async fn add(
        &self,
        accounts: RangeInclusive<i64>,
        receiver: &Receiver,
    ) -> Result<()> {
        let (first, last) = (*accounts.start(), *accounts.end());
        let sql =
            "INSERT INTO accounts SELECT i, 'Account ' || i FROM generate_series($1::bigint, $2) i";
        self.world.sql.execute(sql, &[&first, &last]).await?;
        let sql = "INSERT INTO webhooks (id, account_id, url, event_types, secret)
                   SELECT i, i, $3 || i, '{subscriber.*}', 'load' FROM generate_series($1::bigint, $2) i";
        self.world.sql.execute(sql, &[&first, &last, &receiver.url("/")]).await?;
        Ok(())
    }

    /// Adds one account with so many endpoints, whose ids follow its own.
    ///
    /// # Errors
    /// When a statement fails.
    pub(super) async fn add_fan_out(
        &self,
        account: i64,
        endpoints: i64,
        to: &Receiver,
    ) -> Result<()> {
        self.world
            .sql
            .execute("INSERT INTO accounts VALUES ($1, 'Account ' || $1::bigint)", &[&account])
            .await?;
        let sql = "INSERT INTO webhooks (id, account_id, url, event_types, secret)
                   SELECT $1 + i, $1, $3 || ($1 + i), '{subscriber.*}', 'load'
                   FROM generate_series(1, $2::bigint) i";
        self.world.sql.execute(sql, &[&account, &endpoints, &to.url("/")]).await?;
        self.others.shared().with(|oracle, _| {
            for endpoint in account + 1..=account + endpoints {
                oracle.add_endpoint(Endpoint::new(endpoint, account));
            }
        });
        Ok(())
    }

    /// A receiver more for the disturbance.
    ///
    /// # Errors
    /// When there is no port.
    pub(super) async fn receiver(&self) -> Result<Receiver> {
        receiver(&self.others, |_, _, _| {}).await
    }

    /// Starts walhook, until it leads; how long that took.
    ///
    /// # Errors
    /// When it does not lead.
    pub(super) async fn run(&mut self) -> Result<Duration> {
        let took = self.world.run().await?;
        self.pid.store(self.world.walhook.pid().unwrap_or_default(), Ordering::Relaxed);
        Ok(took)
    }

    /// Stops walhook.
    ///
    /// # Errors
    /// When it does not end well.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.pid.store(0, Ordering::Relaxed);
        self.world.walhook.stop().await
    }

    /// A session that writes for the disturbance.
    ///
    /// # Errors
    /// When the server does not take it.
    pub(super) async fn writer(&self) -> Result<Writer> {
        self.world.writer(&self.others).await
    }

    /// Deliveries of the disturbance that have neither come nor will not.
    #[must_use]
    pub(super) fn waiting(&self) -> u64 {
        self.others.shared().with(|oracle, _| oracle.waiting_in_all())
    }

    /// Waits until all of the disturbance's deliveries have come, at most so long; how long that took, where they
    /// have.
    ///
    /// # Errors
    /// Never for that alone.
    pub(super) async fn drained(&self, within: Duration) -> Result<Option<Duration>> {
        let began = self.others.now();
        while self.waiting() > 0 {
            if self.others.now() - began > within {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Some(self.others.now() - began))
    }

    /// A number of the table at this run's scale, as an end of accounts from [`FIRST`] on.
    pub(super) fn accounts(options: &Options, count: i64) -> RangeInclusive<i64> {
        FIRST..=FIRST + options.scaled(count) - 1
    }

    /// What a query says, for people.
    pub(super) async fn position(&self) -> Result<String> {
        self.world.wal_end().await
    }

    /// A session of the watcher's own.
    pub(super) fn url(&self) -> Secret {
        Secret::new(self.world.cluster.url("postgres"))
    }
}

/// A receiver that enters what it takes, and then says so. An endpoint is its path, `/<id>`.
async fn receiver(
    books: &Arc<Books>,
    then: impl Fn(i64, Change, Duration) + Send + Sync + 'static,
) -> Result<Receiver> {
    let books = Arc::clone(books);
    let enter: Hook = Arc::new(move |request| {
        if request.is_taken() {
            let endpoint = request.path.get(1..).unwrap_or_default();
            let endpoint = endpoint.parse().context("no endpoint's path")?;
            let change = Change::in_body(&request.body)?;
            let at = books.now();
            books.received(Receipt {
                endpoint,
                event_id: &request.id,
                change,
                body: &request.body,
                taken: true,
                replay: request.replay,
            });
            if !request.replay {
                then(endpoint, change, at);
            }
        }
        Ok(())
    });
    let settings =
        Settings { keep: 0, on_request: Some(enter), may_refuse: true, ..Settings::default() };
    Receiver::start(([127, 0, 0, 1], 0).into(), settings).await
}
