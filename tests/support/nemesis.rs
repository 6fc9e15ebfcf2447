//! Faults by seed, against two instances in traffic.
//!
//! In each round something lasting is the matter (a network that swallows everything, a frozen leader,
//! endpoints that hang), and while it is something sudden happens (SIGKILL, a crash of the server).
//! Which, in which order and for how long is a function of the seed; what the program is doing at
//! that moment is not, so that a seed which failed may need a few runs to fail again.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep, timeout};
use walhook_postgres::sql::Connection;
use walhook_process::clock::unix_us;
use walhook_testkit::cluster::StopMode;
use walhook_testkit::receiver::Behaviour;

use super::audit::End;
use super::told::Told;
use super::{PATIENCE, Running, World, answers, get};
use walhook_testkit::proxy::{Network, Proxy};

/// What is the matter for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasting {
    Nothing,
    /// What lies between the program and the stream, the tables of state, or some of the endpoints.
    Source(Network),
    State(Network),
    Endpoints(Network),
    /// The receiver takes requests and never answers.
    EndpointsHang,
    /// It refuses all of them.
    EndpointsFail,
    /// Nothing can be stored.
    LeaseLocked,
    /// SIGSTOP for the leader, then SIGCONT.
    LeaderFrozen,
}

/// What happens meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sudden {
    Nothing,
    LeaderKilled,
    StandbyKilled,
    StreamTerminated,
    SessionsTerminated,
    ServerRestarted,
    ServerCrashed,
    EndpointsTruncated,
    EndpointsAltered,
}

const DELAY: Network = Network::Delays(Duration::from_millis(30));

const LASTING: [Lasting; 14] = [
    Lasting::Nothing,
    Lasting::Source(DELAY),
    Lasting::Source(Network::Cuts),
    Lasting::Source(Network::Swallows),
    Lasting::State(DELAY),
    Lasting::State(Network::Cuts),
    Lasting::State(Network::Swallows),
    Lasting::Endpoints(DELAY),
    Lasting::Endpoints(Network::Cuts),
    Lasting::Endpoints(Network::Swallows),
    Lasting::EndpointsHang,
    Lasting::EndpointsFail,
    Lasting::LeaseLocked,
    Lasting::LeaderFrozen,
];

const SUDDEN: [Sudden; 9] = [
    Sudden::Nothing,
    Sudden::LeaderKilled,
    Sudden::StandbyKilled,
    Sudden::StreamTerminated,
    Sudden::SessionsTerminated,
    Sudden::ServerRestarted,
    Sudden::ServerCrashed,
    Sudden::EndpointsTruncated,
    Sudden::EndpointsAltered,
];

/// One round as it went.
#[derive(Debug)]
pub(crate) struct Round {
    /// What was done, and when, for a person.
    pub(crate) log: String,
    /// Requests that were in flight when it began.
    pub(crate) in_flight: u64,
    /// What the receiver knew then.
    pub(crate) end: End,
}

struct Instance {
    admin: SocketAddr,
    running: Running,
    /// What it had counted when it was last asked.
    told: Told,
}

/// Two running instances, and the network around them.
pub(crate) struct Nemesis {
    rng: SmallRng,
    began: Instant,
    instances: Vec<Instance>,
    source: Proxy,
    state: Proxy,
    endpoints: Proxy,
    altered: bool,
    /// What instances had counted when they were killed.
    told: Told,
    /// What it has done so far.
    pub(crate) rounds: Vec<Round>,
}

