//! `run --record`: what comes in at the dispatcher's door, written to a file, beside the pipeline.
//!
//! The dispatcher's task makes the lines and never waits: a thread writes them. Where that falls behind, or
//! the file is full, the recording ends and says so; the pipeline goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use walhook_core::record::Key;
use walhook_core::tick::Tick;
use walhook_dispatch::dispatcher::{Effect, Input, Settings, Start};
use walhook_dispatch::recording::{self, Recorder};

/// Bytes of a recording, at most.
pub const FILE_MAX: u64 = 256 << 20;

/// Of these, what is left for the last line.
const END_BYTES: u64 = 1 << 10;

/// Bytes of whole lines that go to the file together, about.
const AT_ONCE: usize = 64 << 10;

/// Lines, and their bytes, between the dispatcher and the thread that writes.
const LINES_MAX: usize = 65_536;
const QUEUED_MAX: usize = 32 << 20;

/// How often the writer looks whether the recording has ended, while nothing comes.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

const FULL: &str = "the file is full";
const BEHIND: &str = "the disk did not keep up";

/// A recording under way: the file is closed by [`Recording::finish`].
#[derive(Debug)]
pub struct Recording {
    tape: Tape,
    writer: JoinHandle<()>,
}

/// Where lines go. One is handed to each dispatcher that begins.
#[derive(Debug, Clone)]
pub(super) struct Tape {
    key: Key,
    lines: SyncSender<Vec<u8>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queued: AtomicUsize,
    /// Why there are no more lines, where it is not that the process ends.
    stopped: OnceLock<String>,
}

impl Recording {
    /// Makes the file, for its owner alone.
    ///
    /// # Errors
    /// It is there already, or cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::bounded(path, FILE_MAX)
    }

    fn bounded(path: &Path, max: u64) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let (lines, queue) = sync_channel(LINES_MAX);
        let shared = Arc::new(Shared::default());
        let tape = Tape { key: Key::new(rand::random()), lines, shared: Arc::clone(&shared) };
        let path = path.display().to_string();
        let writer = std::thread::Builder::new().name("recording".to_owned()).spawn(move || {
            let mut out = Lines::new(file);
            let end = write(&mut out, &queue, &shared, max);
            let written = out.written;
            let why = shared.stopped.get().cloned();
            match (end, why) {
                (Err(error), _) => tracing::error!(
                    path, written, %error,
                    "the recording has ended: it cannot be written; the pipeline goes on without it; what it holds can be replayed"
                ),
                (Ok(()), Some(why)) => tracing::error!(
                    path, written, why,
                    "the recording has ended, and the pipeline goes on without it; what it holds can be replayed"
                ),
                (Ok(()), None) => tracing::info!(path, written, "the recording is complete"),
            }
        })?;
        Ok(Self { tape, writer })
    }

    /// For the next dispatcher.
    pub(super) fn tape(&self) -> Tape {
        self.tape.clone()
    }

    /// Writes what is left, and closes the file. Blocks while the disk does.
    pub fn finish(self) {
        let Self { tape, writer } = self;
        drop(tape);
        // It has said what failed.
        let _ = writer.join();
    }
}

