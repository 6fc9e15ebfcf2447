//! Attempts under way, each on one of the threads for requests.
//!
//! ```text
//! add, hand_over ──jobs──► inbox of a thread ─► its tasks ──results──► next
//! ```
//!
//! Jobs go over to a thread, and results come back, as many at a time as there are: to wake a thread that
//! sleeps costs as much as a good part of a request.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::sender::Sender;

/// So many more requests than the idlest thread the one may have that has the host's connections.
const AHEAD_MAX: usize = 16;

/// Jobs that are handed over at once, at most: the thread may begin.
const HAND_OVER: usize = 32;

/// Attempts that were begun and have not ended. Dropped, it gives them up.
///
/// A job is what an attempt begins with, a result what it ends with. As many of both are held as are under
/// way, which is the caller's to bound.
pub struct Attempts<J, R> {
    lanes: Vec<Lane<J>>,
    ended: Arc<Mailbox<(usize, Option<R>)>>,
    /// Taken from the mailbox.
    arrived: VecDeque<(usize, Option<R>)>,
    _threads: JoinSet<()>,
}

/// One thread's.
struct Lane<J> {
    inbox: Arc<Mailbox<J>>,
    /// Not handed over yet.
    jobs: Vec<J>,
    under_way: usize,
}

impl<J, R> fmt::Debug for Attempts<J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let under_way: Vec<_> = self.lanes.iter().map(|lane| lane.under_way).collect();
        f.debug_struct("Attempts").field("under_way", &under_way).finish_non_exhaustive()
    }
}

impl<J: Send + 'static, R: Send + 'static> Attempts<J, R> {
    /// On the sender's threads, or here where it has none. `make` makes an attempt.
    pub fn new<M, F>(sender: &Sender, make: M) -> Self
    where
        M: Fn(J) -> F + Clone + Send + 'static,
        F: Future<Output = R> + Send + 'static,
    {
        let here = [Handle::current()];
        let threads = match sender {
            Sender::Live(transport) => transport.threads(),
            Sender::Log => &here,
        };
        let (ended, mut tasks) = (Arc::new(Mailbox::new()), JoinSet::new());
        let lanes = threads.iter().enumerate().map(|(place, thread)| {
            let inbox = Arc::new(Mailbox::new());
            let (jobs, ended) = (Arc::clone(&inbox), Arc::clone(&ended));
            tasks.spawn_on(work(place, jobs, ended, make.clone()), thread);
            Lane { inbox, jobs: Vec::new(), under_way: 0 }
        });
        let lanes: Vec<Lane<J>> = lanes.collect();
        assert!(!lanes.is_empty(), "a request needs a thread");
        Self { lanes, ended, arrived: VecDeque::new(), _threads: tasks }
    }

    /// Adds a job of a request to this URL: it begins when it is handed over.
    pub fn add(&mut self, url: &str, job: J) {
        let own = usize::try_from(hash_of_host(url)).unwrap_or(0) % self.lanes.len().max(1);
        let least = self.lanes.iter().map(|lane| lane.under_way).min().unwrap_or(0);
        let is_free = |place: &usize| {
            self.lanes.get(*place).is_some_and(|lane| lane.under_way <= least + AHEAD_MAX)
        };
        // The host's own thread, or else the next one that has not much more to do than others.
        let place = (own..self.lanes.len()).chain(0..own).find(is_free).unwrap_or(0);
        let Some(lane) = self.lanes.get_mut(place) else { return };
        lane.under_way += 1;
        lane.jobs.push(job);
        if lane.jobs.len() >= HAND_OVER {
            lane.inbox.put(&mut lane.jobs);
        }
    }

    /// Hands over what was added.
    pub fn hand_over(&mut self) {
        for lane in &mut self.lanes {
            lane.inbox.put(&mut lane.jobs);
        }
    }

    /// Waits until another attempt has ended. Loses none when it is dropped.
    pub async fn next(&mut self) -> R {
        loop {
            if let Some(result) = self.pop() {
                return result;
            }
            self.arrived.extend(self.ended.take().await);
        }
    }

    /// The next attempt that has ended already.
    pub fn try_next(&mut self) -> Option<R> {
        if self.arrived.is_empty() {
            self.arrived.extend(self.ended.try_take());
        }
        self.pop()
    }