impl Nemesis {
    /// Puts itself between the program, the server and the endpoints named, and starts two instances.
    pub(crate) async fn start(world: &mut World, seed: u64, behind: &[i64]) -> Result<Self> {
        let server = SocketAddr::from(([127, 0, 0, 1], world.cluster.port()));
        let source = Proxy::start(server).await?;
        let state = Proxy::start(server).await?;
        let endpoints = Proxy::start(world.mock.address()).await?;
        let through = |proxy: &Proxy| format!("postgres://postgres@{}/postgres", proxy.address());
        world.env = vec![
            ("WALHOOK_SOURCE__URL".to_owned(), through(&source)),
            ("WALHOOK_STATE__URL".to_owned(), through(&state)),
        ];
        let (from, to) = (world.mock.address().to_string(), endpoints.address().to_string());
        let sql = "UPDATE webhooks SET url = replace(url, $1, $2) WHERE id = ANY($3)";
        world.sql.execute(sql, &[&from, &to, &behind]).await?;
        let mut instances = Vec::new();
        for _ in 0..2 {
            let admin = walhook_testkit::address::free_address()?;
            instances.push(Instance {
                admin,
                running: spawn(world, admin)?,
                told: Told::default(),
            });
        }
        let (rng, began) = (SmallRng::seed_from_u64(seed), Instant::now());
        let (altered, told, rounds) = (false, Told::default(), Vec::new());
        let nemesis =
            Self { rng, began, instances, source, state, endpoints, altered, told, rounds };
        nemesis.leader().await?;
        Ok(nemesis)
    }

    /// Strikes once, and puts everything right again.
    pub(crate) async fn strike(&mut self, world: &mut World) -> Result<()> {
        let lasting = *LASTING.choose(&mut self.rng).context("no fault")?;
        let sudden = *SUDDEN.choose(&mut self.rng).context("no fault")?;
        let (before, after) = (self.pause(), self.pause());
        self.leader().await?;
        self.rounds.push(Round {
            log: format!("{:>7.3?} {lasting:?} + {sudden:?}", self.began.elapsed()),
            in_flight: world.mock.stats().in_flight,
            end: End { received: world.mock.stats().received, at_unix_us: unix_us() },
        });
        let (frozen, lock) = self.begin(world, lasting).await?;
        sleep(before).await;
        self.happen(world, sudden).await?;
        sleep(after).await;
        drop(lock);
        self.heal(world);
        if let Some(frozen) = frozen {
            // It may have been killed meanwhile, and be another process now.
            self.instances[frozen].running.signal("CONT")?;
        }
        sleep(self.pause()).await;
        self.none_gave_up()
    }