/// Writes what comes, until nothing more can come or the file is full.
fn write<F: Cut>(
    out: &mut Lines<F>,
    queue: &Receiver<Vec<u8>>,
    shared: &Shared,
    max: u64,
) -> io::Result<()> {
    loop {
        let line = match queue.try_recv() {
            Ok(line) => line,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                out.flush()?;
                if shared.stopped.get().is_some() {
                    break;
                }
                match queue.recv_timeout(LOOKS_EVERY) {
                    Ok(line) => line,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
        };
        shared.queued.fetch_sub(line.len(), Ordering::Relaxed);
        if out.bytes() + line.len() as u64 + END_BYTES > max {
            let _ = shared.stopped.set(FULL.to_owned());
            break;
        }
        out.put(&line)?;
    }
    let why = shared.stopped.get().map_or("walhook has ended", String::as_str);
    out.put(&recording::ended(why)?)?;
    out.flush()
}

/// A file that can be cut off.
trait Cut: Write {
    /// Nothing is left behind so many bytes.
    fn cut(&mut self, bytes: u64) -> io::Result<()>;
}

impl Cut for File {
    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
}

/// Whole lines, some at once: where the disk takes a part of them, the file ends with a line all the same.
struct Lines<F> {
    file: F,
    waiting: Vec<u8>,
    /// Bytes that the file has.
    written: u64,
}

impl<F: Cut> Lines<F> {
    const fn new(file: F) -> Self {
        Self { file, waiting: Vec::new(), written: 0 }
    }

    /// With what waits.
    const fn bytes(&self) -> u64 {
        self.written + self.waiting.len() as u64
    }

    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        self.waiting.extend_from_slice(line);
        if self.waiting.len() < AT_ONCE { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Err(error) = self.file.write_all(&self.waiting) {
            // Where that fails too, its last line cannot be read.
            let _ = self.file.cut(self.written);
            return Err(error);
        }
        self.written = self.bytes();
        self.waiting.clear();
        Ok(())
    }
}

impl Tape {
    /// For a dispatcher that begins so; `None` where the recording has ended.
    pub(super) fn begin(self, settings: &Settings, start: &Start, seed: u64) -> Option<Recorded> {
        let walhook = env!("CARGO_PKG_VERSION");
        let (recorder, line) =
            self.made(Recorder::begin(self.key, walhook, settings, start, seed))?;
        self.put(line)?;
        Some(Recorded { tape: self, recorder })
    }

    fn made<T>(&self, made: io::Result<T>) -> Option<T> {
        made.map_err(|error| self.shared.stopped.set(error.to_string())).ok()
    }

    /// Never waits. `None`: the recording has ended.
    fn put(&self, line: Vec<u8>) -> Option<()> {
        if self.shared.stopped.get().is_some() {
            return None;
        }
        let bytes = line.len();
        let queued = self.shared.queued.fetch_add(bytes, Ordering::Relaxed);
        if queued > QUEUED_MAX || self.lines.try_send(line).is_err() {
            let _ = self.shared.stopped.set(BEHIND.to_owned());
            return None;
        }
        Some(())
    }
}

/// Records one dispatcher.
#[derive(Debug)]
pub(super) struct Recorded {
    tape: Tape,
    recorder: Recorder,
}

impl Recorded {
    /// What comes in. `None`, here and below: the recording has ended.
    pub(super) fn input(&self, at: Tick, input: &Input) -> Option<()> {
        self.tape.put(self.tape.made(self.recorder.input(at, input))?)
    }

    /// What goes out.
    pub(super) fn effect(&mut self, effect: &Effect) -> Option<()> {
        let added = self.recorder.effect(effect);
        self.tape.made(added)
    }

    /// That a round has come to its end.
    pub(super) fn polled(&mut self, at: Tick) -> Option<()> {
        let line = self.recorder.polled(at);
        self.tape.put(self.tape.made(line)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use walhook_dispatch::recording::{Line, parse};

    fn lines(path: &Path) -> Vec<Vec<u8>> {
        let all = std::fs::read(path).unwrap();
        all.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
    }

    fn why(line: Option<&Vec<u8>>) -> String {
        match parse(line.unwrap()).unwrap() {
            Line::Ended { why } => why,
            other @ (Line::Begin(_) | Line::Input { .. } | Line::Polled { .. }) => {
                panic!("{other:?}")
            }
        }
    }

    #[test]
    fn recording_ends_before_the_file_is_larger_than_it_may_be_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording");
        let recording = Recording::bounded(&path, 3 << 10).unwrap();
        let tape = recording.tape();
        let line = [vec![b' '; 99], vec![b'\n']].concat();
        // Whoever records is told, so that it makes no further lines.
        while tape.put(line.clone()).is_some() {}
        assert!(tape.put(line).is_none());
        drop(tape);
        recording.finish();
        let size = std::fs::metadata(&path).unwrap().len();
        assert!((2_000..=3 << 10).contains(&size), "{size} bytes");
        assert_eq!(why(lines(&path).last()), FULL);
    }

    #[test]
    fn recording_is_its_owners_alone_and_replaces_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording");
        let recording = Recording::create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Recording::create(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        recording.finish();
        assert_eq!(why(lines(&path).last()), "walhook has ended");
    }

    /// A disk with room for so many bytes.
    struct Full(Vec<u8>, usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let fit = bytes.len().min(self.1 - self.0.len());
            if fit == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.extend_from_slice(&bytes[..fit]);
            Ok(fit)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Cut for Full {
        fn cut(&mut self, bytes: u64) -> io::Result<()> {
            self.0.truncate(usize::try_from(bytes).unwrap());
            Ok(())
        }
    }

    #[test]
    fn recording_on_a_disk_that_is_full_ends_with_a_whole_line() {
        let room = 3 * AT_ONCE + 50;
        let mut out = Lines::new(Full(Vec::new(), room));
        let line = [vec![b'x'; 99], vec![b'\n']].concat();
        let error = (0..).find_map(|_| out.put(&line).err()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let all = &out.file.0;
        assert_eq!(all.len() as u64, out.written);
        assert!(all.len() > AT_ONCE && all.len() < room, "{} bytes", all.len());
        assert_eq!((all.len() % 100, all.last()), (0, Some(&b'\n')));
    }

    #[test]
    fn recording_ends_where_the_disk_does_not_keep_up_and_nobody_waits() {
        let (sender, queue) = sync_channel(2);
        let shared = Arc::new(Shared::default());
        let tape = Tape { key: Key::new([0; 32]), lines: sender, shared: Arc::clone(&shared) };
        let put: Vec<bool> = (0..4).map(|_| tape.put(b"{}\n".to_vec()).is_some()).collect();
        assert_eq!(put, [true, true, false, false]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording");
        let mut out = Lines::new(File::create(&path).unwrap());
        write(&mut out, &queue, &shared, FILE_MAX).unwrap();
        assert_eq!(lines(&path).len(), 3);
        assert_eq!(why(lines(&path).last()), BEHIND);
    }
}
