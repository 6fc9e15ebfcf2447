//! Connections of the admin server: bounded in number, in time and in what they may send.
//!
//! Whoever can reach the port may open as many as it likes and send as slowly as it likes. A health probe
//! is answered all the same: past the bound the oldest connection gives way to the newest.

mod spares;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use spares::{Returning, Spares};
use walhook_process::faults;

/// A request's head has to be here within this time, counted from the connection's start or from the
/// answer before: so long an idle connection is kept, too.
const HEAD_WITHIN: Duration = Duration::from_secs(5);

/// Open connections. Probes and scrapes need a few.
const CONNECTIONS_MAX: usize = 64;

/// What a request's head may take.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// How long requests under way may take after the shutdown began: each is answered from memory, so
/// what takes longer is a client that does not send or read, and the process's end waits for it.
const DRAIN: Duration = Duration::from_millis(200);

/// A connection that is older is no probe that is just answered.
const IDLE: Duration = Duration::from_secs(1);

/// Until the next try when nothing could be accepted.
const PAUSE: Duration = Duration::from_millis(20);

/// Serves until `shutdown` is cancelled.
pub(super) async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let mut open = Open::default();
    let listener = Arc::new(listener);
    let spares = Spares::new(Arc::clone(&listener));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = open.tasks.join_next() => spares.refill(),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let stream = Returning::new(stream, Arc::clone(&spares));
                    open.start(stream, router.clone(), shutdown.clone());
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection to the admin server");
                    // The connection still waits: in a spare's place it can be taken, if nobody else
                    // is quicker.
                    if faults::note(&error).is_none() || !spares.give_up() {
                        open.close_idle();
                        tokio::time::sleep(PAUSE).await;
                        spares.refill();
                    }
                }
            }
        }
    }
    let ended = async { while open.tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, ended).await;
    open.tasks.shutdown().await;
}

#[derive(Default)]
struct Open {
    tasks: JoinSet<()>,
    /// Oldest first; those that have ended are among them.
    ages: VecDeque<(Instant, AbortHandle)>,
}

impl Open {
    fn start(&mut self, stream: Returning, router: Router, shutdown: CancellationToken) {
        self.ages.retain(|(_, handle)| !handle.is_finished());
        if self.ages.len() >= CONNECTIONS_MAX {
            self.close_oldest();
        }
        let task = self.tasks.spawn(async move {
            if let Err(error) = converse(stream, router, shutdown).await {
                tracing::debug!(%error, "a connection to the admin server broke");
            }
        });
        self.ages.push_back((Instant::now(), task));
    }

    /// Those that have been here longer than an answer takes.
    fn close_idle(&mut self) {
        while self.ages.front().is_some_and(|(since, _)| since.elapsed() >= IDLE) {
            self.close_oldest();
        }
    }

    fn close_oldest(&mut self) {
        if let Some((_, oldest)) = self.ages.pop_front() {
            oldest.abort();
        }
    }
}

async fn converse(
    stream: Returning,
    router: Router,
    shutdown: CancellationToken,
) -> hyper::Result<()> {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = &mut connection => return ended,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(4);

    struct Server {
        address: SocketAddr,
        _tasks: JoinSet<()>,
    }

    async fn server() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/livez", get(async || "alive"));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, router, CancellationToken::new()));
        Server { address, _tasks: tasks }
    }

    async fn say(stream: &mut TcpStream, request: &[u8]) -> io::Result<String> {
        stream.write_all(request).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// As a probe does: a connection of its own, and an answer within seconds.
    async fn is_alive(address: SocketAddr) -> bool {
        let probe = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            say(&mut stream, b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await
        };
        timeout(SOON, probe).await.is_ok_and(|a| a.is_ok_and(|answer| answer.ends_with("alive")))
    }

    #[tokio::test]
    async fn admin_server_answers_a_probe_beside_a_thousand_idle_and_slow_connections() {
        let server = server().await;
        let mut idle = Vec::new();
        for n in 0..1_000 {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            if n % 2 == 0 {
                // Older ones may be closed by now.
                let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nx: y").await;
            }
            idle.push(stream);
            if n % 100 == 0 {
                assert!(is_alive(server.address).await, "beside {n}");
            }
        }
        for _ in 0..20 {
            assert!(is_alive(server.address).await);
        }
        // All but the newest are closed at once, and these within the time for a head.
        let began = Instant::now();
        for stream in &mut idle {
            let mut rest = Vec::new();
            let _ = timeout(HEAD_WITHIN * 3, stream.read_to_end(&mut rest)).await.expect("closed");
        }
        assert!(began.elapsed() < HEAD_WITHIN * 3);
    }

    #[tokio::test]
    async fn admin_server_speaks_http_1_of_bounded_size_alone() {
        let server = server().await;
        let refused = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            [b"GET /livez HTTP/1.1\r\nx: ".as_slice(), &vec![b'y'; HEAD_BYTES_MAX * 2]].concat(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        ];
        for request in refused {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            let answer = timeout(SOON, say(&mut stream, &request)).await.expect("no answer");
            assert!(answer.is_err() || answer.is_ok_and(|a| !a.contains("200")), "{request:?}");
        }
        // A body that nobody asked for is not read to its end.
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let large = "GET /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999999\r\n\r\n";
        let answer = timeout(SOON, say(&mut stream, large.as_bytes())).await.expect("no answer");
        assert!(answer.unwrap().contains("200 OK"));
        assert!(is_alive(server.address).await);
    }

    #[tokio::test]
    async fn admin_server_closes_a_connection_that_idles_after_its_answer() {
        let server = server().await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let twice = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\nGET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
        let answer = timeout(HEAD_WITHIN * 3, say(&mut stream, twice)).await.expect("not closed");
        assert_eq!(answer.unwrap().matches("alive").count(), 2);
    }
}
