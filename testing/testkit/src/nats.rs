//! nats-servers for tests: one, or three that form a cluster.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::address::free_address;
use crate::program::PATIENCE;
use crate::scratch::Scratch;

/// Between two looks at a server that starts.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(20);

/// A nats-server of its own, in a directory of its own; killed when dropped.
#[derive(Debug)]
pub struct Nats {
    dir: Scratch,
    address: SocketAddr,
    child: Option<Child>,
}

impl Nats {
    /// Starts one without TLS and without users, and further lines of its configuration.
    ///
    /// # Errors
    /// When no server is found (the message says how to get one), or when it does not start.
    pub async fn start(configuration: &str) -> Result<Self> {
        let nats = Self { dir: Scratch::new()?, address: free_address()?, child: None };
        nats.started(configuration).await
    }

    async fn started(mut self, configuration: &str) -> Result<Self> {
        self.configure(configuration)?;
        self.start_again().await?;
        Ok(self)
    }

    /// Starts three that know each other, and waits until each has both others.
    ///
    /// # Errors
    /// As [`Nats::start`].
    pub async fn start_three() -> Result<[Self; 3]> {
        let routes = [free_address()?, free_address()?, free_address()?];
        let known: Vec<_> = routes.iter().map(|route| format!("\"nats://{route}\"")).collect();
        let known = known.join(", ");
        let one = |name: &str, route: SocketAddr| {
            format!(
                "server_name: {name}\ncluster {{ name: c, listen: \"{route}\", routes: [{known}] }}"
            )
        };
        let [a, b, c] = routes;
        let (a, b, c) = (one("a", a), one("b", b), one("c", c));
        let servers = tokio::try_join!(Self::start(&a), Self::start(&b), Self::start(&c))?;
        let mut servers = [servers.0, servers.1, servers.2];
        for server in &mut servers {
            server.until_it_names(3).await?;
        }
        Ok(servers)
    }

    /// From its next start on it has these lines in its configuration.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, configuration: &str) -> Result<()> {
        let text = format!("listen: \"{}\"\n{configuration}\n", self.address);
        Ok(fs::write(self.dir.path().join("nats.conf"), text)?)
    }

    /// Has it read these lines of its configuration while it runs.
    ///
    /// # Errors
    /// When it is not running, or cannot be told.
    pub fn reload(&self, configuration: &str) -> Result<()> {
        self.configure(configuration)?;
        let child = self.child.as_ref().context("it is not running")?;
        let told = Command::new("kill").args(["-HUP", &child.id().to_string()]).status()?;
        ensure!(told.success(), "cannot be told to reload");
        Ok(())
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Starts one that wants TLS, with a certificate of this pair for `localhost`, and further lines.
    ///
    /// # Errors
    /// As [`Nats::start`].
    #[cfg(feature = "tls")]
    pub async fn start_tls(pair: &crate::tls::Pair, configuration: &str) -> Result<Self> {
        Self::start_tls_with(pair, "", configuration).await
    }

    /// Likewise, with further settings of its section `tls`.
    ///
    /// # Errors
    /// As [`Nats::start`].
    #[cfg(feature = "tls")]
    pub async fn start_tls_with(
        pair: &crate::tls::Pair,
        settings: &str,
        configuration: &str,
    ) -> Result<Self> {
        let nats = Self { dir: Scratch::new()?, address: free_address()?, child: None };
        let [certificate, key] = ["cert.pem", "key.pem"].map(|file| nats.dir.path().join(file));
        fs::write(&certificate, &pair.certificate)?;
        fs::write(&key, &pair.key)?;
        let (certificate, key) = (certificate.display(), key.display());
        let tls =
            format!("tls {{ cert_file: \"{certificate}\", key_file: \"{key}\"\n{settings}\n}}");
        nats.started(&format!("{tls}\n{configuration}")).await
    }

    /// Starts it (again), at the same address, and waits until it takes connections.
    ///
    /// # Errors
    /// When it does not.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "it is running");
        let log = File::create(self.dir.path().join("log"))?;
        let child = Command::new(find_nats_server()?)
            .arg("-c")
            .arg(self.dir.path().join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start nats-server")?;
        self.child = Some(child);
        let deadline = Instant::now() + PATIENCE;
        while self.says_hello().await.is_none() {
            let exited = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if exited.is_some() || Instant::now() > deadline {
                bail!("nats-server did not start; it said:\n{}", self.log());
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Kills it, as a crash of its machine would.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Stops its process where it is, or lets it go on: `STOP` and `CONT`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let pid = self.child.as_ref().context("it does not run")?.id();
        let kill = format!("kill -s {signal} {pid}");
        ensure!(Command::new("sh").args(["-c", &kill]).status()?.success(), "cannot send {signal}");
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// What it says to who connects.
    async fn says_hello(&self) -> Option<String> {
        let mut line = String::new();
        let read = async {
            let stream = TcpStream::connect(self.address).await.ok()?;
            BufReader::new(stream).read_line(&mut line).await.ok()
        };
        timeout(PATIENCE, read).await.ok().flatten()?;
        line.starts_with("INFO").then_some(line)
    }

    /// Waits until its clients are told of so many servers, itself included.
    async fn until_it_names(&mut self, servers: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let hello = self.says_hello().await.context("it says nothing")?;
            let info: serde_json::Value =
                serde_json::from_str(hello.strip_prefix("INFO").unwrap_or_default())?;
            let named = info.get("connect_urls").and_then(|urls| urls.as_array());
            if named.is_some_and(|urls| urls.len() == servers) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "it says {hello}:\n{}", self.log());
            sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _already_gone = self.kill();
    }
}

/// Finds `nats-server`: `NATS_SERVER` wins, which names the file; then `PATH`, then where
/// `scripts/nats-server` puts it.
///
/// # Errors
/// When there is none; the message says how to get one.
pub fn find_nats_server() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("NATS_SERVER").map(PathBuf::from) {
        ensure!(path.is_file(), "NATS_SERVER={} is no file", path.display());
        return Ok(path);
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), Into::into);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/var/cache/walhook/nats/bin"), cache.join("walhook/nats/bin")])
        .map(|dir| dir.join("nats-server"))
        .find(|path| path.is_file())
        .context(
            "no nats-server found; `sh scripts/nats-server` puts one into a directory of its own, or \
             name one in NATS_SERVER",
        )
}
