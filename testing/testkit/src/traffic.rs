//! The one traffic writer: transactions of subscribers, of which the oracle is told how they ended.
//!
//! It writes the tables of `sql/demo.sql`, or ones with the same columns of `subscribers` and the sequence
//! `change_number`. What is written, and when, is the business of the demo, the load tests and the tests:
//! each spawns sessions of its own in [`Traffic`], which write with [`Writer`].
//!
//! A change is entered when its COMMIT was acknowledged, never before; with the time right before that
//! COMMIT was sent, so that what is measured from there includes it.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures_util::TryStreamExt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use crate::change::{Change, Kind};
use crate::oracle::Shared;
use crate::session::Session;

/// Sessions that write until they are told to stop; they end when this is dropped.
#[derive(Debug)]
pub struct Traffic {
    stop: watch::Sender<bool>,
    sessions: JoinSet<Result<()>>,
}

/// Tells a session of [`Traffic`] when to stop.
#[derive(Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Whether it is time.
    #[must_use]
    pub fn is_told(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for so long, or until it is told to stop; whether it was.
    pub async fn within(&mut self, time: Duration) -> bool {
        // Where nobody is left who could tell, it is told.
        tokio::time::timeout(time, self.0.wait_for(|stop| *stop)).await.is_ok()
    }
}

impl Default for Traffic {
    fn default() -> Self {
        Self { stop: watch::Sender::new(false), sessions: JoinSet::new() }
    }
}

impl Traffic {
    /// Begins to write in one session more.
    pub fn spawn<W, F>(&mut self, session: W)
    where
        W: FnOnce(Stop) -> F,
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.sessions.spawn(session(Stop(self.stop.subscribe())));
    }

    /// Says when a session has ended, which none does before it is told to but by an error. Cancel-safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.sessions.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => error.into(),
            Some(Ok(Ok(()))) => anyhow!("a writer ended before its time"),
            None => std::future::pending().await,
        }
    }

    /// Tells all to stop, and waits for their last transactions.
    ///
    /// # Errors
    /// When a session failed.
    pub async fn stop(mut self) -> Result<()> {
        self.stop.send_replace(true);
        while let Some(ended) = self.sessions.join_next().await {
            ended??;
        }
        Ok(())
    }
}

/// One session that writes.
pub struct Writer {
    session: Session,
    statements: Statements,
    oracle: Shared,
}

/// Prepared once, for what is measured is not their preparation.
struct Statements {
    insert: Statement,
    insert_each: Statement,
    update: Statement,
    delete: Statement,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("session", &self.session).finish_non_exhaustive()
    }
}

impl Writer {
    /// Connects.
    ///
    /// # Errors
    /// When the server does not take it.
    pub async fn open(url: &str, oracle: Shared) -> Result<Self> {
        let session = Session::open(url).await?;
        let statements = Statements {
            insert: session.prepare(INSERT).await?,
            insert_each: session.prepare(INSERT_EACH).await?,
            update: session.prepare(UPDATE).await?,
            delete: session.prepare(DELETE).await?,
        };
        Ok(Self { session, statements, oracle })
    }

