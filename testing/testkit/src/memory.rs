//! What a process takes.

use std::fs;

use anyhow::{Context, Result};

/// A line of a process's status, such as `VmRSS:`, in bytes.
///
/// # Errors
/// When there is no such process or line.
pub fn memory_bytes(pid: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib: u64 = kib.with_context(|| format!("no {name} in the process's status"))?.parse()?;
    Ok(kib << 10)
}
