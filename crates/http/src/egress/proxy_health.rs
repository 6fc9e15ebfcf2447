//! Whether `egress.proxy` does its part: whose fault it is that there is no tunnel, and whether the proxy is to be
//! asked for one now.
//!
//! ```text
//! out of reach, no HTTP, 407, silent to all ───────────────────────► the proxy's: nobody is sent anything
//! no to one address ─┬─ it has opened none yet ────────────────────► the proxy's
//!                    ├─ nor for any of three hosts, nor any more for
//!                    │  one of the last three that it opened one for ► the proxy's
//!                    └─ else ──────────────────────────────────────► the endpoint's
//! ```
//!
//! What strangers' addresses may bring about is never the proxy's fault by itself: else three endpoints that are dead
//! would stop everybody's deliveries. So an address that it never opened a tunnel to says nothing of the proxy, and
//! one that it did may have died since: only three together, of different hosts, speak against it.
//!
//! While it fails and does not answer, it is asked once in [`PACE`], however many wait. While it answers and opens no
//! tunnel, each host is asked for once: the next one may be one that it reaches. After that they have their turns.

use core::net::SocketAddr;
use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use url::Host;

/// How often a proxy that fails is asked for a tunnel.
const PACE: Duration = Duration::from_secs(1);

/// A trouble is over when nobody has asked for a tunnel for so long, beyond the time for a connection: what waits asks
/// every 5 s.
const LASTS: Duration = Duration::from_secs(10);

/// Of so many hosts in a row that it opens no tunnel to, none may be to blame. And so many that it did open one to are
/// asked for then.
const HOSTS: usize = 3;

/// Of the hosts that it opens no tunnel to, so many are asked for again in [`PACE`]: little for a proxy that answers, and
/// one that it reaches by now is soon found among many that are dead.
const TURNS: u32 = 8;

/// However many they are, each has a turn in this time.
const TURN_LATEST: Duration = Duration::from_secs(30);

/// Hosts that have turns; those beyond share one in [`PACE`].
const TURNS_MAX: usize = 10_000;

/// What is wrong with the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyTrouble {
    /// Since when.
    pub since: Instant,
    /// Why, without secrets.
    pub reason: String,
}

/// Who is to blame that the proxy said no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blame {
    /// The address.
    Endpoint,
    /// The address, if the proxy opens a tunnel to one of these now; else the proxy.
    Unless(Vec<Opened>),
    /// The proxy: it has opened none yet, or to none of those a moment ago.
    Proxy,
}

/// Where the proxy opened a tunnel to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The URL's host.
    pub host: Host,
    /// Its address.
    pub address: SocketAddr,
}

/// What is known of the proxy.
#[derive(Debug)]
pub struct ProxyHealth {
    /// For a connection.
    patience: Duration,
    spell: Option<Spell>,
    /// Where it opened the last tunnels to, in this order.
    ///
    /// Invariant: at most [`HOSTS`], and no two with the same name or the same address.
    opened: Vec<Opened>,
    /// Hosts that it opened none to, since something came through it; fewer than [`HOSTS`].
    refused: Vec<Host>,
}

#[derive(Debug)]
struct Spell {
    trouble: ProxyTrouble,
    /// When somebody last asked.
    asked: Instant,
    /// Whether it answers, and opens no tunnel.
    answers: bool,
    /// When it is asked again, if it does not answer.
    next: Instant,
    /// And if it does, when it was last asked for these.
    ///
    /// Invariant: at most [`TURNS_MAX`].
    hosts: HashMap<Host, Instant>,
    /// When it is asked again for those that it opened tunnels to before.
    next_opened: Instant,
}

impl ProxyHealth {
    /// Nothing is known yet. `patience` is for a connection.
    #[must_use]
    pub const fn new(patience: Duration) -> Self {
        Self { patience, spell: None, opened: Vec::new(), refused: Vec::new() }
    }

    /// Whether the proxy is to be asked for a tunnel to this host now.
    ///
    /// # Errors
    /// Why not: what is wrong with it.
    pub fn admit(&mut self, host: &Host, now: Instant) -> Result<(), String> {
        self.spell = self.spell.take().filter(|spell| spell.lasts(now, self.patience));
        let Some(spell) = &mut self.spell else { return Ok(()) };
        spell.asked = now;
        if spell.admits(host, now) { Ok(()) } else { Err(spell.trouble.reason.clone()) }
    }

    /// It opened a tunnel.
    pub fn opened(&mut self, to: Opened) {
        self.spell = None;
        self.refused.clear();
        // What has the same name or address would die with it.
        let is_other =
            |other: &Opened| other.host != to.host && other.address.ip() != to.address.ip();
        self.opened.retain(is_other);
        if self.opened.len() >= HOSTS {
            self.opened.remove(0);
        }
        self.opened.push(to);
    }

    /// Somebody answered through a tunnel, which may be an old one.
    pub fn answered(&mut self) {
        self.refused.clear();
    }

    /// It fails, whoever is asked for.
    pub fn failed(&mut self, reason: String, now: Instant) {
        self.begin(reason, now).answers = false;
    }

