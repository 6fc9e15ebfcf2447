//! A world for one test: a cluster, the customer's tables, a receiver, and the program as a child.

pub(crate) mod audit;
pub(crate) mod nemesis;
pub(crate) mod proxy;
pub(crate) mod tls;
pub(crate) mod traffic;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use walhook_core::endpoint::Secret;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};
use walhook_testkit::cluster::Cluster;
use walhook_testkit::program::without_pipeline;
use walhook_testkit::receiver::{Received, Receiver, Settings};
use walhook_testkit::sign::with_one_of;

/// The secret of every endpoint that [`World::hook`] registers.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Far beyond what anything here takes: a wait that reaches it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The usual tables, which [`World::with`] creates.
pub const SCHEMA: &str = "
    CREATE TABLE subscribers (id bigint PRIMARY KEY, account_id bigint NOT NULL, email text, status text);
    ALTER TABLE subscribers REPLICA IDENTITY FULL;
    CREATE TABLE webhooks (id bigint PRIMARY KEY, account_id bigint NOT NULL, url text NOT NULL,
        event_types text[] NOT NULL DEFAULT '{*}', secret text, enabled boolean NOT NULL DEFAULT true);
    CREATE INDEX ON webhooks (account_id)";

/// The usual rules: an event for each insert, update and delete of a subscriber.
pub const RULES: &str = r#"
[[events]]
type = "subscriber.created"
table = "public.subscribers"
on = ["insert"]
account = "account_id"
columns = ["id", "email", "status"]

[[events]]
type = "subscriber.updated"
table = "public.subscribers"
on = ["update"]
account = "account_id"
columns = ["id", "email", "status"]

[[events]]
type = "subscriber.deleted"
table = "public.subscribers"
on = ["delete"]
account = "account_id"
columns = ["id", "email", "status"]
"#;

/// All that a test stands on. Dropped, it leaves nothing behind.
pub struct World {
    pub cluster: Cluster,
    pub sql: Connection,
    pub mock: Receiver,
    pub admin: SocketAddr,
    /// Variables in the environment of every command, such as another address of the server.
    pub env: Vec<(String, String)>,
    dir: TempDir,
    runs: u32,
}

