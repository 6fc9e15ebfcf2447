//! Receivers that mean harm, and a name server that answers for some names alone.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::process::Command;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use walhook_loadtest::program;
use walhook_testkit::scratch::Scratch;

/// Where the name server listens: nobody else does there.
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 9, 53, 53);

/// What a receiver does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malice {
    /// Answers 204 at once.
    Well,
    /// Answers 204 after 50 ms.
    Late,
    /// Answers 500.
    Fails,
    /// Answers every third request with a 500.
    FailsNowAndThen,
    /// Informational answers without end.
    Informs,
    /// A head without end.
    Heads,
    /// A head of 400 KB that is never finished.
    HalfHead,
    /// A body without end.
    Bodies,
    /// A byte of the answer each 100 ms.
    Trickles,
    /// Closes at once, with a reset.
    Resets,
    /// Never answers.
    Hangs,
}

impl Malice {
    const ALL: [Self; 11] = [
        Self::Well,
        Self::Late,
        Self::Fails,
        Self::FailsNowAndThen,
        Self::Informs,
        Self::Heads,
        Self::HalfHead,
        Self::Bodies,
        Self::Trickles,
        Self::Resets,
        Self::Hangs,
    ];

    /// Those that answer as no receiver should, but for what has an adversary of its own.
    pub(crate) const HARMFUL: [Self; 5] =
        [Self::Heads, Self::HalfHead, Self::Bodies, Self::Trickles, Self::Resets];
}

/// How an adversary's endpoints answer in a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// As its own do.
    Own,
    /// With a failure, where its own do not harm.
    Fail,
    /// Likewise, now and then.
    FailNowAndThen,
}

impl Answers {
    pub(crate) fn of(self, own: Malice) -> Malice {
        match (self, own) {
            (Self::Fail, Malice::Well | Malice::Late) => Malice::Fails,
            (Self::FailNowAndThen, Malice::Well | Malice::Late) => Malice::FailsNowAndThen,
            _ => own,
        }
    }
}

/// One listener for each kind, on all loopback addresses.
#[derive(Debug)]
pub(crate) struct Servers {
    ports: Vec<(Malice, u16)>,
    scratch: Scratch,
    /// Whether all answer 204 at once from now on.
    calm: watch::Sender<bool>,
    tasks: Mutex<JoinSet<()>>,
}

impl Servers {
    pub(crate) async fn start() -> Result<Self> {
        let mut tasks = JoinSet::new();
        let mut ports = Vec::new();
        let (calm, is_calm) = watch::channel(false);
        for malice in Malice::ALL {
            let listener = TcpListener::bind(("0.0.0.0", 0)).await?;
            ports.push((malice, listener.local_addr()?.port()));
            tasks.spawn(serve(listener, malice, is_calm.clone()));
        }
        Ok(Self { ports, scratch: Scratch::new()?, calm, tasks: Mutex::new(tasks) })
    }

    pub(crate) fn port(&self, malice: Malice) -> u16 {
        self.ports.iter().find(|(kind, _)| *kind == malice).map_or(0, |(_, port)| *port)
    }

    pub(crate) fn url(&self, malice: Malice, host: Option<&str>) -> String {
        format!("http://{}:{}/", host.unwrap_or("127.0.0.1"), self.port(malice))
    }

    /// All answer 204 at once from now on; who waits for an answer is hung up on.
    pub(crate) fn calm(&self) {
        self.calm.send_replace(true);
    }

    /// A program that runs walhook with our name server, which is silent but for names under `well.test`; or why
    /// there is none: that takes a mount of its own, and port 53.
    pub(crate) async fn with_names(&self) -> Result<Result<PathBuf, String>> {
        let socket = match UdpSocket::bind((NAME_SERVER, 53)).await {
            Ok(socket) => socket,
            Err(error) => return Ok(Err(format!("no port 53: {error}"))),
        };
        let conf = self.scratch.path().join("resolv.conf");
        std::fs::write(&conf, format!("nameserver {NAME_SERVER}\n"))?;
        let mount = format!("mount --bind '{}' /etc/resolv.conf", conf.display());
        let tried = Command::new("unshare").args(["-m", "sh", "-c", &mount]).output().await;
        if !tried.is_ok_and(|output| output.status.success()) {
            return Ok(Err("no mount of our own".to_owned()));
        }
        let mount = mount.replace('\'', "\"");
        let script =
            self.script(&format!("exec unshare -m sh -c '{mount} && exec \"$0\" \"$@\"'"))?;
        self.tasks.lock().await.spawn(answer_names(socket));
        Ok(Ok(script))
    }

