//! Writers that commit at a steady rate.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use walhook_postgres::sql::Connection;

use crate::books::Books;
use crate::world::World;

/// Sessions that write at once: one alone would wait for its own slow commits.
const SESSIONS: u32 = 4;

/// Commits until [`Traffic::stop`], each of one row, of the accounts in turn: inserts, and every second
/// time an update of the row that the session inserted last for the account.
#[derive(Debug)]
pub struct Traffic {
    stop: watch::Sender<bool>,
    sessions: JoinSet<Result<()>>,
}

impl Traffic {
    /// Starts to write.
    ///
    /// # Errors
    /// When the server takes no further session.
    pub async fn start(
        world: &World,
        books: &Arc<Books>,
        accounts: &[i64],
        per_second: f64,
    ) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut sessions = JoinSet::new();
        let every = Duration::from_secs_f64(f64::from(SESSIONS) / per_second);
        for n in 0..SESSIONS {
            let writer = Writer {
                connection: world.connect().await?,
                books: Arc::clone(books),
                // Each account belongs to one session, so that a row's versions grow in its commits.
                accounts: accounts
                    .iter()
                    .copied()
                    .skip(n as usize)
                    .step_by(SESSIONS as usize)
                    .collect(),
                last: HashMap::new(),
            };
            let first = Instant::now() + every / SESSIONS * n;
            sessions.spawn(writer.write(first, every, stopped.clone()));
        }
        Ok(Self { stop, sessions })
    }

    /// Waits for the last commits.
    ///
    /// # Errors
    /// When a commit failed.
    pub async fn stop(mut self) -> Result<()> {
        self.stop.send_replace(true);
        while let Some(ended) = self.sessions.join_next().await {
            ended??;
        }
        Ok(())
    }
}

struct Writer {
    connection: Connection,
    books: Arc<Books>,
    accounts: Vec<i64>,
    /// The row of each account that is to be updated next.
    last: HashMap<i64, i64>,
}

impl Writer {
    async fn write(
        mut self,
        first: Instant,
        every: Duration,
        mut stop: watch::Receiver<bool>,
    ) -> Result<()> {
        let insert = "INSERT INTO subscribers (account_id, email, version)
                      VALUES ($1, 'someone@example.com', $2) RETURNING id";
        let insert = self.connection.prepare(insert).await?;
        let update = "UPDATE subscribers SET version = $2 WHERE id = $1";
        let update = self.connection.prepare(update).await?;
        let mut due = first;
        for account in self.accounts.iter().cycle() {
            tokio::select! {
                biased;
                _ = stop.changed() => return Ok(()),
                () = sleep_until(due) => due += every,
            }
            let version = self.books.begin(*account, 1);
            if let Some(id) = self.last.remove(account) {
                self.connection.execute(&update, &[&id, &version]).await?;
            } else {
                let row = self.connection.query_one(&insert, &[account, &version]).await?;
                self.last.insert(*account, row.get(0));
            }
            self.books.committed(version, 1);
        }
        Ok(())
    }
}
