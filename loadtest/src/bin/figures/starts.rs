//! What a start costs with very much that is deferred, beside one with nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};
use walhook_loadtest::sample::Resident;

use crate::outage::Outage;
use crate::sink::Sink;
use walhook_loadtest::figure::{Better, Figure};

/// Behind a start's first delivery, before resident memory is read: the dead endpoints were tried.
const CALM: Duration = Duration::from_secs(3);

/// Dead endpoints of this case; one that is well comes behind them.
const DEAD: u64 = 20;

/// A start with so many deferred, against one with none.
pub(crate) async fn measure(deferred: u64, pairs: usize) -> Result<Vec<Figure>> {
    let group = "start";
    let mut time = Figure::new(group, "time", "ms to lead", Better::Less);
    let mut first = Figure::new(group, "first", "ms to the first delivery", Better::Less);
    let mut memory = Figure::new(group, "memory", "MiB resident", Better::Less);
    let (mut full, mut empty) = (Starts::new().await?, Starts::new().await?);
    full.outage.lay_up(deferred).await?;
    full.outage.fill().await?;
    empty.outage.fill().await?;
    for pair in 0..pairs {
        let (with, without) = if pair % 2 == 0 {
            let with = full.start().await?;
            (with, empty.start().await?)
        } else {
            let without = empty.start().await?;
            (full.start().await?, without)
        };
        for ((figure, with), without) in
            [&mut time, &mut first, &mut memory].into_iter().zip(with).zip(without)
        {
            figure.ratio(with, without);
        }
    }
    let waiting = full.outage.world.in_tables().await?;
    ensure!(waiting == deferred, "{waiting} of {deferred} are deferred");
    Ok(vec![time, first, memory])
}

/// Dead endpoints, and one that is well.
struct Starts {
    outage: Outage,
    well: Sink,
}

impl Starts {
    async fn new() -> Result<Self> {
        let outage = Outage::start(DEAD, &[]).await?;
        let well = Sink::start(None).await?;
        outage.world.add_account(i64::try_from(DEAD + 1)?, &well.url(0)).await?;
        Ok(Self { outage, well })
    }

    /// Milliseconds to lead, and to the delivery of what was committed while nothing ran; MiB resident.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    async fn start(&mut self) -> Result<[f64; 3]> {
        let world = &mut self.outage.world;
        let insert =
            "INSERT INTO subscribers (account_id, email) VALUES ($1, 'someone@example.com')";
        world.sql.execute(insert, &[&i64::try_from(DEAD + 1)?]).await?;
        self.well.reset();
        let began = Instant::now();
        let leading = world.run().await?;
        self.well.until(1).await.with_context(|| world.walhook.log_tail())?;
        let first = began.elapsed();
        sleep(CALM).await;
        let resident = Resident::of(world.walhook.pid())?.now;
        world.walhook.stop().await?;
        let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        Ok([ms(leading), ms(first), resident as f64 / f64::from(1 << 20)])
    }
}
