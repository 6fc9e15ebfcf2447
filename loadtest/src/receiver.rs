//! A receiver of webhooks that can be well, slow, failing, silent, or not there at all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use tokio::net::TcpSocket;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use walhook::demo::receive::change_in;

use crate::books::Books;

/// Connections that wait to be accepted.
const ACCEPT_BACKLOG: u32 = 1_024;

/// What it does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Answers 204 at once.
    Take,
    /// Answers 204 after this time.
    After(Duration),
    /// Answers 500 at once.
    Fail,
    /// Never answers.
    Hang,
    /// Nobody listens: connections are refused.
    Refuse,
}

/// Serves one address; an account's endpoint is its path, `/<account>`. Gone when dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    behaviour: watch::Sender<Behaviour>,
    shared: Shared,
    server: JoinSet<std::io::Result<()>>,
    /// Ends the listening, and the connections once they are idle.
    close: Option<oneshot::Sender<()>>,
    /// Never listens: keeps the port ours while nobody does.
    _held: TcpSocket,
}

#[derive(Debug, Clone)]
struct Shared {
    behaviour: watch::Receiver<Behaviour>,
    books: Arc<Books>,
}

impl Receiver {
    /// Listens on a port of its own.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn start(books: Arc<Books>) -> Result<Self> {
        let held = bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = held.local_addr()?;
        let (behaviour, seen) = watch::channel(Behaviour::Take);
        let shared = Shared { behaviour: seen, books };
        let server = JoinSet::new();
        let mut receiver = Self { address, behaviour, shared, server, close: None, _held: held };
        receiver.serve()?;
        Ok(receiver)
    }

    /// The URL of an account's endpoint.
    #[must_use]
    pub fn url(&self, account: i64) -> String {
        format!("http://{}/{account}", self.address)
    }

    /// What it does from now on. Requests that hang go on hanging.
    ///
    /// # Errors
    /// When the port cannot be had again.
    pub fn set(&mut self, behaviour: Behaviour) -> Result<()> {
        self.behaviour.send_replace(behaviour);
        if behaviour == Behaviour::Refuse {
            self.close = None;
        } else if self.close.is_none() {
            self.serve()?;
        }
        Ok(())
    }

    fn serve(&mut self) -> Result<()> {
        let socket = bind(self.address).with_context(|| format!("cannot have {}", self.address))?;
        let listener = socket.listen(ACCEPT_BACKLOG)?;
        let router =
            Router::new().route("/{account}", post(receive)).with_state(self.shared.clone());
        let (close, closed) = oneshot::channel::<()>();
        self.close = Some(close);
        self.server.spawn(async move {
            let ended = async {
                // Dropped, or told: both mean the end.
                let _ = closed.await;
            };
            axum::serve(listener, router).with_graceful_shutdown(ended).await
        });
        Ok(())
    }
}

/// A socket that shares its port with our others, and with nobody else's.
fn bind(address: SocketAddr) -> Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn receive(
    State(shared): State<Shared>,
    Path(account): Path<i64>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let behaviour = *shared.behaviour.borrow();
    match behaviour {
        Behaviour::Take => {}
        Behaviour::After(delay) => sleep(delay).await,
        Behaviour::Fail | Behaviour::Refuse => return StatusCode::INTERNAL_SERVER_ERROR,
        Behaviour::Hang => std::future::pending().await,
    }
    let Ok(change) = change_in(&body) else { return StatusCode::BAD_REQUEST };
    let id = headers.get("webhook-id").map(|id| id.as_bytes()).unwrap_or_default();
    let replay = headers.contains_key("walhook-replay");
    shared.books.received(account, change, id, &body, replay);
    StatusCode::NO_CONTENT
}