/// A running `walhook run`; killed when dropped.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl World {
    /// A cluster with the customer's tables, set up by `walhook setup`.
    pub async fn new() -> Result<Self> {
        Self::with("", RULES, &[]).await
    }

    /// As [`World::new`], with further sections of the configuration, other rules, and settings of the
    /// server. The rules' tables are the caller's to create before [`World::set_up`] when they are
    /// not the usual ones; then it uses [`World::bare`].
    pub async fn with(sections: &str, rules: &str, server: &[(&str, &str)]) -> Result<Self> {
        let world = Self::bare(sections, rules, server).await?;
        world.sql.batch_execute(SCHEMA).await?;
        world.set_up().await?;
        Ok(world)
    }

    /// A cluster without any table, and a configuration.
    pub async fn bare(sections: &str, rules: &str, server: &[(&str, &str)]) -> Result<Self> {
        Self::on(Cluster::start_copied(&std::env::temp_dir(), server).await?, sections, rules).await
    }

    /// As [`World::bare`], on this cluster.
    pub async fn on(cluster: Cluster, sections: &str, rules: &str) -> Result<Self> {
        let sql = connect(&cluster).await?;
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let settings = Settings {
            verify: Some(with_one_of(vec![SECRET.to_owned()])),
            keep: 1_000_000,
            ..Settings::default()
        };
        let mock = Receiver::start(any_port, settings).await?;
        let admin = std::net::TcpListener::bind(any_port)?.local_addr()?;
        let dir = TempDir::new()?;
        let config = format!(
            "[source]\nurl = \"{}\"\n[endpoints]\ntable = \"public.webhooks\"\n\
             [egress]\nallow = [\"127.0.0.0/8\"]\n[admin]\nlisten = \"{admin}\"\n\
             [log]\nlevel = \"info,walhook=debug\"\n{sections}\n{rules}",
            cluster.url("postgres")
        );
        std::fs::write(dir.path().join("walhook.toml"), config)?;
        Ok(Self { cluster, sql, mock, admin, env: Vec::new(), dir, runs: 0 })
    }

    /// Changes the configuration's text.
    pub fn edit_config(&self, from: &str, to: &str) -> Result<()> {
        let path = self.dir.path().join("walhook.toml");
        let text = std::fs::read_to_string(&path)?;
        ensure!(text.contains(from), "the configuration does not hold {from:?}");
        Ok(std::fs::write(path, text.replacen(from, to, 1))?)
    }

    /// Replaces the SQL session, after the server was away.
    pub async fn reconnect(&mut self) -> Result<()> {
        self.sql = connect(&self.cluster).await?;
        Ok(())
    }

    /// Waits until a query's first value, as text, is as wanted.
    pub async fn until(&self, sql: &str, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.value(sql).await?;
            if value == wanted {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{sql}: {value:?}, not {wanted:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs `walhook setup`.
    pub async fn set_up(&self) -> Result<()> {
        let output = self.walhook(&["setup"]).await?;
        ensure!(output.status.success(), "setup: {}", text(&output.stderr));
        Ok(())
    }

    /// Runs a command to its end.
    pub async fn walhook(&self, args: &[&str]) -> Result<Output> {
        Ok(timeout(PATIENCE, self.command(args).output()).await??)
    }

    /// As [`World::walhook`], with variables in its environment.
    pub async fn walhook_with(&self, args: &[&str], env: &[(&str, &str)]) -> Result<Output> {
        Ok(timeout(PATIENCE, self.command(args).envs(env.iter().copied()).output()).await??)
    }

    /// Runs a command with `--json` and reads what it prints.
    pub async fn walhook_json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let output = self.walhook(&[args, &["--json"]].concat()).await?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{args:?}: {}{}", text(&output.stdout), text(&output.stderr)))
    }

    /// Runs a command whose standard output nobody reads.
    pub async fn walhook_into_closed_pipe(&self, args: &[&str]) -> Result<Output> {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let mut command = self.command(args);
        let child = command.stdout(Stdio::from(writer)).stderr(Stdio::piped()).spawn()?;
        drop(command);
        Ok(child.wait_with_output().await?)
    }

    /// Starts a command; killed when dropped.
    pub fn start(&self, args: &[&str]) -> Result<Child> {
        Ok(self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    }

    /// As [`World::walhook`], by a process that may have so many files open.
    pub async fn walhook_limited(&self, args: &[&str], files: u32) -> Result<Output> {
        Ok(timeout(PATIENCE, self.limited(args, files).output()).await??)
    }

    /// As [`World::spawn`], likewise.
    pub fn spawn_limited(&mut self, files: u32) -> Result<Running> {
        let command = self.limited(&["run"], files);
        self.spawn_as(command)
    }

    fn limited(&self, args: &[&str], files: u32) -> Command {
        let mut command = Command::new("sh");
        let limit = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
        command.arg("-c").arg(limit).arg(env!("CARGO_BIN_EXE_walhook"));
        self.complete(command, args)
    }

    fn command(&self, args: &[&str]) -> Command {
        self.complete(Command::new(env!("CARGO_BIN_EXE_walhook")), args)
    }

    fn complete(&self, mut command: Command, args: &[&str]) -> Command {
        command.args(args).arg("--config").arg(self.dir.path().join("walhook.toml"));
        command.stdin(Stdio::null()).kill_on_drop(true);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts `walhook run` without waiting for anything.
    pub fn spawn(&mut self) -> Result<Running> {
        self.spawn_with(&[])
    }

    /// As [`World::spawn`], with variables in its environment.
    pub fn spawn_with(&mut self, env: &[(&str, &str)]) -> Result<Running> {
        let mut command = self.command(&["run"]);
        command.envs(env.iter().copied());
        self.spawn_as(command)
    }

    fn spawn_as(&mut self, mut command: Command) -> Result<Running> {
        self.runs += 1;
        let log = self.dir.path().join(format!("run-{}.log", self.runs));
        command.stdout(Stdio::null());
        let child = command.stderr(std::fs::File::create(&log)?).spawn()?;
        Ok(Running { child, log })
    }

    /// Starts `walhook run` and waits until it leads.
    pub async fn run(&mut self) -> Result<Running> {
        let mut running = self.spawn()?;
        running.until_leading(self.admin).await?;
        Ok(running)
    }

    /// Registers an endpoint at the path `/<id>` (and a query for the receiver) of the receiver.
    pub async fn hook(&self, id: i64, account: i64, query: &str) -> Result<()> {
        let url = self.mock.url(&format!("/{id}{query}"));
        let insert = "INSERT INTO webhooks (id, account_id, url, secret) VALUES ($1, $2, $3, $4)";
        self.sql.execute(insert, &[&id, &account, &url, &SECRET]).await?;
        Ok(())
    }

    /// Inserts a subscriber.
    pub async fn subscribe(&self, id: i64, account: i64) -> Result<()> {
        let insert = "INSERT INTO subscribers VALUES ($1, $2, 'a@example.com', 'active')";
        self.sql.execute(insert, &[&id, &account]).await?;
        Ok(())
    }

    /// Waits until endpoints have taken so many different deliveries, and returns all requests.
    pub async fn delivered(&self, distinct: u64) -> Result<Vec<Received>> {
        let what = format!("{distinct} deliveries");
        self.mock.wait_until(&what, PATIENCE, |stats| stats.distinct >= distinct).await?;
        Ok(self.mock.received())
    }

    /// Waits until everything that is committed now is settled and stored, so that what has not been
    /// delivered by then never will be.
    pub async fn settled(&self) -> Result<()> {
        let sql = "SELECT pg_current_wal_insert_lsn()::text";
        let end: String = self.sql.query_one(sql, &[]).await?.get(0);
        let sql = "SELECT frontier >= $1::text::pg_lsn FROM walhook.checkpoint";
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.pulse().await?;
            if self.sql.query_one(sql, &[&end]).await?.get(0) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the checkpoint does not reach {end}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// A commit that lets the frontier pass the last change of ours: one of an account without
    /// endpoints, which is stored sooner than a keepalive, where there are the usual tables.
    async fn pulse(&self) -> Result<()> {
        let event = "INSERT INTO subscribers (id, account_id)
             SELECT least(min(id), 0) - 1, -1 FROM subscribers";
        if self.sql.batch_execute(event).await.is_err() {
            self.sql.batch_execute("SELECT pg_logical_emit_message(true, 'test', '')").await?;
        }
        Ok(())
    }

    /// Its metrics in Prometheus' text format, without the label `pipeline`.
    pub async fn metrics(&self) -> Result<String> {
        Ok(without_pipeline(&get(self.admin, "/metrics").await?.1))
    }

    /// Waits until a metric, named with its labels as `World::metrics` has it, has this value.
    pub async fn until_metric(&self, series: &str, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let metrics = self.metrics().await?;
            let line = metrics.lines().find(|line| line.strip_prefix(series).is_some());
            if line.is_some_and(|line| line.ends_with(&format!(" {wanted}"))) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{line:?} is not {wanted}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Another configuration in the place of the first one.
    pub fn write_config(&self, toml: &str) -> Result<()> {
        Ok(std::fs::write(self.dir.path().join("walhook.toml"), toml)?)
    }

    /// Replaces a piece of the configuration.
    pub fn reconfigure(&self, from: &str, to: &str) -> Result<()> {
        let path = self.dir.path().join("walhook.toml");
        let config = std::fs::read_to_string(&path)?;
        ensure!(config.contains(from), "{from:?} is not in the configuration");
        Ok(std::fs::write(path, config.replace(from, to))?)
    }

    /// Waits until `/readyz` is 200, or is not, and returns what it says.
    pub async fn until_ready(&self, wanted: bool) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = get(self.admin, "/readyz").await;
            if let Ok((status, body)) = &said
                && (*status == 200) == wanted
            {
                return Ok(body.clone());
            }
            ensure!(Instant::now() < deadline, "/readyz says {said:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// A new SQL session, for another transaction beside [`World::sql`]'s.
    pub async fn connect(&self) -> Result<Connection> {
        connect(&self.cluster).await
    }

    /// The first value of a query, as text.
    pub async fn value(&self, sql: &str) -> Result<String> {
        let rows = self.sql.simple_query(sql).await?;
        let value = rows.iter().find_map(|message| {
            let tokio_postgres::SimpleQueryMessage::Row(row) = message else { return None };
            row.get(0).map(str::to_owned)
        });
        Ok(value.unwrap_or_default())
    }
}

async fn connect(cluster: &Cluster) -> Result<Connection> {
    Ok(Connection::open_with_path(
        &Secret::new(cluster.url("postgres")),
        "test",
        SERVER_SEARCH_PATH,
    )
    .await?)
}

impl Running {
    /// Waits until it says that it leads.
    pub async fn until_leading(&mut self, admin: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !answers(admin, "/leaderz").await {
            if let Some(status) = self.child.try_wait()? {
                bail!("walhook ended with {status}:\n{}", self.log());
            }
            ensure!(Instant::now() < deadline, "walhook does not lead:\n{}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> Result<u32> {
        self.child.id().context("it has ended")
    }

    /// Kills it as a crash would, and waits until it is gone.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// As [`Running::kill`], for one that is to be replaced.
    pub async fn kill_and_wait(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// How it has ended, if it has.
    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// The most memory that it has had resident, in bytes.
    pub fn resident_peak_bytes(&self) -> Result<u64> {
        let pid = self.child.id().context("it has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB")).context("no VmHWM")?;
        Ok(kib.parse::<u64>()? << 10)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let pid = self.pid()?.to_string();
        let sent = std::process::Command::new("kill").args(["-s", signal, &pid]).status()?;
        ensure!(sent.success(), "cannot send {signal}");
        Ok(())
    }

    /// Asks it to shut down, and waits until it has.
    pub async fn terminate(self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        self.ended().await
    }

    /// Waits until it ends by itself.
    pub async fn ended(mut self) -> Result<ExitStatus> {
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("walhook does not end:\n{}", self.log()),
        }
    }

    /// As [`Running::ended`], with what it has logged.
    pub async fn ended_with_log(self) -> Result<(ExitStatus, String)> {
        let log = self.log.clone();
        Ok((self.ended().await?, std::fs::read_to_string(log)?))
    }

    /// Waits until it has logged something.
    pub async fn until_logged(&self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            ensure!(Instant::now() < deadline, "nothing says {text:?}:\n{}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The memory that it has resident.
    pub fn resident_bytes(&self) -> Result<u64> {
        let pid = self.child.id().context("it has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = line.context("no VmRSS")?.trim().trim_end_matches(" kB").parse()?;
        Ok(kib << 10)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Whether a path of the admin server answers 200.
pub async fn answers(admin: SocketAddr, path: &str) -> bool {
    get(admin, path).await.is_ok_and(|(status, _)| status == 200)
}

/// A path of the admin server: status and body.
pub async fn get(admin: SocketAddr, path: &str) -> Result<(u16, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(admin).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned()))
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The bodies that the endpoint of a path took, in order, without repeats.
pub fn bodies(received: &[Received], path: &str) -> Vec<serde_json::Value> {
    let mut seen = HashSet::new();
    let taken = received.iter().filter(|request| request.is_taken() && request.path == path);
    taken.filter(|request| seen.insert(request.id.as_str())).map(Received::json).collect()
}

/// The events that an endpoint took, by its path: (type, the row's id), in order, without repeats.
pub fn taken(received: &[Received]) -> BTreeMap<String, Vec<(String, i64)>> {
    let mut seen: HashMap<(String, String), ()> = HashMap::new();
    let mut taken: BTreeMap<String, Vec<(String, i64)>> = BTreeMap::new();
    for request in received.iter().filter(|request| request.is_taken()) {
        if seen.insert((request.path.clone(), request.id.clone()), ()).is_some() {
            continue;
        }
        let body = request.json();
        let event_type = body["type"].as_str().unwrap_or_default().to_owned();
        let id = body["data"]["id"].as_i64().unwrap_or_default();
        taken.entry(request.path.clone()).or_default().push((event_type, id));
    }
    taken
}
