//! A throw-away PostgreSQL from the installed binaries: for the demo, the tests and the load tests.

mod template;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::time::{Instant, sleep, timeout};

use crate::address::free_address;
use crate::session::Session;

/// What PostgreSQL's own `initdb` needs at most on a slow machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// For a server at our port to say whose it is.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Clusters are made in memory where so many bytes are free: a cluster takes 40 MB and what its test
/// writes, and some run at a time.
const MEMORY_MIN: u64 = 4 << 30;

/// With this variable in our environment a server streams every change while its transaction is open.
const STREAMED: &str = "WALHOOK_TEST_STREAMED";

/// Another process may take a port between our choice and the server's start.
const PORT_TRIES: u32 = 5;

/// A private cluster in a directory of its own, gone when dropped.
///
/// Invariant: it listens on a loopback port and a Unix socket of its own; trust authentication for
/// the superuser `postgres`; `wal_level = logical`.
#[derive(Debug)]
pub struct Cluster {
    bin: PathBuf,
    dir: PathBuf,
    port: u16,
    owner: Option<(u32, u32)>,
    postmaster: Option<Child>,
}

/// How `pg_ctl stop` stops a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Ends every session, waits for walsenders, writes a checkpoint.
    Fast,
    /// As a crash would.
    Immediate,
}

impl Cluster {
    /// Makes and starts a cluster below `parent`, with further lines for `postgresql.conf`.
    ///
    /// # Errors
    /// When no server binaries are found (the message says how to install them), or when the server
    /// does not start (the message holds the end of its log).
    pub async fn start(parent: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let cluster = Self::make(find_server_binaries()?, parent)?;
        cluster.initdb()?;
        cluster.begin(settings).await
    }

