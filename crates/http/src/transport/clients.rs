//! Requests on connections of the pool, and when a request is sent again.
//!
//! A request that the receiver surely did not answer is sent again within its attempt, on another
//! connection: there it counts. What may have been answered is not, for the receiver may have it.
//!
//! ```text
//! REFUSED_STREAM, above GOAWAY's last stream ──► a new HTTP/2 connection, which others share
//! a kept connection closed before an answer  ──► HTTP/2: likewise; HTTP/1: a new one, once
//! HTTP_1_1_REQUIRED                          ──► HTTP/1.1, for this authority for a while
//!   each of these on a connection that had     ──► says nothing of the endpoint; a second time its account has
//!   several accounts                               connections of its own for a while
//! an HTTP/2 connection ended with requests   ──► not again, and says nothing of the endpoint; its accounts have
//!   of several accounts                          connections of their own for a while
//! what came over HTTP/1 may be another's      ─► likewise (`doubt.rs`)
//! ```
//!
//! Source: RFC 9113, sections 6.8, 8.7 and 9.1; RFC 9112, section 9.3.1.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use moka::sync::Cache;
use rustls::ClientConfig;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};
use walhook_core::attempt::FailureKind;
use walhook_core::event::AccountId;

use super::apart::{self, Apart};
use super::connect::{BoxError, Connector, TcpConnector};
use super::connection::Connection;
use super::content::Content;
use super::course::{Course, Wait};
use super::doubt::{Doubt, note_surplus};
use super::error::{classify, failure};
use super::guard::Known;
use super::pool::{Bounds, Host, Kept, Lent, PATIENCE, Pool, Waiting};
use super::target::Address;
use super::users::Using;
use super::workers::{Workers, place};
use crate::exchange::{Answer, Failure};

/// How often a request is sent again within its attempt.
const RESENDS_MAX: u32 = 2;

/// For so long an authority that wanted HTTP/1.1 is offered nothing else.
const HTTP1_FOR: Duration = Duration::from_secs(600);

/// Authorities that are remembered for that.
const HTTP1_MAX: u64 = 10_000;

/// How often idle connections are looked through.
const KEEP_EVERY: Duration = Duration::from_secs(1);

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// There is no connection.
    #[error("there is no connection")]
    Connect(#[source] BoxError),
    /// A connection does not begin to speak HTTP.
    #[error("the connection does not begin")]
    Begin(#[source] hyper::Error),
    /// It was given to a connection of which this is known.
    #[error("the connection brought no answer")]
    Sent(#[source] hyper::Error, Arc<Known>),
    /// Whoever makes it holds it back.
    #[error("it was held back")]
    HeldBack,
}

impl SendError {
    /// Whether it happened on a connection that had several accounts.
    fn is_of_several(&self) -> bool {
        matches!(self, Self::Sent(_, known) if known.users().are_several())
    }
}

/// Opens connections, keeps them, and sends requests on them.
#[derive(Debug)]
pub(super) struct Clients {
    /// HTTP/2 where the server has it.
    any: Connector,
    http1: Connector,
    pool: Arc<Pool<Connection>>,
    apart: Arc<Apart>,
    /// By name and port.
    wants_http1: Cache<String, ()>,
    /// Whether any authority ever did: most receivers never do.
    any_wants_http1: AtomicBool,
}

/// The head of an answer, and where its body comes from.
#[derive(Debug)]
pub(super) struct Answered<'a> {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Incoming,
    connection: Connection,
    /// The pool's, if it is kept.
    lent: Option<Lent<Connection>>,
    _using: Using,
    apart: &'a Apart,
    host: &'a Arc<Host>,
    account: &'a AccountId,
}

impl Answered<'_> {
    /// The next piece of the body.
    pub(super) async fn data(&mut self) -> Option<Bytes> {
        loop {
            let frame = self.connection.frame(&mut self.body).await?;
            let frame = frame.inspect_err(|error| note_end(error, self.connection.known())).ok()?;
            if let Ok(data) = frame.into_data() {
                return Some(data);
            }
        }
    }

    /// What the answer counts for. Gives the connection back, where it waits for another request; dropped, it ends
    /// instead.
    pub(super) async fn end(mut self, answer: Answer) -> Result<Answer, Failure> {
        if self.connection.is_http2() {
            return Ok(answer);
        }
        let is_idle = self.connection.is_idle().await;
        let Self { apart, host, account, .. } = self;
        let answer = Doubt { apart, host, account, known: self.connection.known() }.answer(answer);
        if let Some(lent) = self.lent.filter(|_| is_idle) {
            lent.give_back(self.connection);
        }
        answer
    }
}

/// How a request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    /// The failed connection is given to nobody any more.
    Pooled,
    /// Others of the pool may be as stale as the failed one.
    Fresh,
    Http1,
}

type Opening = Pin<Box<dyn Future<Output = Result<Connection, SendError>> + Send>>;

