//! The CPU time of processes.

use std::path::Path;

use anyhow::{Context, Result};

/// Linux reports CPU time in hundredths of a second to every program.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time of a process, in seconds.
///
/// # Errors
/// When there is no such process.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let [_, own, _] = times(pid)?;
    Ok(own)
}

/// The same of a PostgreSQL server, with its sessions and those that have ended. `data` is its data
/// directory.
///
/// # Errors
/// When it does not run.
pub fn server_cpu_seconds(data: &Path) -> Result<f64> {
    let file = std::fs::read_to_string(data.join("postmaster.pid"))?;
    let postmaster: u32 = file.lines().next().context("an empty postmaster.pid")?.parse()?;
    let [_, own, ended] = times(postmaster)?;
    let mut sum = own + ended;
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that ends meanwhile is counted next time, among those that have.
        if let Ok([parent, own, _]) = times(pid)
            && parent == f64::from(postmaster)
        {
            sum += own;
        }
    }
    Ok(sum)
}

/// The time for which cores of the machine had nothing to do, all together, in seconds.
///
/// # Errors
/// Where there is no `/proc/stat`.
pub fn idle_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("an empty /proc/stat")?;
    // cpu user nice system idle iowait …
    let mut fields = line.split_whitespace().skip(4);
    let mut field = || -> Result<f64> { Ok(fields.next().context("too short")?.parse()?) };
    Ok((field()? + field()?) / TICKS_PER_SECOND)
}

/// Of a process: its parent, its own time, and that of its children that have ended.
fn times(pid: u32) -> Result<[f64; 3]> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The program's name, in brackets, may hold spaces.
    let (_, fields) = stat.rsplit_once(") ").context("unreadable /proc/pid/stat")?;
    let field = |n| -> Result<f64> { Ok(fields.split(' ').nth(n).context("too short")?.parse()?) };
    let seconds = |n: usize| Ok::<_, anyhow::Error>((field(n)? + field(n + 1)?) / TICKS_PER_SECOND);
    Ok([field(1)?, seconds(11)?, seconds(13)?])
}

#[test]
fn cpu_time_of_a_process_that_works_grows() {
    let ours = || cpu_seconds(std::process::id()).unwrap();
    let before = ours();
    while ours() <= before {
        std::hint::black_box((0..1_000).sum::<u64>());
    }
    assert!(cpu_seconds(u32::MAX).is_err());
}