    /// The ids of an account's subscribers, in order.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn rows_of(&self, account: i64) -> Result<Vec<i64>> {
        let sql = "SELECT id FROM subscribers WHERE account_id = $1 ORDER BY id";
        Ok(self.session.query(sql, &[&account]).await?.iter().map(|row| row.get(0)).collect())
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// When the session is lost.
    pub async fn begin(&mut self) -> Result<Transaction<'_>> {
        self.session.batch_execute("BEGIN").await?;
        Ok(Transaction { writer: self, changes: Vec::new(), savepoints: 0 })
    }

    /// Inserts rows in a transaction of one statement; their ids.
    ///
    /// # Errors
    /// When it fails. Whether it was committed is not known then.
    pub async fn insert(&self, account: i64, rows: i64, email: &str) -> Result<Vec<i64>> {
        let at = self.oracle.now();
        let made = self.insert_rows(account, rows, email).await?;
        self.enter(&made, at).await;
        Ok(made.iter().map(|(_, change)| change.id).collect())
    }

    /// Inserts a row of an account, or updates that one, in a transaction of one statement; the change.
    ///
    /// # Errors
    /// As [`Writer::insert`], and when there is no such row.
    pub async fn change(&self, account: i64, row: Option<i64>, email: &str) -> Result<Change> {
        let at = self.oracle.now();
        let made = match row {
            Some(id) => self.update_rows(&[id]).await?,
            None => self.insert_rows(account, 1, email).await?,
        };
        self.enter(&made, at).await;
        made.first().map(|(_, change)| *change).context("there is no such row")
    }

    /// Inserts a row for each of these accounts in a transaction of one statement.
    ///
    /// # Errors
    /// As [`Writer::insert`].
    pub async fn insert_each(&self, accounts: &[i64], email: &str) -> Result<()> {
        let at = self.oracle.now();
        let params: [&(dyn ToSql + Sync); 2] = [&accounts, &email];
        let made = self.changed(Kind::Created, &self.statements.insert_each, &params).await?;
        self.enter(&made, at).await;
        Ok(())
    }

    /// Updates rows in a transaction of one statement.
    ///
    /// # Errors
    /// As [`Writer::insert`].
    pub async fn update(&self, ids: &[i64]) -> Result<()> {
        let at = self.oracle.now();
        let made = self.update_rows(ids).await?;
        self.enter(&made, at).await;
        Ok(())
    }

    async fn insert_rows(&self, account: i64, rows: i64, email: &str) -> Result<Vec<Made>> {
        let params: [&(dyn ToSql + Sync); 3] = [&account, &email, &rows];
        self.changed(Kind::Created, &self.statements.insert, &params).await
    }

    async fn update_rows(&self, ids: &[i64]) -> Result<Vec<Made>> {
        self.changed(Kind::Updated, &self.statements.update, &[&ids]).await
    }

    /// Runs a statement that returns what it changed. Row by row: there may be a million.
    async fn changed(
        &self,
        kind: Kind,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Made>> {
        let mut rows = pin!(self.session.query_raw(statement, params.iter().copied()).await?);
        let mut made = Vec::new();
        while let Some(row) = rows.try_next().await? {
            made.push((row.get(0), Change { kind, id: row.get(1), version: row.get(2) }));
        }
        Ok(made)
    }

    /// A part at a time: receivers wait for the book, and what they enter is measured.
    async fn enter(&self, changes: &[Made], at: Duration) {
        for part in changes.chunks(ENTERED_AT_ONCE) {
            self.oracle.with(|oracle, _| {
                part.iter()
                    .for_each(|(account, change)| oracle.committed(*account, &[*change], at));
            });
            if part.len() == ENTERED_AT_ONCE {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Changes that are entered while the book is held: less than a millisecond's work.
const ENTERED_AT_ONCE: usize = 500;

const INSERT: &str = "INSERT INTO subscribers (account_id, email)
    SELECT $1::bigint, $2::text FROM generate_series(1, $3::bigint)
    RETURNING account_id, id, version";

const INSERT_EACH: &str = "INSERT INTO subscribers (account_id, email)
    SELECT account, $2::text FROM unnest($1::bigint[]) account
    RETURNING account_id, id, version";

const UPDATE: &str = "UPDATE subscribers SET version = nextval('change_number'),
        status = CASE status WHEN 'active' THEN 'unsubscribed' ELSE 'active' END
    WHERE id = ANY($1) RETURNING account_id, id, version";

const DELETE: &str = "DELETE FROM subscribers WHERE id = ANY($1) RETURNING account_id, id, version";

/// A change, and the account whose it is.
type Made = (i64, Change);

/// A transaction that knows what it changed. Dropped before its COMMIT it counts as rolled back, and the
/// [`Writer`] is of no use any more.
#[derive(Debug)]
pub struct Transaction<'a> {
    writer: &'a Writer,
    changes: Vec<Made>,
    /// How many were set: each has a name of its own, for they may stand within one another.
    savepoints: u32,
}

impl Transaction<'_> {
    /// Inserts rows of an account; their ids.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn insert(&mut self, account: i64, rows: i64, email: &str) -> Result<Vec<i64>> {
        let made = self.writer.insert_rows(account, rows, email).await?;
        let ids = made.iter().map(|(_, change)| change.id).collect();
        self.changes.extend(made);
        Ok(ids)
    }

    /// Updates rows. Where others update them too they are to be locked before, or the versions of a
    /// row would not rise in commit order.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn update(&mut self, ids: &[i64]) -> Result<()> {
        self.changes.extend(self.writer.update_rows(ids).await?);
        Ok(())
    }

    /// Deletes rows.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn delete(&mut self, ids: &[i64]) -> Result<()> {
        let delete = &self.writer.statements.delete;
        self.changes.extend(self.writer.changed(Kind::Deleted, delete, &[&ids]).await?);
        Ok(())
    }

    /// Locks at most `rows` rows from this id on, in the order of their ids.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn lock(&self, from: i64, rows: i64) -> Result<Vec<i64>> {
        let sql = "SELECT id FROM subscribers WHERE id >= $1 ORDER BY id LIMIT $2 FOR UPDATE";
        Ok(self
            .writer
            .session
            .query(sql, &[&from, &rows])
            .await?
            .iter()
            .map(|row| row.get(0))
            .collect())
    }

    /// Runs a statement that changes no subscriber.
    ///
    /// # Errors
    /// When it fails.
    pub async fn execute(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<()> {
        self.writer.session.execute(sql, params).await?;
        Ok(())
    }

    /// Sets a savepoint, to which [`Transaction::roll_back_to`] goes back. They may stand within one another.
    ///
    /// # Errors
    /// When the session is lost.
    pub async fn savepoint(&mut self) -> Result<Savepoint> {
        self.savepoints += 1;
        let savepoint = Savepoint { number: self.savepoints, changes: self.changes.len() };
        self.writer.session.batch_execute(&format!("SAVEPOINT {savepoint}")).await?;
        Ok(savepoint)
    }

    /// Takes back what was changed since then, what was released since then too.
    ///
    /// # Errors
    /// When the session is lost.
    pub async fn roll_back_to(&mut self, savepoint: Savepoint) -> Result<()> {
        self.writer.session.batch_execute(&format!("ROLLBACK TO {savepoint}")).await?;
        self.changes.truncate(savepoint.changes);
        Ok(())
    }

    /// Ends the part that began with it; what was changed since then belongs to what is around it.
    ///
    /// # Errors
    /// When the session is lost.
    pub async fn release(&mut self, savepoint: Savepoint) -> Result<()> {
        self.writer.session.batch_execute(&format!("RELEASE {savepoint}")).await?;
        Ok(())
    }

    /// Commits, and enters the changes.
    ///
    /// # Errors
    /// When COMMIT fails. Its answer may be what was lost, so the changes count neither way then.
    pub async fn commit(mut self) -> Result<()> {
        let at = self.writer.oracle.now();
        let committed = self.writer.session.batch_execute("COMMIT").await.context("COMMIT");
        let changes = std::mem::take(&mut self.changes);
        if committed.is_ok() {
            self.writer.enter(&changes, at).await;
        } else {
            self.writer.oracle.with(|oracle, _| {
                changes.iter().for_each(|(account, change)| oracle.doubtful(*account, &[*change]));
            });
        }
        committed
    }

    /// Rolls all of it back.
    ///
    /// # Errors
    /// When the session is lost.
    pub async fn roll_back(self) -> Result<()> {
        self.writer.session.batch_execute("ROLLBACK").await.context("ROLLBACK")
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        self.writer.oracle.with(|oracle, _| oracle.rolled_back(self.changes.len()));
    }
}

/// A place in a transaction.
#[derive(Debug)]
pub struct Savepoint {
    number: u32,
    /// So many rows were changed before it.
    changes: usize,
}

impl fmt::Display for Savepoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "traffic_{}", self.number)
    }
}
