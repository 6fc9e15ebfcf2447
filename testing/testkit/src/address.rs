//! Addresses for servers that are told where to listen.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

/// A loopback address that nobody listens on at this moment, and that no connection and no listener without a port of its
/// own gets from the system either: below the ports that those have. Processes that ask at once begin at ports of their
/// own.
///
/// # Errors
/// When there is none.
pub fn free_address() -> Result<SocketAddr> {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    static ASKED: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        let asked = ASKED.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + std::process::id().wrapping_mul(16).wrapping_add(asked) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, u16::try_from(port)?));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("nobody may listen on any port from {FIRST} on")
}