    /// Waits until one leads, and returns which.
    pub(crate) async fn leader(&self) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (number, instance) in self.instances.iter().enumerate() {
                if leads(instance.admin).await {
                    return Ok(number);
                }
            }
            ensure!(Instant::now() < deadline, "nobody leads:\n{}", self.logs());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// What both instances have logged last.
    pub(crate) fn logs(&self) -> String {
        let tail = |instance: &Instance| {
            let log = instance.running.log();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(40)..].join("\n")
        };
        self.instances.iter().map(tail).collect::<Vec<_>>().join("\n--- the other instance\n")
    }

    fn pause(&mut self) -> Duration {
        // Now and then long enough for every time-out on the way.
        let longest = if self.rng.random_ratio(1, 5) { 3_500 } else { 900 };
        Duration::from_millis(self.rng.random_range(0..longest))
    }

    async fn begin(
        &mut self,
        world: &World,
        lasting: Lasting,
    ) -> Result<(Option<usize>, Option<Connection>)> {
        match lasting {
            Lasting::Nothing => {}
            Lasting::Source(network) => self.source.set(network),
            Lasting::State(network) => self.state.set(network),
            Lasting::Endpoints(network) => self.endpoints.set(network),
            Lasting::EndpointsHang => world.mock.set_default(Behaviour::hang()),
            Lasting::EndpointsFail => world.mock.set_default(Behaviour::flaky(1.0)),
            Lasting::LeaseLocked => {
                let holder = world.connect().await?;
                holder.batch_execute("BEGIN; SELECT FROM walhook.lease FOR UPDATE").await?;
                return Ok((None, Some(holder)));
            }
            Lasting::LeaderFrozen => {
                let leader = self.leader().await?;
                // It may be killed while it cannot answer.
                self.instances[leader].ask().await;
                self.instances[leader].running.signal("STOP")?;
                return Ok((Some(leader), None));
            }
        }
        Ok((None, None))
    }

    fn heal(&self, world: &World) {
        for proxy in [&self.source, &self.state, &self.endpoints] {
            proxy.set(Network::Passes);
        }
        world.mock.clear_default();
    }

    async fn happen(&mut self, world: &mut World, sudden: Sudden) -> Result<()> {
        let terminate = |which: &str| {
            format!(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                 WHERE application_name LIKE 'walhook%' AND {which}"
            )
        };
        match sudden {
            Sudden::Nothing => {}
            Sudden::LeaderKilled => self.kill(world, true).await?,
            Sudden::StandbyKilled => self.kill(world, false).await?,
            Sudden::StreamTerminated => {
                world.value(&terminate("backend_type = 'walsender'")).await?;
            }
            Sudden::SessionsTerminated => drop(world.value(&terminate("true")).await?),
            Sudden::ServerRestarted => self.restart(world, StopMode::Fast).await?,
            Sudden::ServerCrashed => self.restart(world, StopMode::Immediate).await?,
            Sudden::EndpointsTruncated => {
                let sql = "BEGIN; LOCK TABLE webhooks; CREATE TEMP TABLE kept ON COMMIT DROP AS TABLE webhooks;
                           TRUNCATE webhooks; INSERT INTO webhooks TABLE kept; COMMIT";
                world.sql.batch_execute(sql).await?;
            }
            Sudden::EndpointsAltered => {
                let sql = if self.altered {
                    "ALTER TABLE webhooks DROP COLUMN note"
                } else {
                    "ALTER TABLE webhooks ADD COLUMN note text DEFAULT 'new'"
                };
                self.altered = !self.altered;
                world.sql.batch_execute(sql).await?;
            }
        }
        Ok(())
    }

    /// Kills the one that leads, or the other, and starts one in its place. Where nobody leads, either.
    async fn kill(&mut self, world: &mut World, the_leader: bool) -> Result<()> {
        let first_leads = leads(self.instances[0].admin).await;
        let number = usize::from(first_leads != the_leader);
        let admin = self.instances[number].admin;
        self.none_gave_up()?;
        let instance = &mut self.instances[number];
        instance.ask().await;
        instance.running.kill_and_wait().await?;
        self.told += std::mem::take(&mut instance.told);
        instance.running = spawn(world, admin)?;
        Ok(())
    }

    /// What all lives counted, but for what one did within the last moment of its life.
    pub(crate) async fn told(&mut self) -> Told {
        let mut sum = self.told;
        for instance in &mut self.instances {
            instance.ask().await;
            sum += instance.told;
        }
        sum
    }

    async fn restart(&mut self, world: &mut World, mode: StopMode) -> Result<()> {
        world.cluster.stop(mode).await?;
        world.cluster.start_again().await?;
        world.reconnect().await
    }

    /// Whatever happens, an instance waits for better times instead of ending.
    fn none_gave_up(&mut self) -> Result<()> {
        for instance in &mut self.instances {
            if let Some(status) = instance.running.has_ended()? {
                bail!("an instance gave up, {status}:\n{}", instance.running.log());
            }
        }
        Ok(())
    }
}

impl Instance {
    /// What it has counted so far. A frozen one says nothing, and is as it was.
    async fn ask(&mut self) {
        let asked = timeout(Duration::from_secs(2), get(self.admin, "/metrics")).await;
        if let Ok(Ok((_, metrics))) = asked {
            self.told = Told::by(&metrics);
        }
    }
}

fn spawn(world: &mut World, admin: SocketAddr) -> Result<Running> {
    world.spawn_with(&[("WALHOOK_ADMIN__LISTEN", &admin.to_string())])
}

/// Whether an instance says that it leads; a frozen one says nothing.
async fn leads(admin: SocketAddr) -> bool {
    timeout(Duration::from_millis(500), answers(admin, "/leaderz")).await.unwrap_or(false)
}
