//! Frames on their way to workers: signed, written and published by tasks of their own, each session's by one of
//! them, so that they go in the order in which they were decided.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Link;
use walhook_bus::NotPublished;
use walhook_core::attempt::Outcome;
use walhook_core::delivery_key::DeliveryKey;
use walhook_core::id::Epoch;
use walhook_fleet::frame::{Attempts, Body, Frame, PipelineId, Request, SessionId};
use walhook_fleet::leader::{Packed, SESSIONS_MAX};
use walhook_http::transport::{Prepared, Transport};
use walhook_process::failpoint::Failpoint;

/// To sign is most of what a leader does for a delivery that a worker sends.
const PACKERS: usize = 4;

/// Frames that a packer may be behind: more than the fleet has on its way at once.
const ORDERS: usize = SESSIONS_MAX * 16;

/// Between two tries of a bus that takes no more, and how many there are: a lease is longer.
const FULL_PAUSE: Duration = Duration::from_millis(2);
const FULL_TRIES: u32 = 250;

/// What is to be published on a session's subject.
pub(super) enum Order {
    /// Attempts, to be signed.
    Pack {
        /// The session.
        session: SessionId,
        /// The frame's number.
        seq: u64,
        /// How it is to be written.
        version: u8,
        /// What it holds.
        attempts: Vec<Packed>,
    },
    /// A whole frame.
    Publish(Box<Frame>),
}

/// What became of it.
pub(in crate::server) enum Report {
    /// The bus has it.
    Published(SessionId, u64),
    /// The bus did not take it.
    Unheard(SessionId, u64),
    /// This attempt of a session, by its key, cannot be sent at all.
    Refused(SessionId, u64, Box<Outcome>),
}

/// The packers.
pub(super) struct Packers {
    orders: Vec<mpsc::Sender<Order>>,
    _tasks: JoinSet<()>,
}

impl Packers {
    /// They, and what they tell. They end when this is dropped.
    pub(super) fn start(
        transport: &Arc<Transport>,
        link: &Link,
        of: (Epoch, PipelineId),
    ) -> (Self, mpsc::Receiver<Report>) {
        let (tell, reports) = mpsc::channel(ORDERS);
        let mut tasks = JoinSet::new();
        let orders = (0..PACKERS).map(|_| {
            let (order, orders) = mpsc::channel(ORDERS);
            let packer = Packer {
                transport: Arc::clone(transport),
                link: link.clone(),
                epoch: of.0,
                pipeline: of.1,
                tell: tell.clone(),
            };
            tasks.spawn(packer.pack_all(orders));
            order
        });
        let orders = orders.collect();
        (Self { orders, _tasks: tasks }, reports)
    }

    /// Has it published after all that the session was ordered before. Whether there was room: the fleet's window
    /// says that there is.
    pub(super) fn order(&self, session: SessionId, order: Order) -> bool {
        let place = usize::try_from(session.0 % PACKERS as u128).unwrap_or(0);
        self.orders.get(place).is_some_and(|packer| packer.try_send(order).is_ok())
    }
}

struct Packer {
    transport: Arc<Transport>,
    link: Link,
    epoch: Epoch,
    pipeline: PipelineId,
    tell: mpsc::Sender<Report>,
}

impl Packer {
    async fn pack_all(self, mut orders: mpsc::Receiver<Order>) {
        while let Some(order) = orders.recv().await {
            let frame = match order {
                Order::Publish(frame) => *frame,
                Order::Pack { session, seq, version, attempts } => {
                    let requests = self.prepare(session, attempts).await;
                    let body = Body::Attempts(Attempts { requests });
                    let pipeline = Some(self.pipeline);
                    Frame { version, epoch: self.epoch, pipeline, session, seq, body }
                }
            };
            let (session, seq) = (frame.session, frame.seq);
            let report = if self.publish(&frame).await {
                Report::Published(session, seq)
            } else {
                Report::Unheard(session, seq)
            };
            self.report(report).await;
        }
    }

    /// All of them that can be sent; of the others it is told why not.
    async fn prepare(&self, session: SessionId, attempts: Vec<Packed>) -> Vec<Request> {
        let mut requests = Vec::with_capacity(attempts.len());
        for Packed { key, attempt } in attempts {
            match self.transport.prepare(&attempt).await {
                Ok(prepared) => {
                    requests.push(request(key, DeliveryKey::of(&attempt), prepared));
                }
                Err(exchange) => {
                    let outcome = Box::new(exchange.into());
                    self.report(Report::Refused(session, key, outcome)).await;
                }
            }
        }
        requests
    }

    /// Whether the bus took it.
    async fn publish(&self, frame: &Frame) -> bool {
        let Link { bus, subjects } = &self.link;
        let subject = subjects.worker(frame.session);
        let reply = subjects.reply(frame.epoch, frame.session, frame.seq);
        let bytes = frame.encode();
        Failpoint::Sending.pass();
        for _ in 0..FULL_TRIES {
            match bus.publish(&subject, Some(&reply), bytes.clone()) {
                Ok(()) => return true,
                Err(NotPublished::Full) => sleep(FULL_PAUSE).await,
                Err(NotPublished::Away) => return false,
                Err(why @ (NotPublished::TooLarge | NotPublished::Subject)) => {
                    tracing::warn!(%why, subject, bytes = bytes.len(), "a frame was not published");
                    return false;
                }
            }
        }
        false
    }

    /// Nobody asks any more, where nobody leads.
    async fn report(&self, report: Report) {
        let _nobody_leads = self.tell.send(report).await;
    }
}

fn request(key: u64, delivery: DeliveryKey, prepared: Prepared) -> Request {
    let Prepared { account, endpoint, event, number, url, headers, body, timeout } = prepared;
    let (headers, delivery) = (written(&headers), Some(delivery));
    Request { key, number, timeout, account, endpoint, event, delivery, url, headers, body }
}

fn written(headers: &HeaderMap) -> Vec<(String, Bytes)> {
    let written = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.as_str().to_owned(), Bytes::copy_from_slice(value.as_bytes()))
    };
    headers.iter().map(written).collect()
}
