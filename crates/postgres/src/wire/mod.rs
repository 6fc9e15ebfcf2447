//! The replication connection: our own, on `postgres-protocol`, for released `tokio-postgres` has
//! neither replication mode nor CopyBoth.
//!
//! ```text
//! connect ─► Replication ── start ─► Stream ── next ─► Frame
//!                                       ▲
//!                                  send_status
//! ```
//!
//! One task owns the socket and does both: it reads, and it sends status updates whatever the stages
//! behind it do. [`Feedback`](crate::feedback::Feedback) decides what to send and when, and
//! [`Changes`](walhook_decode::change::Changes) makes steps of payloads; both outlive connections. A
//! caller's loop, for one connection:
//!
//! ```ignore
//! let mut replication = wire::connect(&url, "walhook").await?;
//! let system = replication.identify_system().await?;      // the right cluster?
//! let timeout = replication.wal_sender_timeout().await?;
//! changes.handle_reconnected();
//! let mut stream = replication.start(slot, publication, changes.resume_lsn()).await?;
//! let protocol = stream.protocol();
//! feedback.handle_reconnected(timeout, clock.now());      // Feedback::new, the first time
//! loop {
//!     while let Some(update) = feedback.poll(clock.now()) {
//!         stream.send_status(update).await?;
//!     }
//!     if feedback.silent(clock.now()) {
//!         return Err(WireError::Silent.into());
//!     }
//!     tokio::select! {
//!         biased;
//!         // 1. What is settled, so that a flood of frames cannot hold it back.
//!         Ok(()) = flushed.changed() => feedback.handle_flushed(*flushed.borrow_and_update()),
//!         // 2. Time, for the same reason.
//!         () = sleep_until(clock.instant(feedback.deadline())) => {}
//!         // 3. The stream; off (handle_paused, handle_resumed) while the queue behind is full.
//!         frame = stream.next(), if queue_has_room => {
//!             let mut next = Some(frame?);
//!             while let Some(frame) = next {
//!                 match frame {
//!                     Frame::XLogData { wal_start, wal_end, payload } => {
//!                         feedback.handle_received(wal_end, clock.now());
//!                         let steps = changes.handle(wal_start, decode(protocol, &payload)?)?;
//!                         // … into the batch …
//!                     }
//!                     Frame::Oversize { wal_start, wal_end, head, bytes } => {
//!                         // … the same, with `decode_head(protocol, &head, bytes)?`.
//!                     }
//!                     Frame::Keepalive { wal_end, reply_requested } => {
//!                         feedback.handle_keepalive(wal_end, reply_requested, clock.now());
//!                         // … with `!changes.in_transaction()`, wal_end moves an idle frontier.
//!                     }
//!                 }
//!                 next = if batch_is_full { None } else { stream.try_next()? };
//!             }
//!         }
//!     }
//! }
//! ```
//!
//! [`Stream::next`] and [`Stream::send_status`] are cancel-safe. A walsender that shuts down is not
//! seen while nobody reads: a caller that pauses for long watches an ordinary SQL session too,
//! which the shutdown ends at once.
//!
//! Sources: PostgreSQL manual, "Frontend/Backend Protocol", "Streaming Replication Protocol" and
//! "Logical Streaming Replication Protocol".

mod auth;
mod connect;
mod connection;
mod error;
mod notices;
mod replication;
mod stream;
#[cfg(test)]
mod tests;

pub use connect::{connect, is_pooled};
pub use error::{Class, ServerError, WireError, classify};
pub use replication::{Replication, System};
pub use stream::{Frame, Stream};