    fn pop(&mut self) -> Option<R> {
        loop {
            let (place, result) = self.arrived.pop_front()?;
            if let Some(lane) = self.lanes.get_mut(place) {
                lane.under_way = lane.under_way.saturating_sub(1);
            }
            if result.is_some() {
                return result;
            }
        }
    }
}

/// Host and port of the URL, as a number: only which thread a request goes to depends on it.
fn hash_of_host(url: &str) -> u64 {
    let (_, rest) = url.split_once("//").unwrap_or(("", url));
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    host.hash(&mut hasher);
    // On a machine of 32 bits the lower half of it will do.
    hasher.finish() & u64::from(u32::MAX)
}

/// What one thread does: makes attempts, and tells what has become of all those that have just ended.
async fn work<J, R, M, F>(
    place: usize,
    jobs: Arc<Mailbox<J>>,
    ended: Arc<Mailbox<(usize, Option<R>)>>,
    make: M,
) where
    M: Fn(J) -> F,
    F: Future<Output = R> + Send + 'static,
    R: Send + 'static,
{
    let mut attempts = JoinSet::new();
    let mut results = Vec::new();
    loop {
        tokio::select! {
            biased;
            Some(first) = attempts.join_next(), if !attempts.is_empty() => {
                // One that panicked has no result.
                results.push((place, first.ok()));
                while let Some(next) = attempts.try_join_next() {
                    results.push((place, next.ok()));
                }
                ended.put(&mut results);
            }
            jobs = jobs.take() => {
                for job in jobs {
                    attempts.spawn(make(job));
                }
            }
        }
    }
}

/// Things that one task takes, all at once.
struct Mailbox<T> {
    held: Mutex<Vec<T>>,
    put: Notify,
}

impl<T> Mailbox<T> {
    fn new() -> Self {
        Self { held: Mutex::new(Vec::new()), put: Notify::new() }
    }

    /// Leaves the given list empty.
    fn put(&self, things: &mut Vec<T>) {
        if things.is_empty() {
            return;
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let is_told = !held.is_empty();
        held.append(things);
        drop(held);
        // All that is held is taken at once: whoever is told of some finds the rest.
        if !is_told {
            self.put.notify_one();
        }
    }

    /// Waits until there is something. Takes nothing when it is dropped before.
    async fn take(&self) -> Vec<T> {
        loop {
            let put = self.put.notified();
            let things = self.try_take();
            if !things.is_empty() {
                return things;
            }
            put.await;
        }
    }

    fn try_take(&self) -> Vec<T> {
        std::mem::take(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn attempts_return_each_result_once_and_none_of_one_that_panics() {
        let mut attempts = Attempts::new(&Sender::Log, |n: u32| async move {
            tokio::time::sleep(Duration::from_millis((n % 7).into())).await;
            assert!(n != 13, "as it should");
            n
        });
        for n in 0..100 {
            attempts.add("http://a.example/", n);
        }
        attempts.hand_over();
        let mut results = Vec::new();
        while results.len() < 99 {
            results.push(attempts.next().await);
            while let Some(result) = attempts.try_next() {
                results.push(result);
            }
        }
        results.sort_unstable();
        assert_eq!(results, (0..100).filter(|n| *n != 13).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn attempts_are_given_up_with_what_holds_them() {
        let (told, mut dropped) = tokio::sync::mpsc::channel::<()>(1);
        let mut attempts = Attempts::new(&Sender::Log, move |()| {
            let told = told.clone();
            async move {
                std::future::pending::<()>().await;
                drop(told);
            }
        });
        attempts.add("http://a.example/", ());
        attempts.hand_over();
        assert!(attempts.try_next().is_none());
        drop(attempts);
        assert_eq!(dropped.recv().await, None);
    }

    #[test]
    fn host_of_a_url_decides_and_nothing_else_of_it() {
        let same =
            ["https://a.example/1", "https://a.example?2", "https://a.example", "//a.example#3"];
        assert!(same.iter().all(|url| hash_of_host(url) == hash_of_host(same[0])));
        assert_ne!(hash_of_host("https://b.example/1"), hash_of_host(same[0]));
    }
}
