//! Lines on their way to standard error: written by a thread of their own, so that a reader that stalls (a terminal
//! that is held, a collector that hangs) holds up nobody who logs.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntCounter;

/// What lines that wait may take together, with what each takes beside its text.
const MAX_BYTES: usize = 4 << 20;

/// What a line takes beside its text.
const LINE_BYTES: usize = 64;

/// The help that `/metrics` shows.
const HELP: &str = "Lines of the log that were dropped, for nobody read it.";

/// `walhook_log_lines_dropped_total`: there is one log in a process.
static DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "the name is a constant, and a metric's")]
    IntCounter::new("walhook_log_lines_dropped_total", HELP).expect("a name of a metric")
});

/// How many lines this process has dropped, for its metrics.
pub(in crate::server) fn dropped() -> IntCounter {
    DROPPED.clone()
}

/// Lines that wait to be written, the oldest first. What does not fit is dropped, and counted.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    /// What they take.
    bytes: usize,
    /// Whether one that was taken out is being written.
    is_writing: bool,
    /// How many were dropped since it was last said.
    dropped: u64,
}

impl Queue {
    /// Puts a line behind the others, where there is room. Never waits for the reader.
    pub(super) fn push(&self, line: Vec<u8>) {
        let mut waiting = self.lock();
        let bytes = waiting.bytes + line.len() + LINE_BYTES;
        if bytes > MAX_BYTES {
            waiting.dropped += 1;
            DROPPED.inc();
            return;
        }
        waiting.bytes = bytes;
        waiting.lines.push_back(line);
        self.changed.notify_all();
    }

    /// Waits until all is written; at most so long. Whether it is.
    pub(super) fn flush(&self, at_most: Duration) -> bool {
        let is_pending = |waiting: &mut Waiting| waiting.is_writing || !waiting.lines.is_empty();
        let waited = self.changed.wait_timeout_while(self.lock(), at_most, is_pending);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Writes for ever. Where lines were dropped, `say_dropped` is told how many, once all that waited is written.
    pub(super) fn write_to(&self, mut out: impl Write, say_dropped: impl Fn(u64)) {
        loop {
            let line = self.next();
            // Where nobody reads the log any more, nothing can be said.
            let _nobody_reads_it = out.write_all(&line).and_then(|()| out.flush());
            let dropped = self.written();
            if dropped > 0 {
                say_dropped(dropped);
            }
        }
    }

    fn next(&self) -> Vec<u8> {
        let is_empty = |waiting: &mut Waiting| waiting.lines.is_empty();
        let waited = self.changed.wait_while(self.lock(), is_empty);
        let mut waiting = waited.unwrap_or_else(PoisonError::into_inner);
        let line = waiting.lines.pop_front().unwrap_or_default();
        waiting.bytes = waiting.bytes.saturating_sub(line.len() + LINE_BYTES);
        waiting.is_writing = true;
        line
    }

    /// Says that the last line is written. How many were dropped, where that can be said now.
    fn written(&self) -> u64 {
        let mut waiting = self.lock();
        waiting.is_writing = false;
        self.changed.notify_all();
        if waiting.lines.is_empty() { std::mem::take(&mut waiting.dropped) } else { 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    /// Stands still at each write until it is let go, as a pipe that nobody reads.
    struct Stalled {
        go: Receiver<()>,
        out: Sender<Vec<u8>>,
    }

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // One whose sender is gone stands no more.
            let _open = self.go.recv();
            let _listens = self.out.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn reader_that_stalls_holds_nobody_up_and_what_does_not_fit_is_counted_and_said() {
        let queue = Arc::new(Queue::default());
        let (go, stopped) = channel();
        let (out, written) = channel();
        let (writer, again) = (Arc::clone(&queue), Arc::clone(&queue));
        thread::spawn(move || {
            let say = |lines| again.push(format!("dropped {lines}").into_bytes());
            writer.write_to(Stalled { go: stopped, out }, say);
        });
        let (before, line) = (dropped().get(), vec![b'x'; 1 << 20]);
        (0..20).for_each(|_| queue.push(line.clone()));
        queue.push(vec![b'y'; MAX_BYTES]);
        assert!(!queue.flush(Duration::from_millis(10)), "nobody has read");
        let lost = dropped().get() - before;
        // One may be out already, on its way to the reader.
        assert!((17..=18).contains(&lost), "{lost}");
        assert!(queue.lock().bytes <= MAX_BYTES);
        drop(go);
        let last = written.iter().find(|line| line.starts_with(b"dropped")).unwrap();
        assert_eq!(String::from_utf8(last).unwrap(), format!("dropped {lost}"));
        assert!(queue.flush(SOON) && queue.lock().bytes == 0);
        queue.push(b"z".to_vec());
        assert!(queue.flush(SOON));
        assert_eq!(written.try_recv().unwrap(), b"z");
    }
}
