//! The files of the spool, and those that others left. All of it blocks.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::PathBuf;

use bytes::Bytes;
use walhook_decode::streamed::FileId;

/// How the name of each file begins. What else lies in the directory is not ours.
const NAME: &str = "walhook-spool-";

/// They hold rows: nobody else is to read them.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// Names that are tried for one file: another process may share the directory, and our number.
const NAMES_TRIED: u32 = 1_000;

/// The files of this process. Removed when dropped.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    open: HashMap<FileId, Open>,
    bytes: u64,
    names: u32,
}

#[derive(Debug)]
struct Open {
    /// Locked for as long as it is open, so that others can tell that it is in use.
    file: File,
    path: PathBuf,
    length: u64,
}

impl Files {
    /// Makes the directory, removes what dead processes left there, and writes for once.
    pub(super) fn open(directory: PathBuf) -> io::Result<Self> {
        // The system would say that the file exists.
        if directory.exists() && !directory.is_dir() {
            return Err(io::Error::new(ErrorKind::NotADirectory, "it is no directory"));
        }
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(&directory)?;
        let mut files = Self { directory, open: HashMap::new(), bytes: 0, names: 0 };
        files.clean()?;
        let probe = FileId(u64::MAX);
        files.write(probe, 0, &[Bytes::from_static(b"a word")])?;
        files.remove(probe);
        Ok(files)
    }

    fn clean(&self) -> io::Result<()> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let is_named_so = entry.file_name().to_str().is_some_and(|name| name.starts_with(NAME));
            // A process that is alive holds a lock on each of its files.
            let is_left = |file: File| file.try_lock().is_ok();
            if is_named_so
                && entry.file_type()?.is_file()
                && File::open(entry.path()).is_ok_and(is_left)
            {
                fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
        if removed > 0 {
            let directory = self.directory.display();
            tracing::info!(%directory, files = removed, "removed what was left in the spool");
        }
        Ok(())
    }

    /// What they take.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back what a file has beyond `offset`.
    pub(super) fn cut(&mut self, id: FileId, offset: u64) -> io::Result<()> {
        if let Some(open) = self.open.get_mut(&id).filter(|open| open.length > offset) {
            open.file.set_len(offset)?;
            self.bytes -= open.length - offset;
            open.length = offset;
        }
        Ok(())
    }

    /// Writes from `offset` on, to a file that is made where it is not there.
    pub(super) fn write(&mut self, id: FileId, offset: u64, chunks: &[Bytes]) -> io::Result<()> {
        if !self.open.contains_key(&id) {
            let made = self.make()?;
            self.open.insert(id, made);
        }
        let Some(open) = self.open.get_mut(&id) else { return Ok(()) };
        let mut at = offset;
        for chunk in chunks {
            open.file.write_all_at(chunk, at)?;
            at += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            let grown = at.max(open.length);
            self.bytes += grown - open.length;
            open.length = grown;
        }
        Ok(())
    }

    fn make(&mut self) -> io::Result<Open> {
        let process = std::process::id();
        for _ in 0..NAMES_TRIED {
            self.names = self.names.wrapping_add(1);
            let path = self.directory.join(format!("{NAME}{process}-{}", self.names));
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(FILE_MODE);
            match options.open(&path) {
                Ok(file) => match file.lock() {
                    Ok(()) => return Ok(Open { file, path, length: 0 }),
                    // Others could not tell that it is in use.
                    Err(error) => {
                        let _ = fs::remove_file(&path);
                        return Err(error);
                    }
                },
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    /// Reads so many bytes from `offset` on.
    pub(super) fn read(&self, id: FileId, offset: u64, bytes: usize) -> io::Result<Bytes> {
        let open = self.open.get(&id).ok_or(ErrorKind::NotFound)?;
        let mut buffer = vec![0; bytes];
        open.file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.into())
    }

    /// Removes a file. What cannot be removed is of no use to anybody, and goes with the next process.
    pub(super) fn remove(&mut self, id: FileId) {
        if let Some(open) = self.open.remove(&id) {
            self.bytes -= open.length;
            if let Err(error) = fs::remove_file(&open.path)
                && error.kind() != ErrorKind::NotFound
            {
                let file = open.path.display();
                tracing::warn!(%file, %error, "cannot remove a file of the spool");
            }
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let ids: Vec<FileId> = self.open.keys().copied().collect();
        ids.into_iter().for_each(|id| self.remove(id));
    }
}
