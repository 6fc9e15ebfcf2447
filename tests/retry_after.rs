//! An endpoint says when it wants to be asked again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use walhook_process::clock::unix_us;

use crate::support::{PATIENCE, RULES, SECRET, World};

/// When each path was asked.
type Asked = Arc<Mutex<HashMap<String, Vec<Instant>>>>;

/// A date in so many seconds from now, as HTTP has it.
fn http_date(seconds: i64) -> String {
    let at = jiff::Timestamp::from_second(unix_us() / 1_000_000 + seconds).unwrap();
    at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// Refuses the first request to a path with the `Retry-After` that the path stands for.
async fn answer(State(asked): State<Asked>, request: Request) -> impl IntoResponse {
    let path = request.uri().path().to_owned();
    let retry_after = match &*path {
        "/1" => "2".to_owned(),
        "/2" => http_date(3),
        "/3" => http_date(-3_600),
        _ => http_date(100 * 365 * 86_400),
    };
    let mut asked = asked.lock().unwrap();
    let times = asked.entry(path).or_default();
    times.push(Instant::now());
    let status = if times.len() == 1 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, [(header::RETRY_AFTER, retry_after)])
}

#[tokio::test]
async fn case_32_retry_after_is_honoured_as_seconds_and_date_past_and_far() -> Result<()> {
    let asked = Asked::default();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = Router::new().fallback(answer).with_state(Arc::clone(&asked));
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await });

    let sections = "[delivery]\nretry_base = \"50ms\"\nretry_cap = \"8h\"";
    let mut world = World::with(sections, RULES, &[]).await?;
    for id in 1_i64..=4 {
        let insert = "INSERT INTO webhooks (id, account_id, url, secret) VALUES ($1, $1, $2, $3)";
        let url = format!("http://{address}/{id}");
        world.sql.execute(insert, &[&id, &url, &SECRET]).await?;
    }
    let running = world.run().await?;
    for id in 1..=4 {
        world.subscribe(id, id).await?;
    }
    let wait = async |path: &str| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some([first, second, ..]) = asked.lock().unwrap().get(path).map(|at| &at[..]) {
                return Ok(*second - *first);
            }
            ensure!(Instant::now() < deadline, "{path} is not asked again:\n{}", running.log());
            sleep(Duration::from_millis(10)).await;
        }
    };
    let seconds = wait("/1").await?;
    ensure!(seconds >= Duration::from_secs(2), "2 s were asked for, it took {seconds:?}");
    // A date has no fractions: up to a second is lost.
    let date = wait("/2").await?;
    ensure!(date >= Duration::from_secs(2), "3 s were asked for, it took {date:?}");
    let past = wait("/3").await?;
    ensure!(past < seconds, "a date in the past made it wait for {past:?}");
    // Bounded all the same: `settle_waits_as_long_as_retry_after_asks_within_bounds`.
    let far = asked.lock().unwrap().get("/4").map_or(0, Vec::len);
    ensure!(far == 1, "what asked for a hundred years was asked {far} times at once");
    running.kill().await
}
