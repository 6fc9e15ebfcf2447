//! Values that a state database cannot hold end no process and delay no neighbour.

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::{PATIENCE, SECRET, World};

/// The account stands in the message, the endpoint's table has text for ids.
const RULES: &str = "
[[events]]
type = \"told\"
on = [\"message\"]
prefix = \"p\"
account = \"of\"

[delivery]
retry_for = \"0s\"
quick_attempts = 1
";

/// A receiver whose answers hold what few encodings do, and bytes of none.
async fn odd_receiver(tasks: &mut JoinSet<()>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    tasks.spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = socket.read(&mut head).await;
            let body = [b"\x81\xff\x00 ".as_slice(), "カ😀\u{85}&#x0; \\u0000".as_bytes()].concat();
            let head = format!(
                "HTTP/1.1 500 Odd\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let _ = socket.write_all(&[head.as_bytes(), &body].concat()).await;
        }
    });
    Ok(url)
}

#[tokio::test]
async fn values_that_the_state_database_cannot_hold_end_nothing_and_delay_no_neighbour()
-> Result<()> {
    let mut world = World::bare("[state]\nurl = \"STATE\"\n", RULES, &[]).await?;
    world
        .sql
        .batch_execute("CREATE DATABASE st ENCODING 'WIN1252' LOCALE 'C' TEMPLATE template0")
        .await?;
    world.edit_config("STATE", &world.cluster.url("st"))?;
    world
        .sql
        .batch_execute(
            "CREATE TABLE webhooks (id text PRIMARY KEY, account_id text NOT NULL, url text NOT NULL,
                event_types text[] NOT NULL DEFAULT '{*}', secret text, enabled boolean NOT NULL DEFAULT true)",
        )
        .await?;
    world.set_up().await?;
    let mut tasks = JoinSet::new();
    let odd = odd_receiver(&mut tasks).await?;
    let good = world.mock.url("/good");
    let insert = "INSERT INTO webhooks (id, account_id, url, secret) VALUES ($1, $2, $3, $4)";
    for (id, account, url) in [("good", "victim", &good), ("カ\u{85}", "é😀", &odd)] {
        world.sql.execute(insert, &[&id, &account, url, &SECRET]).await?;
    }
    let long = format!("{{\"of\": \"{}\"}}", "x".repeat(8_000));
    let hostile = ["{\"of\": \"a\\u0000b\"}", &long, "{\"of\": \"é😀\"}", "{\"of\": \"\\ud800\"}"];
    let tell = "SELECT pg_logical_emit_message(true, 'p', $1)";
    let mut delivered = 0;
    for _ in 0..2 {
        let mut run = world.run().await?;
        for content in hostile {
            world.sql.execute(tell, &[&content]).await?;
            world.sql.execute(tell, &[&"{\"of\": \"victim\"}"]).await?;
            delivered += 1;
        }
        let what = format!("{delivered} deliveries");
        world.mock.wait_until(&what, PATIENCE, |stats| stats.distinct >= delivered).await?;
        let letters = async |wanted: usize| -> Result<()> {
            let deadline = tokio::time::Instant::now() + PATIENCE;
            loop {
                let list = world.walhook_json(&["dead-letters", "list"]).await?;
                if list["dead_letters"].as_array().is_some_and(|l| l.len() >= wanted) {
                    return Ok(());
                }
                assert!(tokio::time::Instant::now() < deadline, "{list}");
            }
        };
        letters(usize::try_from(delivered)?).await?;
        assert!(run.has_ended()?.is_none(), "{}", run.log());
        run.kill().await?;
    }
    let list = world.walhook_json(&["dead-letters", "list"]).await?;
    let letters = list["dead_letters"].as_array().unwrap();
    let of = |reason: &str| letters.iter().filter(|l| l["reason"] == reason).count();
    assert_eq!((of("unroutable"), of("exhausted"), letters.len()), (6, 2, 8), "{list}");
    let exhausted = letters.iter().find(|l| l["reason"] == "exhausted").unwrap();
    assert_eq!(
        (&exhausted["endpoint"], &exhausted["account_id"]),
        (&"カ\u{85}".into(), &"é😀".into())
    );
    assert!(exhausted["detail"].as_str().unwrap().contains("カ😀"), "{exhausted}");
    Ok(())
}
