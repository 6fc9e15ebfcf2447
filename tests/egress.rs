//! Where requests go, and what happens when none may.

use anyhow::{Result, ensure};

use crate::support::{RULES, SECRET, World, answers, text};

#[tokio::test]
async fn log_mode_sends_nothing_and_settles_each_delivery_by_logging_it() -> Result<()> {
    let mut world = World::with("[delivery]\nmode = \"log\"", RULES, &[]).await?;
    let running = world.run().await?;
    running.until_logged("NOTHING IS SENT").await?;
    world.hook(7, 42, "").await?;
    world.hook(8, 42, "").await?;
    for id in 1..=3 {
        world.subscribe(id, 42).await?;
    }
    // The checkpoint passes them: nothing is kept back to be sent later.
    world.settled().await?;
    world.until_metric("walhook_deliveries_total{result=\"logged\"}", "6").await?;
    world.until_metric("walhook_deliveries_total{result=\"delivered\"}", "0").await?;
    world.until_metric("walhook_attempts_total{outcome=\"2xx\"}", "0").await?;
    ensure!(answers(world.admin, "/readyz").await);

    let log = running.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("not sent")).collect();
    ensure!(lines.len() == 6, "{log}");
    for part in ["event=evt_", "type=subscriber.created", "account=42", "endpoint=7"] {
        ensure!(lines.iter().any(|line| line.contains(part)), "{part} is not in {lines:?}");
    }
    ensure!(!log.contains("a@example.com") && !log.contains(SECRET), "{log}");

    let status = text(&world.walhook(&["status"]).await?.stdout);
    ensure!(status.contains("MODE          log: nothing is sent"), "{status}");
    ensure!(world.walhook_json(&["status"]).await?["mode"] == "log");
    let stats = world.mock.stats();
    ensure!(stats.received == 0 && stats.in_flight == 0, "{stats:?}");
    Ok(())
}
