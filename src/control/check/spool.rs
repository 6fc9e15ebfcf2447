//! Can open transactions be kept on disk, and is there room for as many as may be?
//!
//! The service may run as somebody else: what is said of rights is said of whoever checks.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access, statvfs};
use walhook_core::size::ByteSize;

use super::Report;
use crate::config::{Config, Streaming};

const WHAT: &str = "source.spool";

pub(super) fn check(config: &Config, report: &mut Report) {
    let source = &config.source;
    if let Some(directory) = source.spool.as_ref().filter(|_| source.streaming == Streaming::On) {
        look(directory, source.spool_max, report);
    }
}

fn look(directory: &Path, most: ByteSize, report: &mut Report) {
    let at = existing(directory);
    let shown = at.display();
    let fix = "without it open transactions are kept in memory alone; give walhook a directory of its own";
    if !at.is_dir() {
        report.warn(WHAT, format!("{shown} is not a directory"), fix);
        return;
    }
    if let Err(error) = access(&at, Access::WRITE_OK | Access::EXEC_OK) {
        report.warn(WHAT, format!("{shown} cannot be written by this user: {error}"), fix);
        return;
    }
    match statvfs(&at) {
        Ok(disk) => {
            let free = ByteSize(disk.f_bavail.saturating_mul(disk.f_frsize) >> 20 << 20);
            if free.0 < most.0 {
                let finding =
                    format!("{shown} has {free} free, and source.spool_max lets it take {most}");
                report.warn(WHAT, finding, "make room, or lower source.spool_max");
            } else {
                report.pass(WHAT, format!("{shown} has {free} free, and may take {most}"));
            }
        }
        Err(error) => {
            report.warn(WHAT, format!("cannot see how much room {shown} has: {error}"), fix);
        }
    }
}

/// The directory, or the first one above it that is there: walhook makes those that are missing.
fn existing(directory: &Path) -> PathBuf {
    let found = directory.ancestors().find(|path| path.exists());
    found.unwrap_or(directory).to_owned()
}

#[cfg(test)]
mod tests {
    use walhook_testkit::scratch::Scratch;

    use super::*;

    fn looked(directory: &Path, most: u64) -> String {
        let mut report = Report::default();
        look(directory, ByteSize(most), &mut report);
        let found: Vec<String> = report.0.iter().map(ToString::to_string).collect();
        found.join("\n")
    }

    #[test]
    fn directory_that_is_made_later_is_held_against_the_disk_above_it() {
        let scratch = Scratch::new().unwrap();
        let missing = scratch.path().join("a/b");
        let said = looked(&missing, 1 << 20);
        assert!(
            said.starts_with("pass  source.spool: ") && said.contains("may take 1MiB"),
            "{said}"
        );
        assert!(!missing.exists(), "a check changes nothing");
        let said = looked(&missing, u64::MAX >> 20 << 20);
        assert!(said.starts_with("warn  source.spool: "), "{said}");
        assert!(said.ends_with("; make room, or lower source.spool_max"), "{said}");
    }

    #[test]
    fn file_in_its_place_is_told() {
        let scratch = Scratch::new().unwrap();
        let file = scratch.path().join("file");
        std::fs::write(&file, "").unwrap();
        let said = looked(&file, 1);
        assert!(said.contains("is not a directory; without it"), "{said}");
    }
}
