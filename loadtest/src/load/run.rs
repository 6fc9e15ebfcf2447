//! One run: calm, disturbed, ebbing, calm again, and the audit.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::time::sleep;
use walhook_testkit::traffic::Traffic;

use super::Options;
use super::disturbance::{Disturbance, Fact};
use super::outcome::{Audited, Measured, Outcome};
use super::scenario::Scenario;
use super::stage::{PATIENCE, SMALL, Stage};
use super::users::{Commits, USERS_MAX, User, start};
use super::watch::Watcher;
use super::writing::Steady;
use crate::books::Audit;
use crate::sample::load;
use crate::waits;

/// Between two commits of a watched account, in the mean.
const USER_EVERY: Duration = Duration::from_secs(1);

/// Commits of the background, a second.
const BACKGROUND: f64 = 100.0;

/// Not measured: connections are opened, caches filled.
const WARM_UP: Duration = Duration::from_secs(4);

/// Behind the ebb, before it counts as calm.
const SETTLE: Duration = Duration::from_secs(1);

/// Runs a scenario. `drive` has the users go on until they end by themselves.
///
/// # Errors
/// When something cannot be started or fails. What was measured, and whether its audit found something, is the
/// outcome.
pub async fn run<F>(
    scenario: Scenario,
    options: &Options,
    drive: impl FnOnce(Vec<User>) -> F,
) -> Result<Outcome>
where
    F: Future<Output = Result<()>>,
{
    let disturbance = scenario.disturbance.as_ref();
    let load_before = load()?;
    let mut stage = Stage::open(disturbance.needs()).await?;
    let mut facts = disturbance.arrange(&mut stage, options).await?;
    stage.run().await?;
    facts.extend(disturbance.prepare(&mut stage, options).await?);

    let mut traffic = Traffic::default();
    let last = SMALL.start() + USERS_MAX - 1;
    let steady = Steady { accounts: last + 1..=*SMALL.end(), per_second: BACKGROUND, at_once: 1 };
    for writer in stage.writers.iter().take(2) {
        let steady = Steady { per_second: BACKGROUND / 2.0, ..steady.clone() };
        steady.start(Arc::clone(writer), None, &mut traffic);
    }
    let commits = Commits {
        books: &stage.small,
        writers: &stage.writers,
        accounts: *SMALL.start()..=last,
        every: USER_EVERY,
        seed: options.seed,
    };
    let users = start(&commits, &stage.ledger, &mut traffic);
    let (stop, stopped) = watch::channel(false);
    let watcher = Watcher::of(&stage).await?;
    let acting = async {
        let acted = act(disturbance, &mut stage, options).await;
        if let Some(beside) = stage.beside.take() {
            beside.stop().await?;
        }
        traffic.stop().await?;
        stop.send_replace(true);
        acted
    };
    let (acted, (), samples) = tokio::try_join!(acting, drive(users), watcher.watch(stopped))?;
    facts.extend(acted);
    let audit = audit(&mut stage).await?;
    let watched = *SMALL.start()..=last;
    let measured = Measured {
        deliveries: stage.ledger.deliveries(),
        lines: waits::read(&stage.world, &stage.small, |account| watched.contains(&account))
            .await?,
        phases: stage.ledger.phases(),
        samples,
        facts,
        capacity: disturbance.capacity(),
        load: [load_before, load()?],
        audit,
    };
    Ok(Outcome::of(&scenario, options, measured))
}

async fn act(
    disturbance: &dyn Disturbance,
    stage: &mut Stage,
    options: &Options,
) -> Result<Vec<Fact>> {
    let (ledger, books) = (Arc::clone(&stage.ledger), Arc::clone(&stage.small));
    let begin = |phase| ledger.begin(phase, books.now());
    sleep(WARM_UP).await;
    begin("calm");
    sleep(options.disturbed / 2).await;
    begin("disturbed");
    let mut facts = disturbance.disturb(stage, options).await?;
    begin("ebbing");
    facts.extend(disturbance.relent(stage, options).await?);
    if let Some(beside) = stage.beside.take() {
        beside.stop().await?;
    }
    if let Some(took) = stage.drained(PATIENCE).await? {
        facts.push(Fact::new("s of ebb, until all was delivered", took.as_secs_f64()));
    }
    sleep(SETTLE).await;
    begin("calm again");
    sleep(options.disturbed / 2).await;
    begin("over");
    Ok(facts)
}

/// All that was committed against all that came or stands in a table, once nothing changes any more.
async fn audit(stage: &mut Stage) -> Result<Audited> {
    stage.drained(PATIENCE).await?;
    let missing = |stage: &Stage| {
        stage.small.shared().with(|oracle, _| oracle.waiting_in_all()) + stage.waiting()
    };
    if missing(stage) > 0 {
        stage.world.settled(PATIENCE).await?;
    }
    stage.stop().await?;
    let in_tables = stage.world.in_tables().await?;
    let lost = missing(stage).saturating_sub(in_tables);
    let mut audited = Audited { lost, in_tables, ..Audited::default() };
    for books in [&stage.small, &stage.others] {
        let Audit { sums, wrong } = books.audit(i64::MIN..=i64::MAX);
        audited.delivered += sums.delivered;
        audited.duplicates += sums.duplicates;
        audited.out_of_order += wrong.out_of_order;
        audited.invented += wrong.invented + wrong.changed_ids + wrong.changed_bodies;
    }
    Ok(audited)
}