    /// The program, with so many files and sockets at most.
    pub(crate) fn with_files(&self, files: u32) -> Result<PathBuf> {
        self.script(&format!("ulimit -n {files}\nexec"))
    }

    /// A script that runs the program behind `exec`, with the script's arguments.
    fn script(&self, exec: &str) -> Result<PathBuf> {
        let script = self.scratch.path().join("walhook");
        let text = format!("#!/bin/sh\n{exec} '{}' \"$@\"\n", program()?.display());
        std::fs::write(&script, text)?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700))?;
        Ok(script)
    }
}

const WELL: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";
const FAILURE: &[u8] = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n";

async fn serve(listener: TcpListener, malice: Malice, is_calm: watch::Receiver<bool>) {
    let requests = Arc::new(AtomicU64::new(0));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    let (mut is_calm, requests) = (is_calm.clone(), Arc::clone(&requests));
                    connections.spawn(async move {
                        let malice = if *is_calm.borrow() { Malice::Well } else { malice };
                        // Whatever goes wrong is the other side's.
                        tokio::select! {
                            _ = handle(stream, malice, &requests) => {}
                            _ = is_calm.wait_for(|calm| *calm && malice != Malice::Well) => {}
                        }
                    });
                } else {
                    sleep(Duration::from_millis(10)).await;
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn handle(mut stream: TcpStream, malice: Malice, requests: &AtomicU64) -> Result<()> {
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::with_capacity(4_096);
    loop {
        read_request(&mut stream, &mut buffer).await?;
        match malice {
            Malice::Well => stream.write_all(WELL).await?,
            Malice::Late => {
                sleep(Duration::from_millis(50)).await;
                stream.write_all(WELL).await?;
            }
            Malice::Fails => stream.write_all(FAILURE).await?,
            Malice::FailsNowAndThen => {
                let fails = requests.fetch_add(1, Relaxed).is_multiple_of(3);
                stream.write_all(if fails { FAILURE } else { WELL }).await?;
            }
            Malice::Informs => loop {
                stream
                    .write_all(&b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(1_000))
                    .await?;
            },
            Malice::Heads => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
                loop {
                    stream
                        .write_all(&b"x-filler: fills the head of the answer\r\n".repeat(1_000))
                        .await?;
                }
            }
            Malice::HalfHead => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nx-filler: ").await?;
                stream.write_all(&[b'x'; 400_000]).await?;
                sleep(Duration::from_secs(3_600)).await;
            }
            Malice::Bodies => {
                stream.write_all(b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                let chunk = format!("10000\r\n{}\r\n", "b".repeat(0x10000));
                loop {
                    stream.write_all(chunk.as_bytes()).await?;
                }
            }
            Malice::Trickles => {
                for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"
                    .iter()
                    .chain([b'x'; 100_000].iter())
                {
                    stream.write_all(&[*byte]).await?;
                    sleep(Duration::from_millis(100)).await;
                }
            }
            Malice::Resets => {
                // Closed with what was not read, or with this: a reset.
                stream.set_zero_linger()?;
                return Ok(());
            }
            Malice::Hangs => sleep(Duration::from_secs(3_600)).await,
        }
    }
}

/// Reads one request to its end.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.clear();
    loop {
        let n = stream.read_buf(buffer).await?;
        anyhow::ensure!(n > 0, "closed");
        let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(buffer.get(..end).unwrap_or_default()).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
        if buffer.len() >= end + 4 + length {
            return Ok(());
        }
    }
}

/// Answers for names under `well.test`, and for nothing else.
async fn answer_names(socket: UdpSocket) {
    let mut buffer = [0; 512];
    loop {
        let Ok((n, from)) = socket.recv_from(&mut buffer).await else { continue };
        if let Some(answer) = buffer.get(..n).and_then(answer_name) {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

/// Source: RFC 1035, section 4.1.
fn answer_name(query: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let question = query.get(HEADER..)?;
    let end = question.iter().position(|byte| *byte == 0)? + 1;
    if !question.get(..end)?.ends_with(b"\x04well\x04test\x00") {
        return None;
    }
    let question = question.get(..end + 4)?;
    let is_a = question.get(end..end + 2)? == [0, 1];
    let mut answer = query.get(..2)?.to_vec();
    // An answer, recursion available; one question, one answer or none.
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend(question);
    if is_a {
        // The name of the question, A, IN, a minute, four bytes.
        answer.extend([0xC0, 0x0C, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some(answer)
}
