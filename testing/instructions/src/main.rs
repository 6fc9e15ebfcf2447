//! What computes, alone, for callgrind to count its instructions: `make instructions`.
//!
//! Noise cannot hide a regression there, as it does in times. Everything is prepared before
//! [`measured`] is called, and callgrind counts in that function alone.
//!
//! ```text
//! decode     bytes of pgoutput → changes of committed transactions, dropped
//! dispatch   events → routes → turns → requests → outcomes → what is stored
//! sign       an event → the request's body and its signature
//! ```

mod decoding;
mod dispatching;
mod events;
mod signing;

use anyhow::{Context, Result, bail};

/// What is measured, all of it prepared.
enum Work {
    Decode(decoding::Work),
    Dispatch(Box<dispatching::Work>),
    Sign(signing::Work),
}

/// What callgrind counts.
#[inline(never)]
fn measured(work: Work) -> Result<()> {
    match work {
        Work::Decode(work) => work.run(),
        Work::Dispatch(work) => work.run(),
        Work::Sign(work) => work.run(),
    }
}

fn main() -> Result<()> {
    let usage = "walhook-instructions decode|dispatch|sign COUNT";
    let mut args = std::env::args().skip(1);
    let (part, count) = (args.next().context(usage)?, args.next().context(usage)?);
    let count: u64 = count.parse().context(usage)?;
    let work = match part.as_str() {
        "decode" => Work::Decode(decoding::Work::of(count)),
        "dispatch" => Work::Dispatch(Box::new(dispatching::Work::of(count)?)),
        "sign" => Work::Sign(signing::Work::of(count)?),
        _ => bail!("{usage}"),
    };
    measured(work)
}
