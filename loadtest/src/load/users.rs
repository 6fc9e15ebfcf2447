//! The small accounts that are watched: they commit at times drawn beforehand, and never wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use walhook_testkit::traffic::{Stop, Traffic, Writer};

use super::figures::Delivery;
use crate::books::Books;

/// Small accounts that are watched at most, each by one of goose's users.
pub const USERS_MAX: i64 = 200;

/// What a user may not have read yet of its commits or of its webhooks. A catch-up after ten minutes brings some
/// hundreds at once.
const UNREAD_MAX: usize = 8_192;

/// For the webhooks of the last commits.
const PATIENCE: Duration = Duration::from_secs(60);

/// A version, and when it was due or answered, since the books were opened.
type At = (i64, Duration);

/// Times with exponential gaps, drawn from a seed: as many accounts that know nothing of each other commit.
#[derive(Debug)]
struct Dues {
    state: u64,
    mean: Duration,
    next: Duration,
}

impl Dues {
    fn new(seed: u64, account: i64, from: Duration, mean: Duration) -> Self {
        let state = seed ^ account.cast_unsigned().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { state, mean, next: from }
    }

    /// Numbers by seed (splitmix64), from 0 to less than 1.
    fn draw(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        f64::from(((z ^ (z >> 31)) >> 32) as u32) / (f64::from(u32::MAX) + 1.0)
    }
}

impl Iterator for Dues {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let gap = -(1.0 - self.draw()).ln();
        self.next += self.mean.mul_f64(gap);
        Some(self.next)
    }
}

/// What all users share.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    phases: Mutex<Vec<(&'static str, Duration)>>,
    deliveries: Mutex<Vec<Delivery>>,
    answers: Mutex<HashMap<i64, mpsc::Sender<At>>>,
}

impl Ledger {
    /// A phase has begun.
    pub(super) fn begin(&self, phase: &'static str, at: Duration) {
        lock(&self.phases).push((phase, at));
    }

    /// Phases and when they began.
    pub(super) fn phases(&self) -> Vec<(&'static str, Duration)> {
        lock(&self.phases).clone()
    }

    fn phase(&self, at: Duration) -> &'static str {
        let phases = lock(&self.phases);
        phases.iter().rev().find(|(_, from)| *from <= at).map_or("warm-up", |(name, _)| *name)
    }

    /// An endpoint of an account is about to answer for a change with this version.
    pub(super) fn tell(&self, account: i64, version: i64, at: Duration) {
        let user = lock(&self.answers).get(&account).cloned();
        if let Some(user) = user {
            // A user that has given up no longer listens, and one that does not read has lost the delivery.
            let _ = user.try_send((version, at));
        }
    }

    /// What became of the commits so far, in no order.
    pub(super) fn deliveries(&self) -> Vec<Delivery> {
        lock(&self.deliveries).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One small account.
#[derive(Debug)]
pub struct User {
    account: i64,
    commits: mpsc::Receiver<At>,
    answers: mpsc::Receiver<At>,
    /// Versions whose other half has not come: when they were due, or answered.
    due: HashMap<i64, Duration>,
    early: HashMap<i64, Duration>,
    ledger: Arc<Ledger>,
    /// Set when it commits no more.
    until: Option<Instant>,
}

/// What became of one commit.
#[derive(Debug, Clone, Copy)]
pub struct Recorded {
    /// The phase in which it was due.
    pub phase: &'static str,
    /// From when it was due to the 2xx; none: it did not come.
    pub took: Option<Duration>,
}

impl User {
    /// Waits for the next webhook, and enters how long it took. `None`: the test is over and all have come, or do
    /// not come any more. Cancel-safe.
    pub async fn next(&mut self) -> Option<Recorded> {
        loop {
            if let Some(until) = self.until {
                if self.due.is_empty() {
                    return None;
                }
                match timeout_at(until, self.answers.recv()).await {
                    Ok(Some((version, at))) => {
                        if let Some(recorded) = self.answered(version, at) {
                            return Some(recorded);
                        }
                    }
                    Ok(None) | Err(_) => return self.lost(),
                }
                continue;
            }
            tokio::select! {
                biased;
                committed = self.commits.recv() => match committed {
                    Some((version, due)) => {
                        if let Some(at) = self.early.remove(&version) {
                            return Some(self.enter(due, Some(at)));
                        }
                        self.due.insert(version, due);
                    }
                    None => self.until = Some(Instant::now() + PATIENCE),
                },
                Some((version, at)) = self.answers.recv() => {
                    if let Some(recorded) = self.answered(version, at) {
                        return Some(recorded);
                    }
                }
            }
        }
    }

    fn answered(&mut self, version: i64, at: Duration) -> Option<Recorded> {
        if let Some(due) = self.due.remove(&version) {
            return Some(self.enter(due, Some(at)));
        }
        // The webhook may be there before the writer has read its acknowledgement; or it came a second time.
        if self.until.is_none() {
            self.early.insert(version, at);
        }
        None
    }

    fn lost(&mut self) -> Option<Recorded> {
        let version = *self.due.keys().next()?;
        let due = self.due.remove(&version)?;
        Some(self.enter(due, None))
    }

    fn enter(&self, due: Duration, at: Option<Duration>) -> Recorded {
        lock(&self.ledger.deliveries).push(Delivery { account: self.account, due, at });
        let took = at.map(|at| at.saturating_sub(due));
        Recorded { phase: self.ledger.phase(due), took }
    }
}

/// How the users commit.
#[derive(Debug)]
pub(super) struct Commits<'a> {
    pub(super) books: &'a Books,
    pub(super) writers: &'a [Arc<Writer>],
    pub(super) accounts: std::ops::RangeInclusive<i64>,
    /// Between two commits of one account, in the mean.
    pub(super) every: Duration,
    pub(super) seed: u64,
}

