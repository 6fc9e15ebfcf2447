//! Receivers that send without end, beside one that does as it should: case 40 of the whole program.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{SECRET, World};
use crate::turns::{counted, until_counted};

/// Says this first to each request, and then that for as long as the client reads.
struct Flood {
    address: SocketAddr,
    _task: JoinSet<Result<()>>,
}

impl Flood {
    async fn start(first: &'static str, then: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut floods = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await?;
                floods.spawn(flood(stream, first, then));
            }
        });
        Ok(Self { address, _task: task })
    }
}

async fn flood(mut stream: TcpStream, first: &str, then: &str) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    stream.write_all(first.as_bytes()).await?;
    let then = then.repeat(2_000);
    loop {
        stream.write_all(then.as_bytes()).await?;
    }
}

#[tokio::test]
async fn case_40_receivers_that_send_without_end_delay_no_other_account_and_hold_no_memory()
-> Result<()> {
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    let hints = Flood::start(HINTS, HINTS).await?;
    let head = Flood::start("HTTP/1.1 200 OK\r\n", "x-without-end: 0123456789abcdef\r\n").await?;
    let mut world = World::new().await?;
    let running = world.run().await?;
    let before = running.resident_bytes()?;
    let insert = "INSERT INTO webhooks (id, account_id, url, secret) VALUES ($1, $2, $3, $4)";
    for id in 100..160_i64 {
        let flood = if id % 2 == 0 { &hints } else { &head };
        let url = format!("http://{}/{id}", flood.address);
        world.sql.execute(insert, &[&id, &(id % 5), &url, &SECRET]).await?;
    }
    world.hook(7, 42, "").await?;
    for id in 0..100 {
        world.subscribe(1_000 + id, id % 5).await?;
        world.subscribe(2_000 + id, 42).await?;
    }
    // All of the victim's, while the floods are tried again and again.
    world.delivered(100).await?;
    let series = "walhook_attempts_total{outcome=\"protocol\"}";
    until_counted(&world, series, 1).await?;
    let failed = counted(&world, series).await?;
    // Everything else ends too: it waits in the state tables.
    world.settled().await?;
    let grown = running.resident_peak_bytes()?.saturating_sub(before);
    ensure!(grown < 128 << 20, "{failed} floods took {grown} bytes");
    Ok(())
}