impl Clients {
    pub(super) fn new(tcp: &TcpConnector, tls: ClientConfig, bounds: Bounds) -> Self {
        let mut http1 = tls.clone();
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self {
            any: Connector::new(tcp.clone(), tls),
            http1: Connector::new(tcp.clone(), http1),
            // One shelf for each thread that sends, and one for all others.
            pool: Arc::new(Pool::new(bounds, 1 + Workers::count())),
            apart: Arc::new(Apart::new()),
            wants_http1: Cache::builder().max_capacity(HTTP1_MAX).time_to_live(HTTP1_FOR).build(),
            any_wants_http1: AtomicBool::new(false),
        }
    }

    /// Closes idle connections in time, for as long as there is a pool.
    pub(super) fn keeper(&self) -> impl Future<Output = ()> + Send + 'static {
        let pool = Arc::downgrade(&self.pool);
        async move {
            while let Some(pool) = pool.upgrade() {
                pool.close_expired(Instant::now());
                drop(pool);
                sleep(KEEP_EVERY).await;
            }
        }
    }

    /// The answer to the request that `make` makes (over HTTP/2 or not), anew for each time that it is
    /// sent: on a connection that waits for it.
    pub(super) async fn send<'a>(
        &'a self,
        address: &'a Address,
        account: &'a AccountId,
        make: impl Fn(bool) -> Option<Request<Content>>,
        course: &Course,
    ) -> Result<Answered<'a>, Failure> {
        let mut fresh = false;
        loop {
            let host = self.host(address);
            let error = match self.send_once(address, host, account, fresh, &make, course).await {
                Ok(answered) => return Ok(answered),
                Err(error) => error,
            };
            course.set_wait(None);
            let again = again(&error).filter(|again| !(fresh && *again == Again::Fresh));
            let Some(again) = again.filter(|_| course.resends() < RESENDS_MAX) else {
                return Err(self.failure(host, account, &error));
            };
            let is_own = !error.is_of_several();
            course.count_resend(is_own);
            if !is_own {
                self.apart.suspect(host, account);
            }
            let authority = &host.authority;
            tracing::debug!(%authority, ?again, ?error, "sending again on another connection");
            match again {
                Again::Http1 => {
                    self.wants_http1.insert(authority.clone(), ());
                    self.any_wants_http1.store(true, Relaxed);
                }
                Again::Fresh => fresh = true,
                Again::Pooled => {}
            }
        }
    }

    async fn send_once<'a>(
        &'a self,
        address: &Address,
        host: &'a Arc<Host>,
        account: &'a AccountId,
        fresh: bool,
        make: impl Fn(bool) -> Option<Request<Content>>,
        course: &Course,
    ) -> Result<Answered<'a>, SendError> {
        let shelf = place();
        let mut of_account = self.apart.host(host, account);
        if self.pool.is_held_up(shelf, &of_account, account, Instant::now()) {
            of_account = apart::own(host, account);
        }
        let mut connection = if fresh {
            self.open(address, host, account).await?
        } else {
            self.connection(shelf, address, host, &of_account, account).await?
        };
        let request = make(connection.is_http2()).ok_or(SendError::HeldBack)?;
        let known = Arc::clone(connection.known());
        let (answers, since) = (known.answers(), Instant::now());
        let (_using, before) = known.users().begin(account, since);
        let wait = before.map(|before| {
            let (apart, host) = (Arc::clone(&self.apart), Arc::clone(host));
            let (account, known) = (account.clone(), Arc::clone(&known));
            Arc::new(Wait { apart, host, account, before, known, answers, since })
        });
        course.set_wait(wait.clone());
        let lent = (!fresh).then(|| self.pool.lend(shelf, &of_account, wait));
        match connection.send(request).await {
            Ok(answer) => {
                course.set_wait(None);
                known.users().note_answer(Instant::now());
                let (head, body) = answer.into_parts();
                let (status, headers) = (head.status, head.headers);
                let apart = &*self.apart;
                Ok(Answered {
                    status,
                    headers,
                    body,
                    connection,
                    lent,
                    _using,
                    apart,
                    host,
                    account,
                })
            }
            Err(error) => {
                note_end(&error, &known);
                Err(SendError::Sent(error, known))
            }
        }
    }

    /// What a request that is not sent again comes to. Where its connection ended with requests of several
    /// accounts, nobody knows by whose fault: they part.
    fn failure(&self, host: &Arc<Host>, account: &AccountId, error: &SendError) -> Failure {
        let ended = classify(error);
        let SendError::Sent(error, known) = error else { return ended };
        if !known.is_http2() {
            return Doubt { apart: &self.apart, host, account, known }.no_answer(ended);
        }
        let accounts = known.users().several_at_end().filter(|_| ends_connection(error, known));
        let Some(accounts) = accounts else { return ended };
        for account in &*accounts {
            self.apart.put(host, account);
        }
        let detail = format!(
            "the connection ended with requests of several accounts on it; they have connections of their own \
             there now: {}",
            ended.detail
        );
        failure(FailureKind::Lost, &detail)
    }

    fn host<'a>(&self, address: &'a Address) -> &'a Arc<Host> {
        let [any, http1] = &address.hosts;
        let wants_http1 =
            self.any_wants_http1.load(Relaxed) && self.wants_http1.contains_key(&any.authority);
        if wants_http1 { http1 } else { any }
    }

    /// One that is idle, or else the place of the account's request in the line.
    async fn idle(
        &self,
        shelf: usize,
        host: &Arc<Host>,
        of_account: &Arc<Host>,
        account: &AccountId,
    ) -> Result<Connection, Waiting<Connection>> {
        loop {
            let mut connection = self.pool.take(shelf, of_account, account, Instant::now())?;
            let is_other = || connection.last().is_some_and(|(last, _)| last != *account);
            if !connection.is_http2() && is_other() {
                // It sees what the runtime has heard of, which may not have asked since the connection rests.
                yield_now().await;
            }
            if connection.is_idle().await {
                return Ok(connection);
            }
            note_surplus(&self.apart, host, connection.known());
        }
    }

    /// One that is idle, or the first that is to be had: of the host as it is for the account.
    async fn connection(
        &self,
        shelf: usize,
        address: &Address,
        shared: &Arc<Host>,
        host: &Arc<Host>,
        account: &AccountId,
    ) -> Result<Connection, SendError> {
        let mut waiting = match self.idle(shelf, shared, host, account).await {
            Ok(connection) => return Ok(connection),
            Err(waiting) => waiting,
        };
        if waiting.is_patient() {
            tokio::select! {
                biased;
                connection = &mut waiting => return Ok(connection),
                () = sleep(PATIENCE) => {}
            }
            // Another account's may have rested meanwhile.
            waiting = match self.idle(shelf, shared, host, account).await {
                Ok(connection) => return Ok(connection),
                Err(waiting) => waiting,
            };
        }
        let mut opening = self.open(address, host, account);
        tokio::select! {
            biased;
            connection = waiting => {
                self.finish(shelf, host, opening);
                Ok(connection)
            }
            opened = &mut opening => {
                let (connection, now) = (opened?, Instant::now());
                let Some(shared) = connection.share(Some(account), now) else {
                    return Ok(connection);
                };
                self.pool.give(shelf, host, connection, now);
                Ok(shared)
            }
        }
    }

    fn open(&self, address: &Address, host: &Host, account: &AccountId) -> Opening {
        let connector = if host.http1 { &self.http1 } else { &self.any };
        let open = self.pool.open(Instant::now());
        let connecting = connector.connect(address.url.clone(), account.clone());
        Box::pin(async move {
            let stream = connecting.await.map_err(SendError::Connect)?;
            Connection::begin(stream, open).await.map_err(SendError::Begin)
        })
    }

    /// Has a connection opened to its end that no request waits for any more: the next one finds it.
    fn finish(&self, shelf: usize, host: &Arc<Host>, opening: Opening) {
        let Some(spare) = self.pool.spare(shelf, host) else { return };
        // It ends within the time for connecting.
        TokioExecutor::new().execute(async move {
            if let Ok(connection) = opening.await {
                spare.keep(connection);
            }
        });
    }
}