/// Makes the users, whose commits are sessions of this traffic.
pub(super) fn start(
    commits: &Commits<'_>,
    ledger: &Arc<Ledger>,
    traffic: &mut Traffic,
) -> Vec<User> {
    let from = commits.books.now();
    let mut users = Vec::new();
    for (account, writer) in commits.accounts.clone().zip(commits.writers.iter().cycle()) {
        let (committed, commits_of) = mpsc::channel(UNREAD_MAX);
        let (answered, answers) = mpsc::channel(UNREAD_MAX);
        lock(&ledger.answers).insert(account, answered);
        let dues = Dues::new(commits.seed, account, from, commits.every);
        let (writer, books) = (Arc::clone(writer), commits.books.clone());
        traffic.spawn(|stop| commit(writer, books, account, dues, committed, stop));
        let ledger = Arc::clone(ledger);
        let (due, early) = (HashMap::new(), HashMap::new());
        users.push(User { account, commits: commits_of, answers, due, early, ledger, until: None });
    }
    users
}

/// Commits when it is due: inserts, and every second time an update of the row before.
async fn commit(
    writer: Arc<Writer>,
    books: Books,
    account: i64,
    dues: Dues,
    committed: mpsc::Sender<At>,
    mut stop: Stop,
) -> Result<()> {
    let mut row = None;
    for due in dues {
        if stop.within(due.saturating_sub(books.now())).await {
            break;
        }
        let change = writer.change(account, row, "someone@example.com").await?;
        row = if row.is_none() { Some(change.id) } else { None };
        // Never waits: nothing ends a user before its commits end.
        committed.send((change.version, due)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_drawn_from_the_seed_and_have_the_wanted_mean() {
        let dues = |seed| Dues::new(seed, 7, Duration::ZERO, Duration::from_secs(1)).take(10_000);
        let last = dues(1).last().unwrap().as_secs_f64();
        assert!((9_700.0..10_300.0).contains(&last), "{last}");
        assert!(dues(1).eq(dues(1)) && !dues(1).eq(dues(2)));
        assert!(dues(1).zip(dues(1).skip(1)).all(|(one, next)| one <= next));
    }
}
