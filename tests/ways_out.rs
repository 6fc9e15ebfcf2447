//! What would stop the stream for ever, and the way out of it.

use anyhow::{Result, ensure};

use crate::support::{RULES, World, taken};

#[tokio::test]
async fn change_too_large_to_be_read_is_a_dead_letter_by_its_position_and_memory_stays_flat()
-> Result<()> {
    // A change may take a quarter of this.
    let mut world = World::with("[memory]\nlimit = \"16MiB\"", RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    let before = running.resident_peak_bytes()?;

    world
        .sql
        .batch_execute(
            "CREATE TABLE notes (id int PRIMARY KEY, v text);
             ALTER PUBLICATION walhook ADD TABLE notes;
             BEGIN;
             INSERT INTO subscribers VALUES (2, 1, 'a@example.com', 'active');
             UPDATE subscribers SET email = repeat('x', 60000000) WHERE id = 1;
             INSERT INTO notes VALUES (1, repeat('x', 60000000));
             INSERT INTO subscribers VALUES (3, 1, 'a@example.com', 'active');
             COMMIT;
             DELETE FROM subscribers WHERE id = 1",
        )
        .await?;
    world.subscribe(4, 1).await?;
    let received = world.delivered(4).await?;
    world.settled().await?;
    let created = |id| ("subscriber.created".to_owned(), id);
    ensure!(taken(&received)["/1"] == [1, 2, 3, 4].map(created), "{:?}", taken(&received));

    let dead = "SELECT string_agg(concat_ws(' ', event_type, operation, reason, account = ''), ', '
                                  ORDER BY id)
                FROM walhook.dead_letters JOIN walhook.bodies USING (pipeline, event_id)";
    let expected = "subscriber.updated update unroutable t, subscriber.deleted delete unroutable t";
    ensure!(world.value(dead).await? == expected, "{}", world.value(dead).await?);
    let letters = world.walhook_json(&["dead-letters", "list"]).await?.to_string();
    ensure!(letters.contains("more than a quarter of memory.limit"), "{letters}");
    let series = "walhook_unroutable_total{reason=\"too_large\"}";
    world.until_metric(series, "2").await?;
    let grown = running.resident_peak_bytes()? - before;
    // Any of the three would be 60 MB and more.
    ensure!(grown < 16 << 20, "{grown} bytes more were resident than before");
    ensure!(running.terminate().await?.success());
    Ok(())
}