    /// It opens no tunnel to this host, and is to blame for it.
    pub fn opens_none(&mut self, host: &Host, reason: String, now: Instant) {
        let spell = self.begin(reason, now);
        spell.answers = true;
        spell.note(host, now);
    }

    /// The spell that lasts, or a new one.
    fn begin(&mut self, reason: String, now: Instant) -> &mut Spell {
        let patience = self.patience;
        let lasting = self.spell.take().filter(|spell| spell.lasts(now, patience));
        let mut spell = lasting.unwrap_or_else(|| Spell {
            trouble: ProxyTrouble { since: now, reason: String::new() },
            asked: now,
            answers: false,
            next: now + PACE,
            hosts: HashMap::new(),
            next_opened: now + PACE,
        });
        (spell.trouble.reason, spell.asked) = (reason, now);
        self.spell.insert(spell)
    }

    /// It answered, and opened no tunnel to this host.
    pub fn refused(&mut self, host: &Host, now: Instant) -> Blame {
        if self.opened.is_empty() {
            return Blame::Proxy;
        }
        if self.opened.len() < HOSTS {
            // It answers, and too few could speak against it.
            self.spell = None;
            return Blame::Endpoint;
        }
        let patience = self.patience;
        if let Some(spell) = self.spell.as_mut().filter(|spell| spell.lasts(now, patience)) {
            if now < spell.next_opened {
                return Blame::Proxy;
            }
            spell.next_opened = now + PACE;
            return Blame::Unless(self.opened.clone());
        }
        if !self.refused.contains(host) {
            self.refused.push(host.clone());
        }
        if self.refused.len() < HOSTS {
            return Blame::Endpoint;
        }
        self.refused.clear();
        Blame::Unless(self.opened.clone())
    }

    /// What is wrong with it now.
    #[must_use]
    pub fn trouble(&self, now: Instant) -> Option<ProxyTrouble> {
        let spell = self.spell.as_ref().filter(|spell| spell.lasts(now, self.patience));
        spell.map(|spell| spell.trouble.clone())
    }
}

impl Spell {
    fn admits(&mut self, host: &Host, now: Instant) -> bool {
        if self.answers {
            let hosts = u32::try_from(self.hosts.len()).unwrap_or(u32::MAX);
            let every = (PACE * hosts / TURNS).clamp(PACE, TURN_LATEST);
            let is_soon = self.hosts.get(host).is_some_and(|asked| now < *asked + every);
            if is_soon {
                return false;
            }
            if self.note(host, now) {
                return true;
            }
        }
        if now < self.next {
            return false;
        }
        self.next = now + PACE;
        true
    }

    /// It is asked for this host. False: there are too many.
    fn note(&mut self, host: &Host, now: Instant) -> bool {
        let is_noted = self.hosts.len() < TURNS_MAX || self.hosts.contains_key(host);
        if is_noted {
            self.hosts.insert(host.clone(), now);
        }
        is_noted
    }

    fn lasts(&self, now: Instant, patience: Duration) -> bool {
        now < self.asked + patience + LASTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u32) -> Host {
        Host::Domain(format!("h{n}.example"))
    }

    /// A tunnel to this host, at this address.
    fn tunnel(n: u32, address: u8) -> Opened {
        Opened { host: host(n), address: ([192, 0, 2, address], 443).into() }
    }

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn proxy_that_fails_is_asked_once_a_second_until_it_opens_a_tunnel() {
        let (mut health, start) = (ProxyHealth::new(Duration::from_secs(10)), Instant::now());
        assert_eq!(health.admit(&host(1), start), Ok(()));
        // Of many that are under way, each fails.
        for ms in 0..100 {
            health.failed("refused".into(), after(start, ms));
        }
        let asked = |health: &mut ProxyHealth, from: u64| {
            let admitted = |ms: &u64| {
                // Each time another one.
                let host = host(u32::try_from(*ms).unwrap());
                health.admit(&host, after(start, *ms)).is_ok()
            };
            (from..from + 5_000).filter(admitted).count()
        };
        assert_eq!(asked(&mut health, 1_000), 5);
        assert_eq!(health.admit(&host(1), after(start, 5_999)), Err("refused".into()));
        health.failed("it answered 407".into(), after(start, 6_000));
        let trouble = health.trouble(after(start, 6_000)).unwrap();
        assert_eq!((trouble.since, &*trouble.reason), (start, "it answered 407"));
        health.opened(tunnel(7, 7));
        assert_eq!(health.trouble(after(start, 6_000)), None);
        assert_eq!(asked(&mut health, 6_000), 5_000);
    }

    #[test]
    fn trouble_is_over_when_nobody_asks_any_more() {
        let (mut health, start) = (ProxyHealth::new(Duration::from_secs(10)), Instant::now());
        health.failed("refused".into(), start);
        assert!(health.trouble(after(start, 19_999)).is_some());
        assert!(health.admit(&host(1), after(start, 19_000)).is_ok());
        assert!(health.trouble(after(start, 38_999)).is_some(), "one is under way");
        assert_eq!(health.trouble(after(start, 39_000)), None);
        health.failed("refused".into(), after(start, 50_000));
        let since = health.trouble(after(start, 50_000)).unwrap().since;
        assert_eq!(since, after(start, 50_000), "that is another one");
    }

