//! A cluster that was made once, to be copied.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::copy_tree;

/// A data directory below cargo's target directory, made by the server binaries of one place as they
/// are now. `cargo clean` removes it.
#[derive(Debug)]
pub(super) struct Template {
    data: PathBuf,
}

/// The template of these binaries; none where the program was not built by cargo's tests.
pub(super) fn of(bin: &Path) -> Result<Option<Template>> {
    let program = std::env::current_exe()?;
    let Some(target) = program.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()) else {
        return Ok(None);
    };
    let binary = fs::metadata(bin.join("postgres"))?;
    let mut hasher = DefaultHasher::new();
    (bin, binary.len(), binary.modified()?).hash(&mut hasher);
    let name = format!("cluster-{:016x}", hasher.finish());
    Ok(Some(Template { data: target.join("tmp").join(name) }))
}

impl Template {
    /// Fills `data` with a copy. Where there is none to copy yet, with what `make` makes there, which is
    /// copied by whoever comes later.
    pub(super) fn copy_or_make(&self, data: &Path, make: impl Fn() -> Result<()>) -> Result<()> {
        if self.data.is_dir() {
            return copy_tree(&self.data, data);
        }
        make()?;
        let unfinished = self.data.with_extension(format!("{:08x}", rand::random::<u32>()));
        fs::create_dir_all(self.data.parent().unwrap_or(Path::new(".")))?;
        copy_tree(data, &unfinished)?;
        // Fails where another was quicker: its template is as good.
        if fs::rename(&unfinished, &self.data).is_err() {
            fs::remove_dir_all(&unfinished)?;
        }
        Ok(())
    }
}
