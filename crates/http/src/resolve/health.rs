//! Whether this machine's name servers answer at all, for whoever is woken at night: to each endpoint it looks as if its
//! own name failed.
//!
//! ```text
//! a name is answered for, be it that there is none ─► they work
//! three names in a row are not ─► the last three that were, are asked for too ─► none is ─► they fail
//! ```
//!
//! A name server says of one name that it fails (SERVFAIL), or nothing, where that name's own servers are out of order. So
//! three such names say nothing of those that this machine asks; that names fail which had addresses before does. Nothing
//! is decided by this: it is told.

use std::time::Duration;

use tokio::time::Instant;

/// So many names in a row that nobody answered for are suspicious, and of so many that were answered is it asked then.
const NAMES: usize = 3;

/// How often those are asked for.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// It is over when nobody has asked for a name for so long: a name that nobody answered for is left alone for a minute,
/// and a question takes some seconds.
const LASTS: Duration = Duration::from_secs(120);

/// Names are not resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamesTrouble {
    /// Since when.
    pub since: Instant,
    /// Why; names no name.
    pub reason: String,
}

/// What is known of the name servers.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// The last names that had addresses; at most [`NAMES`], no two alike.
    answered: Vec<String>,
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    last: Instant,
    reason: String,
    /// Names that nobody answered for, no two alike: the first [`NAMES`], and those of `answered`.
    names: Vec<String>,
    /// When those of `answered` are asked for.
    ask_at: Instant,
}

impl Health {
    /// The name servers answered; `name` is what had addresses.
    pub(super) fn answered(&mut self, name: Option<&str>) {
        self.failing = None;
        let Some(name) = name else { return };
        self.answered.retain(|known| known != name);
        if self.answered.len() >= NAMES {
            self.answered.remove(0);
        }
        self.answered.push(name.to_owned());
    }

    /// Nobody answered for this name, or only that it cannot be told. Returns the names to ask for now, so that it is known
    /// whose fault that is.
    pub(super) fn unanswered(&mut self, name: &str, reason: &str, now: Instant) -> Vec<String> {
        let lasting = self.failing.take().filter(|failing| failing.lasts(now));
        let mut failing = lasting.unwrap_or_else(|| Failing {
            since: now,
            last: now,
            reason: String::new(),
            names: Vec::new(),
            ask_at: now,
        });
        failing.last = now;
        reason.clone_into(&mut failing.reason);
        let is_news = !failing.names.iter().any(|known| known == name);
        if is_news && (failing.names.len() < NAMES || self.answered.iter().any(|it| it == name)) {
            failing.names.push(name.to_owned());
        }
        let asks = failing.names.len() >= NAMES && failing.ask_at <= now;
        if asks {
            failing.ask_at = now + ASK_AGAIN;
        }
        self.failing = Some(failing);
        if asks { self.answered.clone() } else { Vec::new() }
    }

    /// What is wrong with them now.
    pub(super) fn trouble(&self, now: Instant) -> Option<NamesTrouble> {
        let failing = self.failing.as_ref().filter(|failing| failing.lasts(now))?;
        let all = self.answered.iter().all(|name| failing.names.contains(name));
        (all && failing.names.len() >= NAMES).then(|| NamesTrouble {
            since: failing.since,
            reason: format!(
                "no name was answered for since then; the last one: {}",
                failing.reason
            ),
        })
    }
}

impl Failing {
    fn lasts(&self, now: Instant) -> bool {
        now < self.last + LASTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHY: &str = "the name servers say Server Failure";

    fn fail(health: &mut Health, names: &[&str], now: Instant) -> Vec<String> {
        names.iter().flat_map(|name| health.unanswered(name, WHY, now)).collect()
    }

    #[test]
    fn names_of_others_that_fail_say_nothing_while_those_that_were_answered_are_not_asked_for() {
        let (mut health, now) = (Health::default(), Instant::now());
        for name in ["old", "a", "b", "c", "a"] {
            health.answered(Some(name));
        }
        assert_eq!(fail(&mut health, &["x", "y", "x", "y"], now), [""; 0]);
        assert_eq!(fail(&mut health, &["z"], now), ["b", "c", "a"]);
        assert_eq!(health.trouble(now), None);
        // They are asked for once in a while, however many fail; and one that is answered clears all of it.
        assert_eq!(fail(&mut health, &["x", "y", "v", "w", "a", "b"], now), [""; 0]);
        assert_eq!(health.trouble(now), None);
        health.answered(None);
        assert_eq!(fail(&mut health, &["c", "a"], now + ASK_AGAIN), [""; 0]);
        assert_eq!(health.trouble(now), None);
    }

    #[test]
    fn trouble_is_that_names_fail_which_were_answered_and_lasts_while_somebody_asks() {
        let (mut health, now) = (Health::default(), Instant::now());
        // None was answered yet: there are no others to ask for.
        assert_eq!(fail(&mut health, &["x", "y", "z"], now), [""; 0]);
        let trouble = health.trouble(now).unwrap();
        assert!(trouble.reason.ends_with(WHY) && trouble.since == now, "{trouble:?}");
        health.answered(Some("a"));
        assert_eq!(health.trouble(now), None);

        assert_eq!(fail(&mut health, &["x", "y", "z"], now), ["a"]);
        let later = now + Duration::from_secs(60);
        fail(&mut health, &["a"], later);
        assert_eq!(health.trouble(later).unwrap().since, now);
        assert!(health.trouble(later + LASTS - ASK_AGAIN).is_some());
        assert_eq!(health.trouble(later + LASTS), None, "nobody asks any more");
        assert_eq!(fail(&mut health, &["x"], later + LASTS), [""; 0]);
        assert_eq!(health.trouble(later + LASTS), None);
    }
}
