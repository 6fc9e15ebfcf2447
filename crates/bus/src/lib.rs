//! The bus: frames between the leader and its workers, over core NATS. The one place that knows NATS.
//!
//! ```text
//! publish ──try──► commands (bounded) ─► connection ─► server ─► subscription (bounded) ─► next
//!                                            │
//!                                            └─ lost, made anew, overflown ─► Watch ─► Down, Up
//! ```
//!
//! It stores nothing and promises nothing but this: what is published on one connection on one subject
//! arrives in that order, or not at all. The rest is for sessions to find out, by counting frames and by
//! [`Watch`]. What the client does behind our back, and what of it is seen here:
//!
//! | The client | Here |
//! |---|---|
//! | keeps what is published while the connection is away, and sends it over the next one | [`Bus::publish`] refuses while it is away. What slips through in the moment before it is noticed is late, by a frame's stamp, or follows a gap |
//! | drops what it had not written when a connection breaks | [`Watch`] says Down: whoever counts on frames in between ends what it counts on |
//! | subscribes again by itself; what was published meanwhile is gone | likewise; and Up is said only when the subscriptions have been written |
//! | takes a subscription that the server refuses, or withdraws when its permissions change, for one that stands | it is made again every 3 s until the server takes it; [`State::refused`] has what the server said, for as long as it says it. What was published meanwhile is gone, which sessions find out by their numbers |
//! | drops what a full subscription does not take | counted, and Down is said |
//! | waits where its own queue is full | [`Bus::publish`] does not: it says `Full` |
//! | takes an idle connection for good | it is asked every second; after two answers that are missing it is broken |
//! | follows servers that a server names | it does not: those of the configuration, and no others, are contacted |
//! | tries again without an end, and tells nobody | one line in the log when it goes and one when it is back; [`State::trouble`] has the reason |

mod bus;
mod options;
mod seen;
mod state;
mod subscription;
mod why;

pub use bus::{Bus, Looked, NotPublished};
pub use options::{BusError, Credentials, Options, Servers, UrlError};
pub use state::{BusEvent, State, Watch};
pub use subscription::{Received, Subscription};
