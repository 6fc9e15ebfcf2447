//! The spool: files for what [`OpenTransactions`] keep beyond their share of memory, one for each transaction.
//!
//! ```text
//! OpenTransactions ──Order──► Spool ──► a thread for what blocks ──► files
//!        ▲                                        │
//!        └──────────────── Done ◄─────────────────┘
//! ```
//!
//! Nothing of it need survive the process: a transaction that is open is sent again. So nothing is synchronised,
//! and what an earlier process left is removed. One thing is done at a time, in order, and nobody waits for it
//! but who awaits [`Spool::done`].

mod files;
#[cfg(test)]
mod tests;

use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout_at};

use self::files::Files;
use walhook_decode::streamed::{Done, FileId, OpenTransactions, Order};

/// For one answer of the disk. One that takes longer, as that of a network which is gone, may never come.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the system sends to a process whose file has reached the limit that it set.
const SIGXFSZ: i32 = 25;

/// The spool cannot do what it is to.
#[derive(Debug, thiserror::Error)]
pub enum SpoolFailed {
    /// It would become larger than it may.
    #[error("the spool in {directory} has reached {max_bytes} bytes (source.spool_max)")]
    Full {
        /// Where it is.
        directory: PathBuf,
        /// What it may take.
        max_bytes: u64,
    },
    /// It could not be written. What was to be is still in memory.
    #[error("cannot write to the spool in {directory}: {source}")]
    Write {
        /// Where it is.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be read back: what a transaction had there is lost to this process.
    #[error("cannot read the spool in {directory}: {source}")]
    Read {
        /// Where it is.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not answer, and may never: what it has, and what it is to have, are lost to this process.
    #[error("the spool in {directory} has not answered within {ANSWER_TIMEOUT:?}")]
    Silent {
        /// Where it is.
        directory: PathBuf,
    },
}

/// A directory with files of our own. They are removed when it is dropped.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    max_bytes: u64,
    /// `None` while they are busy.
    files: Option<Files>,
    busy: Option<Busy>,
    written_bytes: u64,
    /// While it is held, writing beyond the process's limit is an error and not its end.
    _too_large: Signal,
}

/// Something is being done.
#[derive(Debug)]
struct Busy {
    task: JoinHandle<Finished>,
    /// When it is given up.
    until: Instant,
}

/// What was done, by whom.
#[derive(Debug)]
struct Finished {
    files: Files,
    written_bytes: u64,
    done: Result<Option<Done>, Failed>,
}

#[derive(Debug)]
enum Failed {
    Full,
    Write(io::Error),
    Read(io::Error),
}

impl Spool {
    /// Opens the spool in `directory`, which is made where it does not exist, removes what dead processes left
    /// there, and writes for once. It takes `max_bytes` at most.
    ///
    /// # Errors
    /// [`SpoolFailed::Write`]: the directory cannot be made or written. [`SpoolFailed::Silent`].
    pub async fn open(directory: &Path, max_bytes: u64) -> Result<Self, SpoolFailed> {
        let failed = |source| SpoolFailed::Write { directory: directory.to_owned(), source };
        let too_large = signal(SignalKind::from_raw(SIGXFSZ)).map_err(failed)?;
        let at = directory.to_owned();
        let opened = spawn_blocking(move || Files::open(at));
        let opened = timeout_at(Instant::now() + ANSWER_TIMEOUT, opened).await;
        let silent = |_| SpoolFailed::Silent { directory: directory.to_owned() };
        let opened = opened.map_err(silent)?;
        let files = opened.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(failed)?;
        Ok(Self {
            directory: directory.to_owned(),
            max_bytes,
            files: Some(files),
            busy: None,
            written_bytes: 0,
            _too_large: too_large,
        })
    }

    /// Begins what is to be done next, unless something is being done.
    pub fn take_order(&mut self, transactions: &mut OpenTransactions) {
        let Some(order) = self.files.is_some().then(|| transactions.poll_order()).flatten() else {
            return;
        };
        if let Some(files) = self.files.take() {
            let max_bytes = self.max_bytes;
            let task = spawn_blocking(move || carry_out(files, order, max_bytes));
            self.busy = Some(Busy { task, until: Instant::now() + ANSWER_TIMEOUT });
        }
    }

    /// Waits for what is being done: for ever, where that is nothing. `None` where nobody needs to be told of
    /// it. Cancel-safe. Ask for the next with [`Spool::take_order`].
    ///
    /// # Errors
    /// [`SpoolFailed`]. After a write that failed the others are to be done without
    /// ([`OpenTransactions::set_spool`]); the files that were written can still be read. After
    /// [`SpoolFailed::Silent`] nothing can be done any more.
    pub async fn done(&mut self) -> Result<Option<Done>, SpoolFailed> {
        let Some(busy) = &mut self.busy else { return pending().await };
        let directory = || self.directory.clone();
        let finished = timeout_at(busy.until, &mut busy.task)
            .await
            .map_err(|_| SpoolFailed::Silent { directory: directory() })?;
        self.busy = None;
        let finished = finished.map_err(|error| SpoolFailed::Read {
            directory: directory(),
            source: io::Error::other(error),
        })?;
        self.files = Some(finished.files);
        self.written_bytes += finished.written_bytes;
        finished.done.map_err(|failed| match failed {
            Failed::Full => SpoolFailed::Full { directory: directory(), max_bytes: self.max_bytes },
            Failed::Write(source) => SpoolFailed::Write { directory: directory(), source },
            Failed::Read(source) => SpoolFailed::Read { directory: directory(), source },
        })
    }

    /// What was ever written.
    #[must_use]
    pub const fn written_bytes(&self) -> u64 {
        self.written_bytes
    }
}

/// Carries an order out. It blocks.
fn carry_out(mut files: Files, order: Order, max_bytes: u64) -> Finished {
    let mut written_bytes = 0;
    let done = match order {
        Order::Write { file, offset, chunks } => {
            let bytes = chunks.iter().map(|chunk| u64::try_from(chunk.len()).unwrap_or(u64::MAX));
            let bytes: u64 = bytes.sum();
            write(&mut files, file, offset, &chunks, bytes, max_bytes).map(|()| {
                written_bytes = bytes;
                Some(Done::Written { file })
            })
        }
        Order::Read { file, offset, bytes } => files
            .read(file, offset, bytes)
            .map(|bytes| Some(Done::Read { file, offset, bytes }))
            .map_err(Failed::Read),
        Order::Remove { file } => {
            files.remove(file);
            Ok(None)
        }
    };
    Finished { files, written_bytes, done }
}

fn write(
    files: &mut Files,
    file: FileId,
    offset: u64,
    chunks: &[bytes::Bytes],
    bytes: u64,
    max_bytes: u64,
) -> Result<(), Failed> {
    files.cut(file, offset).map_err(Failed::Write)?;
    if files.bytes().saturating_add(bytes) > max_bytes {
        return Err(Failed::Full);
    }
    files.write(file, offset, chunks).map_err(Failed::Write)
}