    /// The same for tests, in memory where there is enough, by the server binaries of this directory.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start_with(bin: PathBuf, settings: &[(&str, &str)]) -> Result<Self> {
        let cluster = Self::make(bin, &in_memory(&std::env::temp_dir()))?;
        cluster.initdb()?;
        cluster.begin(settings).await
    }

    /// The same by the usual binaries, for tests that need a second cluster which is no copy.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start_distinct(settings: &[(&str, &str)]) -> Result<Self> {
        Self::start_with(find_server_binaries()?, settings).await
    }

    /// The same for tests, in a small part of the time: a copy of the first cluster that a test made of
    /// this server, in memory where there is enough. All copies have one system identifier: where a test
    /// needs two, the second is made by [`Cluster::start_distinct`].
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start_copied(parent: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let cluster = Self::make(find_server_binaries()?, &in_memory(parent))?;
        match template::of(&cluster.bin)? {
            Some(template) => template.copy_or_make(&cluster.data(), || cluster.initdb())?,
            None => cluster.initdb()?,
        }
        cluster.begin(settings).await
    }

    /// A cluster with a directory of its own, and nothing in it.
    fn make(bin: PathBuf, parent: &Path) -> Result<Self> {
        let owner = unprivileged_owner()?;
        let dir = make_directory(parent, owner)?;
        Ok(Self { bin, dir, port: 0, owner, postmaster: None })
    }

    /// Starts it at a free port.
    async fn begin(mut self, settings: &[(&str, &str)]) -> Result<Self> {
        let cluster = &mut self;
        let template = fs::read_to_string(cluster.data().join("postgresql.conf"))?;
        for _ in 0..PORT_TRIES {
            cluster.port = free_address()?.port();
            cluster.configure(&template, settings)?;
            match cluster.start_again().await {
                Err(_) if cluster.log_tail().contains("could not bind") => {
                    cluster.postmaster = None
                }
                started => return started.map(|()| self),
            }
        }
        bail!("no free loopback port; the server's log ends with:\n{}", cluster.log_tail())
    }

    /// Copies the data directory as it stands, with a port of its own and further settings, and starts
    /// nothing. For a standby: the caller has told the server of a backup, and adds what a standby needs.
    ///
    /// # Errors
    /// When the copy fails.
    pub fn copy(&self, parent: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let dir = make_directory(&in_memory(parent), self.owner)?;
        let (bin, owner) = (self.bin.clone(), self.owner);
        let copy = Self { bin, dir, port: free_address()?.port(), owner, postmaster: None };
        copy_tree(&self.data(), &copy.data())?;
        fs::remove_file(copy.data().join("postmaster.pid"))?;
        let template = fs::read_to_string(copy.data().join("postgresql.conf"))?;
        copy.configure(&template, settings)?;
        Ok(copy)
    }

    fn configure(&self, template: &str, settings: &[(&str, &str)]) -> Result<()> {
        let mut conf = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\n\
             wal_level = logical\nmax_wal_senders = 10\nmax_replication_slots = 10\n\
             fsync = off\nlogging_collector = off\n",
            self.port,
            self.dir.display()
        );
        if std::env::var_os(STREAMED).is_some() {
            // Known since version 16; `scripts/test-matrix streamed` uses no earlier one.
            conf.push_str("debug_logical_replication_streaming = immediate\n");
        }
        for (name, value) in settings {
            conf.push_str(&format!("{name} = '{value}'\n"));
        }
        Ok(fs::write(self.data().join("postgresql.conf"), format!("{template}\n{conf}"))?)
    }

    /// The directory of the installed server binaries, such as `/usr/lib/postgresql/15/bin`.
    #[must_use]
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The directory of the Unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.dir
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A URL for the superuser.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Starts the server (again) and waits until it takes connections.
    ///
    /// # Errors
    /// When it does not come up; the message holds the end of its log.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(self.postmaster.is_none(), "the server is running already");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        let child = self
            .command("postgres")
            .arg("-D")
            .arg(self.data())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start postgres")?;
        self.postmaster = Some(child);
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if self.answers().await {
                return Ok(());
            }
            let exited = self.postmaster.as_mut().map(Child::try_wait).transpose()?.flatten();
            if exited.is_some() || Instant::now() > deadline {
                bail!("postgres did not start; its log ends with:\n{}", self.log_tail());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether it is our server that answers at our port: another one may have taken it.
    async fn answers(&self) -> bool {
        let shown = timeout(ANSWER_TIMEOUT, show(&self.url("postgres"), "data_directory")).await;
        matches!(shown, Ok(Ok(dir)) if dir == self.data().to_string_lossy())
    }

    /// Stops the server with `pg_ctl stop` and waits until it is down.
    ///
    /// # Errors
    /// When `pg_ctl` fails, for example because the server is not down within a minute.
    pub async fn stop(&mut self, mode: StopMode) -> Result<()> {
        let mut pg_ctl = self.command("pg_ctl");
        let mode = if mode == StopMode::Fast { "fast" } else { "immediate" };
        pg_ctl.arg("stop").arg("-D").arg(self.data()).args(["-m", mode, "-w", "-t", "60"]);
        let output = tokio::process::Command::from(pg_ctl).output().await?;
        ensure!(
            output.status.success(),
            "pg_ctl stop -m {mode}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        if let Some(mut child) = self.postmaster.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// The last lines of the server's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// A command of the server's own user: PostgreSQL refuses to run as root.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.stdin(Stdio::null()).current_dir(&self.dir).env("LC_ALL", "C");
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
        // A Ctrl-C at the terminal is for the program, which then stops the server itself.
        command.process_group(0);
        command
    }

    fn initdb(&self) -> Result<()> {
        let output = self
            .command("initdb")
            .arg("-D")
            .arg(self.data())
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"])
            .output()
            .context("cannot run initdb")?;
        ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut child) = self.postmaster.take() {
            let stopped = self
                .command("pg_ctl")
                .arg("stop")
                .arg("-D")
                .arg(self.data())
                .args(["-m", "immediate", "-w", "-t", "10"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if !stopped.is_ok_and(|status| status.success()) {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The file system in memory where it has room for some clusters, whose thousand files a disk takes a
/// second to make; else `otherwise`.
fn in_memory(otherwise: &Path) -> PathBuf {
    let shm = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(shm).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    if room > MEMORY_MIN { shm } else { otherwise }.to_owned()
}

/// A setting of the server at a URL.
async fn show(url: &str, setting: &str) -> Result<String> {
    let session = Session::open(url).await?;
    Ok(session.query_one(&format!("SHOW {setting}"), &[]).await?.try_get(0)?)
}

fn make_directory(parent: &Path, owner: Option<(u32, u32)>) -> Result<PathBuf> {
    // Short, because a Unix socket's path may have 107 bytes only.
    let dir =
        parent.join(format!("walhook-pg-{}-{:08x}", std::process::id(), rand::random::<u32>()));
    fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    if let Some((uid, gid)) = owner {
        chown(&dir, Some(uid), Some(gid))?;
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

/// Copies a directory with its owners and modes.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(status.success(), "cannot copy {} to {}", from.display(), to.display());
    Ok(())
}

/// Finds the directory that holds `postgres`, `initdb` and `pg_ctl`.
///
/// `PG_BIN_DIR` wins; then the newest below `/usr/lib/postgresql` (Debian's and Ubuntu's place),
/// `/usr/pgsql-*` (the RPM packages'), then `PATH`.
///
/// # Errors
/// When there is none; the message says how to install one.
pub fn find_server_binaries() -> Result<PathBuf> {
    let complete =
        |dir: &PathBuf| ["postgres", "initdb", "pg_ctl"].iter().all(|p| dir.join(p).is_file());
    if let Some(dir) = std::env::var_os("PG_BIN_DIR").map(PathBuf::from) {
        ensure!(
            complete(&dir),
            "PG_BIN_DIR={} holds no postgres, initdb and pg_ctl",
            dir.display()
        );
        return Ok(dir);
    }
    let below = |parent: &str, prefix: &str| -> Vec<PathBuf> {
        let version = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.strip_prefix(prefix).and_then(|v| v.parse::<u32>().ok())
        };
        let entries = fs::read_dir(parent).into_iter().flatten().flatten().map(|e| e.path());
        let mut found: Vec<_> =
            entries.filter_map(|p| Some((version(&p)?, p.join("bin")))).collect();
        found.sort();
        found.into_iter().rev().map(|(_, path)| path).collect()
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    below("/usr/lib/postgresql", "")
        .into_iter()
        .chain(below("/usr", "pgsql-"))
        .chain(std::env::split_paths(&path))
        .find(complete)
        .context(
            "no PostgreSQL server binaries found; install them (Debian, Ubuntu: \
             apt-get install postgresql) or name their directory in PG_BIN_DIR",
        )
}

/// As root, the user that the server runs as instead; `None` when we are not root.
fn unprivileged_owner() -> Result<Option<(u32, u32)>> {
    use std::os::unix::fs::MetadataExt;
    if fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd")?;
    let ids = |user: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let owner = ids("postgres").or_else(|| ids("nobody"));
    Ok(Some(
        owner.context(
            "PostgreSQL refuses to run as root, and there is no user postgres or nobody",
        )?,
    ))
}
