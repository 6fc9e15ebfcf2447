//! What the program's admin server says.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For an answer; a process that is stopped gives none.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A path of the admin server: status and body.
///
/// # Errors
/// When it does not answer.
pub async fn get(admin: SocketAddr, path: &str) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(admin).await?;
        let request = format!("GET {path} HTTP/1.0\r\nhost: {admin}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = timeout(TIMEOUT, exchange).await??;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of head")?;
    let status = head.split(' ').nth(1).context("the answer has no status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// Whether a path of the admin server answers 200.
pub async fn answers(admin: SocketAddr, path: &str) -> bool {
    get(admin, path).await.is_ok_and(|(status, _)| status == 200)
}

/// Metrics as they would be without the label `pipeline`, for whoever knows which one it asked.
#[must_use]
pub fn without_pipeline(metrics: &str) -> String {
    const LABEL: &str = "pipeline=\"";
    let without = |line: &str| -> Option<String> {
        let (before, rest) = line.split_once(LABEL)?;
        let (_, after) = rest.split_once('"')?;
        Some(match (before.strip_suffix(','), after.strip_prefix(',')) {
            (Some(before), _) => format!("{before}{after}\n"),
            (None, Some(after)) => format!("{before}{after}\n"),
            (None, None) => {
                format!("{}{}\n", before.trim_end_matches('{'), after.trim_start_matches('}'))
            }
        })
    };
    metrics.lines().map(|line| without(line).unwrap_or_else(|| format!("{line}\n"))).collect()
}
