//! Load scenarios: insert a subscriber and wait until its webhook has been answered.
//!
//! ```text
//! cargo build && cargo run -p walhook-loadtest --features goose -- --users 32 --run-time 30s --report-file out.html
//! ```
//!
//! The row that goose reports as `WEBHOOK insert → 2xx` is the time from before the COMMIT to the
//! endpoint's answer. It is a closed loop: each user waits for its webhook before it goes on, so
//! the rate follows from the latency.
//!
//! Without `WALHOOK_LOADTEST_URL` it starts a PostgreSQL and the `walhook` beside itself (or
//! `WALHOOK_LOADTEST_PROGRAM`). With it, it uses that database, which has the tables of
//! `sql/demo.sql`, and from which a walhook on this machine already delivers `subscriber.created`
//! with the columns `id` and `version`, loopback addresses allowed. What it adds there it removes.

mod target;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Result, ensure};
use goose::prelude::*;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use walhook_postgres::sql::Connection;

use target::Target;

/// A webhook that takes longer counts as a failure.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// The row of goose's report.
const NAME: &str = "insert → 2xx";

static TARGET: OnceLock<Target> = OnceLock::new();

/// What each of goose's users keeps. Goose wants it to be `Clone`; it is not cloned.
#[derive(Clone)]
struct Session {
    connection: Arc<Mutex<Connection>>,
    account: i64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let (target, owned) = target::prepare().await?;
    ensure!(TARGET.set(target).is_ok(), "the target is set once");
    let attack = GooseAttack::initialize()?
        .set_default(GooseDefault::Host, "http://127.0.0.1")?
        .set_default(GooseDefault::Users, 16)?
        .set_default(GooseDefault::IncreaseRate, "16")?
        .set_default(GooseDefault::RunTime, 20)?
        .register_scenario(
            scenario!("Webhook")
                .register_transaction(transaction!(connect).set_name("connect").set_on_start())
                .register_transaction(transaction!(insert_and_wait).set_name("insert and wait")),
        )
        .execute()
        .await;
    if let Some(target) = TARGET.get() {
        target.clean_up().await?;
    }
    owned.stop().await?;
    let failed: usize = attack?.requests.values().map(|request| request.fail_count).sum();
    ensure!(failed == 0, "{failed} webhooks did not come within {WEBHOOK_TIMEOUT:?}");
    Ok(())
}

fn target() -> Result<&'static Target, Box<TransactionError>> {
    TARGET.get().ok_or_else(|| failure("there is no target"))
}

fn failure(error: impl std::fmt::Display) -> Box<TransactionError> {
    Box::new(TransactionError::Custom(error.to_string()))
}

async fn connect(user: &mut GooseUser) -> TransactionResult {
    let target = target()?;
    let connection = target.connect().await.map_err(failure)?;
    let account = target.account(user.weighted_users_index);
    let connection = Arc::new(Mutex::new(connection));
    user.set_session_data(Session { connection, account });
    Ok(())
}

async fn insert_and_wait(user: &mut GooseUser) -> TransactionResult {
    let target = target()?;
    let session =
        user.get_session_data::<Session>().ok_or_else(|| failure("the user is not connected"))?;
    let account = session.account;
    let mut connection = session.connection.lock().await;
    let transaction = connection.transaction().await.map_err(failure)?;
    let row = transaction
        .query_one(
            "INSERT INTO subscribers (account_id, email) VALUES ($1, 'load@example.com')
             RETURNING version",
            &[&account],
        )
        .await
        .map_err(failure)?;
    // Before the COMMIT, or the webhook could come first.
    let webhook = target.expect(row.get(0));
    let began = Instant::now();
    transaction.commit().await.map_err(failure)?;
    drop(connection);
    match timeout(WEBHOOK_TIMEOUT, webhook).await {
        Ok(Ok(answered)) => {
            let took = answered.saturating_duration_since(began);
            user.record_custom_request_duration("WEBHOOK", NAME, took, true, Some(204), None).await
        }
        Ok(Err(_)) | Err(_) => {
            let why = Some("the webhook did not come");
            user.record_custom_request_duration("WEBHOOK", NAME, began.elapsed(), false, None, why)
                .await
        }
    }
}
