//! The session in which the customer's tables and views are read.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::{Duration, Instant, sleep};
use tokio_postgres::error::SqlState;

use super::{Fetched, LookupError, LookupSettings, Lookups};
use crate::error::SourceError;
use crate::op::EQ;
use crate::sql::Connection;
use crate::timelines::Primary;
use crate::{row_security, source};
use walhook_core::event::AccountId;

/// A statement waits so long at most for a lock, while it holds those of other tables that it reads. An application
/// that wants one of them, and holds what the statement waits for, looks for a deadlock after `deadlock_timeout`, and
/// would be ended for it: by then we have given way.
fn lock_limit() -> String {
    format!(
        "SELECT pg_catalog.set_config('lock_timeout',
             greatest(1, least(500, setting::pg_catalog.int4 OPERATOR(pg_catalog./) 2))::pg_catalog.text, false)
         FROM pg_catalog.pg_settings WHERE name {EQ} 'deadlock_timeout'"
    )
}

/// How long a look-up tries in all where others hold a lock. Another table that a migration holds must not look like a
/// slow network.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Between two tries: those that queue behind us come first.
const LOCK_PAUSE: Duration = Duration::from_millis(250);

/// For how long a look-up is made again where others hold a lock.
#[derive(Debug)]
pub(super) struct Patience {
    until: Instant,
}

impl Patience {
    pub(super) fn begin(patience: Duration) -> Self {
        Self { until: Instant::now() + patience }
    }

    /// Whether a look-up that ended so is to be made again; not at once.
    pub(super) async fn has_more(&self, error: &LookupError) -> bool {
        let LookupError::Sql(error) = error else { return false };
        if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) || Instant::now() >= self.until {
            return false;
        }
        sleep(LOCK_PAUSE).await;
        true
    }
}

/// How long a statement may take, where nothing else is said.
pub(super) const USUAL: Duration = Duration::from_secs(30);

/// For policies that hide nothing.
const HIDE: &str = "SET row_security = on";

/// Opens a session for look-ups. It alone has the path that `endpoints.search_path` names, for
/// functions behind a view that rely on one; statements of ours are safe under any. None waits long for a lock.
///
/// # Errors
/// [`LookupError::Connect`], [`LookupError::Sql`].
pub async fn connect(
    settings: LookupSettings<'_>,
    application_name: &str,
) -> Result<Connection, LookupError> {
    let path = &settings.endpoints.search_path;
    let client = Connection::open_with_path(settings.url, application_name, path).await?;
    client.query(&lock_limit(), &[]).await?;
    Ok(client)
}

/// A session whose look-ups come to an end, and in which no row is hidden without a word: an account
/// whose endpoints row-level security hides would look like one that has none, and its events would be
/// gone.
#[derive(Debug)]
pub struct LookupSession {
    pub(super) client: Connection,
    /// Policies stand on what is read, and hide nothing: that is looked at with each look-up.
    pub(super) has_policies: AtomicBool,
}

impl LookupSession {
    /// Opens one.
    ///
    /// # Errors
    /// [`LookupError::Connect`], [`LookupError::Sql`].
    pub async fn open(
        settings: LookupSettings<'_>,
        application_name: &str,
    ) -> Result<Self, LookupError> {
        let client = connect(settings, application_name).await?;
        client.batch_execute(row_security::NEVER_HIDE).await?;
        let session = Self { client, has_policies: AtomicBool::new(false) };
        session.limit(USUAL).await?;
        Ok(session)
    }

    /// Statements may take so long from now on.
    pub(super) async fn limit(&self, limit: Duration) -> Result<(), LookupError> {
        let set = format!("SET statement_timeout = {}", limit.as_millis());
        Ok(self.client.batch_execute(&set).await?)
    }

    /// Which primary it is with.
    ///
    /// # Errors
    /// As [`source::primary`].
    pub async fn primary(&self) -> Result<Primary, SourceError> {
        source::primary(&self.client).await
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// As [`Lookups::fetch`].
    ///
    /// # Errors
    /// As there, and [`LookupError::Hidden`].
    pub async fn fetch(
        &self,
        lookups: &Lookups,
        accounts: &[AccountId],
    ) -> Result<Fetched, LookupError> {
        if !self.has_policies.load(Ordering::Relaxed) {
            match lookups.fetch(&self.client, accounts).await {
                Err(LookupError::Sql(error))
                    if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) =>
                {
                    // A right, or row-level security: one that hides nothing is no reason to fail.
                    self.ensure_all_shown(lookups).await?;
                    self.client.batch_execute(HIDE).await?;
                    self.has_policies.store(true, Ordering::Relaxed);
                }
                fetched => return fetched,
            }
        }
        let fetched = lookups.fetch(&self.client, accounts).await;
        // Afterwards: what is hidden by then may have been hidden from the look-up.
        let shown = self.ensure_all_shown(lookups).await;
        if fetched.is_err() || shown.is_err() {
            self.client.batch_execute(row_security::NEVER_HIDE).await?;
            self.has_policies.store(false, Ordering::Relaxed);
        }
        shown.and(fetched)
    }

    async fn ensure_all_shown(&self, lookups: &Lookups) -> Result<(), LookupError> {
        let tables = lookups.tables().filter_map(|name| name.parse().ok());
        let tables: BTreeSet<_> = tables.collect();
        let hidden = row_security::hidden(&self.client, &tables).await?;
        hidden.into_iter().next().map_or(Ok(()), |hidden| {
            let (table, fix) = (hidden.table.to_string(), hidden.fix());
            Err(LookupError::Hidden { table, role: hidden.role, fix })
        })
    }
}
