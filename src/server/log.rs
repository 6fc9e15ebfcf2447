//! The log: to standard error, as `[log]` says.
//!
//! Secrets are kept out of it where they are held (their types do not print). As a second defence
//! every line goes through [`redact`] on its way out; and what came from outside neither ends a line
//! nor acts on a terminal, for all but the end of an event is escaped there too. In the text format a value
//! that leaves open where it ends is quoted (`fields`).
//!
//! Nobody who logs waits for the reader: lines go through a queue (`queue`), and a thread writes them.

mod fields;
mod queue;

use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use tracing::Level;
use tracing_subscriber::EnvFilter;

use self::fields::Fields;
use self::queue::Queue;
pub(super) use self::queue::dropped;
use crate::config::{Log, LogFormat};
use walhook_core::escape::one_line;
use walhook_core::redact::redact;

/// At the first target's debug level stand the parameters of SQL statements, so rows of customers. The
/// second repeats itself with each try to connect, where the crate `bus` says once what there is to say.
const QUIETED: [&str; 2] = ["tokio_postgres=warn", "async_nats=off"];

/// Warns of each alert that an endpoint sends, without saying whose, where the attempt's outcome says that. Quiet unless
/// `log.level` names it.
const RUSTLS: &str = "rustls";

/// So long the end of the process waits until the last lines are written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The log of this process.
#[derive(Debug)]
struct Started {
    queue: Arc<Queue>,
    format: LogFormat,
}

static STARTED: OnceLock<Started> = OnceLock::new();

/// Starts the log. A second start in one process is ignored.
///
/// # Errors
/// When `log.level` cannot be read, or no thread can be had.
pub fn init(log: &Log) -> Result<()> {
    let filter = filter(log)?;
    if STARTED.get().is_some() {
        return Ok(());
    }
    let queue = Arc::new(Queue::default());
    let written = Arc::clone(&queue);
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        written.write_to(io::stderr(), |lines| {
            tracing::warn!(lines, "the log was not read: so many lines of it were dropped");
        });
    })?;
    let _first = STARTED.set(Started { queue: Arc::clone(&queue), format: log.format });
    let writer = move || Lines(ToQueue(Arc::clone(&queue)));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let _already_started = match log.format {
        LogFormat::Text => lines.with_ansi(false).fmt_fields(Fields).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// Says why the process ends, and with which exit code: where the log has been started at level error, and then as the
/// last line on standard error. That begins with `error: `; where the log is JSON, it is the log's line.
pub fn complain(text: &str, exit_code: u8) {
    let plain = format!("error: {text}\n");
    let Some(Started { queue, format }) = STARTED.get() else {
        // Where nobody reads that any more, nothing can be said.
        let _nobody_reads_it = io::stderr().write_all(plain.as_bytes());
        return;
    };
    tracing::error!(reason = text, exit_code, "ending");
    match format {
        LogFormat::Text => queue.push(plain.into_bytes()),
        LogFormat::Json if tracing::enabled!(Level::ERROR) => {}
        LogFormat::Json => {
            let line = serde_json::json!({
                "level": "ERROR", "message": "ending", "reason": text, "exit_code": exit_code,
            });
            queue.push(format!("{line}\n").into_bytes());
        }
    }
}

/// Waits, for a second at most, until all that was logged is written: at the end of the process.
pub fn finish() {
    if let Some(Started { queue, .. }) = STARTED.get() {
        let _or_nobody_reads_it = queue.flush(LAST_LINES);
    }
}

/// The filter that `log.level` says, without what is never logged.
///
/// # Errors
/// When it is neither a level nor a list of `target=level`.
fn filter(log: &Log) -> Result<EnvFilter> {
    let mut filter = log.filter()?;
    if !log.level.contains(RUSTLS) {
        filter = filter.add_directive(format!("{RUSTLS}=off").parse()?);
    }
    QUIETED.iter().try_fold(filter, |filter, quiet| Ok(filter.add_directive(quiet.parse()?)))
}

/// Redacts and escapes every write; the subscriber writes an event at a time, as one line.
struct Lines<W>(W);

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let (event, end) = text.strip_suffix('\n').map_or((&*text, ""), |event| (event, "\n"));
        let line = format!("{}{end}", one_line(&redact(event)));
        // Where nobody reads the log any more, the subscriber would say so on the same closed pipe, and
        // panic in the midst of whatever was being logged.
        let _nobody_reads_it = self.0.write_all(line.as_bytes());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _nobody_reads_it = self.0.flush();
        Ok(())
    }
}

/// Hands what is written to the queue, each write as one line.
struct ToQueue(Arc<Queue>);

impl Write for ToQueue {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_writer_hides_secrets_whatever_is_logged() {
        let mut out = Lines(vec![]);
        out.write_all(b"url=postgres://u:hush@h/d\n").unwrap();
        assert_eq!(out.0, b"url=postgres://u:***@h/d\n");
    }

    /// What a row of a customer may hold.
    const HOSTILE: &str = "id\u{1b}[2J\n2026-01-01T00:00:00Z  INFO forged\u{9b}1A\u{202e}\u{7f}";

    fn logged(json: bool) -> String {
        text_of(json, || {
            tracing::info!(endpoint = %HOSTILE, debugged = ?HOSTILE, "{HOSTILE}");
            tracing::info!(r#type = HOSTILE, "plain");
        })
    }

    fn text_of(json: bool, log: impl FnOnce()) -> String {
        let (lines, out) = (tracing_subscriber::fmt().with_ansi(false), Captured::default());
        let writer = out.clone();
        let lines = lines.with_writer(move || Lines(writer.clone()));
        if json {
            tracing::subscriber::with_default(lines.json().flatten_event(true).finish(), log);
        } else {
            tracing::subscriber::with_default(lines.fmt_fields(Fields).finish(), log);
        }
        String::from_utf8(out.0.lock().unwrap().clone()).unwrap()
    }

    #[derive(Clone, Default)]
    struct Captured(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn log_of_text_from_outside_is_one_line_an_event_without_characters_that_act() {
        for json in [false, true] {
            let log = logged(json);
            assert_eq!(log.lines().count(), 2, "{log}");
            assert!(!log.contains(|c| walhook_core::escape::is_unfit(c) && c != '\n'), "{log:?}");
        }
        let log = logged(true);
        let event: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
        assert_eq!((&event["endpoint"], &event["message"]), (&HOSTILE.into(), &HOSTILE.into()));
    }

    #[test]
    fn value_that_brings_fields_along_is_quoted_in_the_text_format() {
        let (answer, name) = ("status 503, \"x\" endpoint=8", "a=b");
        let log = text_of(false, || {
            tracing::warn!(endpoint = %7, account = "1", error = %answer, %name, none = %"", n = 3, "it failed");
        });
        let fields = r#"it failed endpoint=7 account="1" error="status 503, \"x\" endpoint=8" name="a=b" none="" n=3"#;
        assert!(log.ends_with(&format!("{fields}\n")), "{log}");
    }

    #[test]
    fn filter_never_lets_sql_parameters_through() {
        let log = Log { level: "trace,tokio_postgres=trace".to_owned(), format: LogFormat::Text };
        assert!(filter(&log).unwrap().to_string().contains("tokio_postgres=warn"));
        assert!(filter(&log).unwrap().to_string().contains("rustls=off"));
        let asked = Log { level: "info,rustls=debug".to_owned(), ..Log::default() };
        assert!(filter(&asked).unwrap().to_string().contains("rustls=debug"));
        assert!(filter(&Log { level: "loud".to_owned(), ..Log::default() }).is_err());
    }
}
