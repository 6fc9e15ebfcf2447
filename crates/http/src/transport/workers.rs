//! Threads of their own for requests.
//!
//! What receivers send is decrypted and parsed here, so that whatever they send, the stream's reader, the
//! dispatcher and the admin server find the operating system's next free core and not the end of a queue.
//!
//! Each thread has its own tasks, connections and sockets, and none takes another's: a request begins, waits
//! and ends without one thread having to wake another.

use std::cell::Cell;
use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

thread_local! {
    static PLACE: Cell<usize> = const { Cell::new(0) };
}

/// Which of the threads runs this, counted from 1; 0 for all others.
pub(super) fn place() -> usize {
    PLACE.get()
}

/// The threads, as many as there are cores. Dropped, they end by themselves.
#[derive(Debug)]
pub(super) struct Workers {
    threads: Vec<Handle>,
    stop: CancellationToken,
}

impl Workers {
    /// How many there will be.
    pub(super) fn count() -> usize {
        thread::available_parallelism().map_or(1, usize::from)
    }

    /// Starts them, the first with a task that ends with it.
    pub(super) fn start(task: impl Future<Output = ()> + Send + 'static) -> io::Result<Self> {
        let mut workers = Self { threads: Vec::new(), stop: CancellationToken::new() };
        for place in 1..=Self::count() {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            workers.threads.push(runtime.handle().clone());
            let stop = workers.stop.clone();
            thread::Builder::new().name("walhook-send".to_owned()).spawn(move || {
                PLACE.set(place);
                runtime.block_on(stop.cancelled());
                // A plain drop waits for name look-ups that hang.
                runtime.shutdown_background();
            })?;
        }
        if let Some(first) = workers.threads.first() {
            first.spawn(task);
        }
        Ok(workers)
    }

    /// At least one.
    pub(super) fn threads(&self) -> &[Handle] {
        &self.threads
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