    /// It opened tunnels to hosts 7, 8 and 9.
    fn open_for_three(health: &mut ProxyHealth) -> Blame {
        let opened = [(7, 7), (8, 8), (9, 9)].map(|(n, address)| tunnel(n, address));
        opened.iter().for_each(|to| health.opened(to.clone()));
        Blame::Unless(opened.to_vec())
    }

    #[test]
    fn one_address_is_to_blame_where_others_get_tunnels() {
        let (mut health, now) = (ProxyHealth::new(Duration::from_secs(10)), Instant::now());
        assert_eq!(health.refused(&host(1), now), Blame::Proxy, "it has opened none yet");
        let unless = open_for_three(&mut health);
        for _ in 0..100 {
            assert_eq!(health.refused(&host(1), now), Blame::Endpoint);
            assert_eq!(health.refused(&host(2), now), Blame::Endpoint);
        }
        health.answered();
        assert_eq!(health.refused(&host(3), now), Blame::Endpoint);
        assert_eq!(health.refused(&host(1), now), Blame::Endpoint);
        assert_eq!(health.refused(&host(2), now), unless);
        assert_eq!(health.refused(&host(1), now), Blame::Endpoint, "those were asked");
        // While it fails nobody is to blame whose refusal says nothing of others.
        health.opens_none(&host(2), "it answered 503".into(), now);
        assert_eq!(health.refused(&host(1), now), Blame::Proxy, "those were asked just now");
        assert_eq!(health.refused(&host(1), now + PACE), unless);
        assert_eq!(health.refused(&host(2), now + PACE), Blame::Proxy);
    }

    #[test]
    fn proxy_is_blamed_by_three_hosts_that_it_opened_tunnels_to_and_by_no_others() {
        let (mut health, now) = (ProxyHealth::new(Duration::from_secs(10)), Instant::now());
        health.opened(tunnel(1, 1));
        // The one that worked has died too, and others are as dead.
        for n in 1..100 {
            assert_eq!(health.refused(&host(n), now), Blame::Endpoint);
        }
        // Other addresses of the name, and other names of the address.
        for (n, address) in [(1, 2), (1, 3), (1, 4), (2, 4), (3, 4)] {
            health.opened(tunnel(n, address));
        }
        health.opened(tunnel(4, 1));
        for n in 1..100 {
            assert_eq!(health.refused(&host(n), now), Blame::Endpoint);
        }
        // It was out of reach, and says no now: that was another trouble.
        health.failed("refused".into(), now);
        assert_eq!(health.refused(&host(1), now), Blame::Endpoint);
        assert_eq!(health.trouble(now), None);

        let unless = open_for_three(&mut health);
        let blamed: Vec<_> = (1..=6).map(|n| health.refused(&host(n), now)).collect();
        let [no, yes] = [Blame::Endpoint, unless];
        assert_eq!(blamed, [&no, &no, &yes, &no, &no, &yes].map(Blame::clone), "the last three");
    }

    #[test]
    fn proxy_that_answers_is_asked_for_each_host_once_and_then_for_them_in_turn() {
        let (mut health, start) = (ProxyHealth::new(Duration::from_secs(10)), Instant::now());
        health.opens_none(&host(0), "it answered 403".into(), start);
        let mut asked: HashMap<u32, Vec<u64>> = HashMap::new();
        // The first hosts want a tunnel more often than the others, and come before them.
        for ms in (0..120_000).step_by(50) {
            let waiting = (0..60).chain((60..120).filter(|n| (ms / 50 + u64::from(*n)) % 100 == 0));
            for n in waiting {
                if health.admit(&host(n), after(start, ms)).is_ok() {
                    asked.entry(n).or_default().push(ms);
                }
            }
        }
        let first = |n: u32| asked[&n][0];
        assert!((1..60).all(|n| first(n) == 0) && (60..120).all(|n| first(n) <= 5_000));
        let all = || asked.values().flatten();
        let most = (10..120).map(|s| all().filter(|ms| **ms / 1_000 == s).count()).max().unwrap();
        let sum = all().count();
        assert!(most <= 120 && sum <= 120 + 120 * 8, "{most} in a second, {sum} of all");
        let gaps = asked.values().flat_map(|times| times.windows(2).map(|pair| pair[1] - pair[0]));
        let (shortest, longest) = gaps.fold((u64::MAX, 0), |(a, b), gap| (a.min(gap), b.max(gap)));
        assert!(shortest >= 1_000 && longest <= 15_000 + 5_000, "{shortest} to {longest} ms");
        health.opened(tunnel(7, 7));
        assert!((0..1_000).all(|_| health.admit(&host(1), after(start, 120_000)).is_ok()));

        // Too many to be remembered: the others share a turn.
        for n in 0..20_000 {
            health.opens_none(&host(n), "it answered 403".into(), after(start, 121_000));
        }
        let asked =
            (20_000..21_000).filter(|n| health.admit(&host(*n), after(start, 122_000)).is_ok());
        assert_eq!(asked.count(), 1);
    }
}