/// Whether, and how, a request that ended so may be sent again.
fn again(error: &SendError) -> Option<Again> {
    // Without a connection there is nothing that another one would do better.
    let SendError::Sent(error, known) = error else { return None };
    let again =
        if known.is_http2() { again_http2(error, known) } else { again_http1(error, known) };
    if again.is_some() {
        known.spoil();
    }
    again
}

fn again_http2(error: &hyper::Error, known: &Known) -> Option<Again> {
    let remote = find::<h2::Error>(error).filter(|h2| h2.is_remote());
    let reason = remote.and_then(h2::Error::reason);
    if known.wants_http1() || reason == Some(h2::Reason::HTTP_1_1_REQUIRED) {
        return Some(Again::Http1);
    }
    let refused = reason == Some(h2::Reason::REFUSED_STREAM);
    // Of a GOAWAY only those streams hear that are above its last one.
    if refused || remote.is_some_and(h2::Error::is_go_away) {
        return Some(Again::Pooled);
    }
    let lost = error.is_canceled() && known.lost_before_sending()
        || find::<io::Error>(error).is_some() && known.lost_before_answer();
    lost.then_some(Again::Pooled)
}

fn again_http1(error: &hyper::Error, known: &Known) -> Option<Again> {
    let lost =
        if error.is_canceled() { known.lost_before_sending() } else { known.lost_before_answer() };
    lost.then_some(Again::Fresh)
}

/// Notes who was on a connection that has ended so.
fn note_end(error: &hyper::Error, known: &Known) {
    if ends_connection(error, known) {
        known.users().end();
    }
}

/// Whether what ended a request ends all that share its connection.
fn ends_connection(error: &hyper::Error, known: &Known) -> bool {
    known.is_http2() && find::<h2::Error>(error).is_none_or(|h2| !h2.is_reset())
}

fn find<E: Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}
