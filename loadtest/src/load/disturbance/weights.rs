//! Three accounts that weigh 1, 3 and 1, with more to send than their slots carry; the third's endpoint is slower.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;
use walhook_testkit::receiver::Behaviour;
use walhook_testkit::traffic::Traffic;

use super::{Disturbance, Doing, Fact};
use crate::load::Options;
use crate::load::stage::{FIRST, Needs, Stage};
use crate::load::writing::Rows;

/// The weights, and what an endpoint takes for a request: long beside what else a slot is held for, which receivers
/// do not see, and short of the slow pool.
const ACCOUNTS: [(f64, Duration); 3] = [
    (1.0, Duration::from_millis(90)),
    (3.0, Duration::from_millis(90)),
    (1.0, Duration::from_millis(720)),
];

/// Few, so that there are more rows than they carry; each endpoint alone may have 64 in flight.
const FAST_SLOTS: f64 = 32.0;

const EXTRA: &str = "[scheduler]\nfast_slots = 32\n\
                     [accounts]\ntable = \"public.accounts\"\nid = \"id\"\nweight = \"weight\"";

/// Not counted: holds are estimated, limits grow.
const SETTLE: Duration = Duration::from_secs(5);

/// Rows for as many times what the slots carry meanwhile.
const PLENTY: f64 = 2.0;

/// How fast they are written: soon all of them wait.
const PER_SECOND: f64 = 2_000.0;

/// See the module's documentation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights;

impl Disturbance for Weights {
    fn needs(&self) -> Needs {
        Needs { schema: "ALTER TABLE accounts ADD weight integer NOT NULL DEFAULT 1", extra: EXTRA }
    }

    fn arrange<'a>(&'a self, stage: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        Box::pin(async {
            for (account, (weight, delay)) in (FIRST..).zip(ACCOUNTS) {
                let receiver = stage.receiver().await?;
                receiver.set_default(Behaviour::delay(delay));
                stage.add(account..=account, &receiver).await?;
                stage.theirs.push(receiver);
                let sql = format!("UPDATE accounts SET weight = {weight} WHERE id = {account}");
                stage.world.sql.batch_execute(&sql).await?;
            }
            Ok(Vec::new())
        })
    }

    #[expect(clippy::cast_possible_truncation, reason = "some rows")]
    fn disturb<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async move {
            let all: f64 = ACCOUNTS.iter().map(|(weight, _)| weight).sum();
            let mut traffic = Traffic::default();
            for (account, (weight, delay)) in (FIRST..).zip(ACCOUNTS) {
                let slot_seconds = (options.disturbed + SETTLE).as_secs_f64() * FAST_SLOTS;
                let rows = PLENTY * slot_seconds * weight / all / delay.as_secs_f64();
                let rows = Rows::of(account, rows as i64, PER_SECOND);
                rows.start(stage.writer().await?, Arc::clone(&stage.pace), &mut traffic);
            }
            sleep(SETTLE).await;
            let held = shares(stage, options.disturbed).await?;
            traffic.stop().await?;
            let deviation = held
                .iter()
                .zip(ACCOUNTS)
                .map(|(share, (weight, _))| (share / (weight / all) - 1.0).abs() * 100.0);
            let mut facts = vec![Fact::new(
                "% that a share of slot-seconds is off",
                deviation.fold(0.0, f64::max),
            )];
            let what =
                ["share of weight 1", "share of weight 3", "share of weight 1, 8 times slower"];
            facts.extend(what.into_iter().zip(held).map(|(what, share)| Fact::new(what, share)));
            Ok(facts)
        })
    }

    fn relent<'a>(&'a self, stage: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        Box::pin(async {
            stage.theirs.iter().for_each(|receiver| receiver.set_default(Behaviour::ok()));
            Ok(Vec::new())
        })
    }
}

/// Between two looks at what is in flight.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Which share of the slot-seconds each account's endpoint held, as its receiver saw it: its requests in flight,
/// looked at often.
#[expect(clippy::cast_precision_loss, reason = "requests in flight")]
async fn shares(stage: &Stage, lasts: Duration) -> Result<Vec<f64>> {
    let mut sums = vec![0.0; ACCOUNTS.len()];
    let began = stage.others.now();
    while stage.others.now() - began < lasts {
        for (sum, receiver) in sums.iter_mut().zip(&stage.theirs) {
            *sum += receiver.stats().in_flight as f64;
        }
        sleep(LOOK_EVERY).await;
    }
    let all: f64 = sums.iter().sum();
    Ok(sums.into_iter().map(|sum| sum / all).collect())
}
