//! What the demo shows while it runs: a table redrawn in place, or a line every few seconds.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;

use walhook_testkit::oracle::Tally;

use super::plan::Class;

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What is shown at one moment.
#[derive(Debug)]
pub struct Frame {
    /// Since the traffic began.
    pub elapsed: Duration,
    /// For how long it is to run; `None` when it has ended.
    pub total: Option<Duration>,
    /// What the pipeline is doing.
    pub state: &'static str,
    /// WAL that the slot retains.
    pub retained: Option<u64>,
    /// Each class's counts.
    pub tallies: Vec<(Class, Tally)>,
}

/// The screen.
#[derive(Debug)]
pub struct View {
    to_stderr: bool,
    live: bool,
    drawn_lines: usize,
    last_line: Option<Duration>,
}

impl View {
    /// On standard output, or on standard error where that one carries the JSON object.
    #[must_use]
    pub fn new(json: bool) -> Self {
        let live =
            if json { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
        Self { to_stderr: json, live, drawn_lines: 0, last_line: None }
    }

    /// Says something, above the table.
    ///
    /// # Errors
    /// When the screen is gone.
    pub fn say(&mut self, text: &str) -> Result<()> {
        let clear = self.clear();
        self.write(&format!("{clear}{text}\n"))
    }

    /// Draws the table, or prints a line when it is time for one.
    ///
    /// # Errors
    /// When the screen is gone.
    pub fn draw(&mut self, frame: &Frame) -> Result<()> {
        if self.live {
            let text = format!("{}{}", self.clear(), table(frame));
            self.drawn_lines = table(frame).lines().count();
            return self.write(&text);
        }
        if self.last_line.is_some_and(|last| frame.elapsed < last + LINE_EVERY) {
            return Ok(());
        }
        if self.last_line.is_none() {
            self.write(&format!("{LEGEND}\n"))?;
        }
        self.last_line = Some(frame.elapsed);
        self.write(&format!("{}\n", line(frame)))
    }

    /// Goes back to where the table began.
    fn clear(&mut self) -> String {
        match std::mem::take(&mut self.drawn_lines) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\x1b[J"),
        }
    }

    /// Where whoever looked on has seen enough, the demo goes on, and its exit code tells.
    fn write(&self, text: &str) -> Result<()> {
        let written = if self.to_stderr {
            std::io::stderr().lock().write_all(text.as_bytes())
        } else {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        };
        match written {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn table(frame: &Frame) -> String {
    let retained = frame.retained.map_or_else(|| "-".to_owned(), bytes);
    let total = frame.total.map_or_else(String::new, |total| format!(" of {}", clock(total)));
    let mut text = format!(
        "\n {}{total}   pipeline {}   WAL retained {retained}\n\n {:<7}{:>11}{:>11}{:>10}{:>8}{:>12}{:>12}\n",
        clock(frame.elapsed),
        frame.state,
        "account",
        "committed",
        "delivered",
        "waiting",
        "dead",
        "p50",
        "p99"
    );
    for (class, tally) in &frame.tallies {
        text.push_str(&format!(
            " {:<7}{:>11}{:>11}{:>10}{:>8}{:>12}{:>12}\n",
            class.as_str(),
            grouped(tally.committed),
            grouped(tally.delivered),
            grouped(tally.waiting()),
            grouped(tally.dead),
            latency(tally.latency(50)),
            latency(tally.latency(99))
        ));
    }
    text
}

/// What the fields of a [`line`] are.
const LEGEND: &str = "\
time pipeline | class of account: deliveries made of those due, p50 and p99 from commit to 2xx | ...";

fn line(frame: &Frame) -> String {
    let retained = frame.retained.map_or_else(|| "-".to_owned(), bytes);
    let mut text = format!("{} {}", clock(frame.elapsed), frame.state);
    for (class, tally) in &frame.tallies {
        text.push_str(&format!(
            " | {} {} of {}",
            class.as_str(),
            grouped(tally.delivered),
            grouped(tally.expected)
        ));
        if tally.dead > 0 {
            text.push_str(&format!(", {} dead", grouped(tally.dead)));
        }
        if let (Some(p50), Some(p99)) = (tally.latency(50), tally.latency(99)) {
            text.push_str(&format!(", {}, {}", latency(Some(p50)), latency(Some(p99))));
        }
    }
    text + &format!(" | WAL retained {retained}")
}

/// `01:07`
fn clock(time: Duration) -> String {
    format!("{:02}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

/// `12,345`
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1.5 MiB`
#[must_use]
pub fn bytes(number: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (size, unit) in UNITS {
        if number >= size {
            let tenths = u128::from(number) * 10 / u128::from(size);
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{number} B")
}

fn latency(time: Option<Duration>) -> String {
    millis(time.map(|time| time.as_secs_f64() * 1000.0))
}

/// `3.2 ms`, `1,234 ms`, or a dash.
#[must_use]
pub fn millis(ms: Option<f64>) -> String {
    match ms {
        None => "-".to_owned(),
        Some(ms) if ms < 10.0 => format!("{ms:.1} ms"),
        Some(ms) => {
            let whole = u64::try_from(Duration::from_secs_f64(ms / 1000.0).as_millis());
            format!("{} ms", grouped(whole.unwrap_or(u64::MAX)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        let tallies = Class::ALL.map(|class| (class, Tally::default())).to_vec();
        Frame {
            elapsed: Duration::from_secs(67),
            total: Some(Duration::from_secs(90)),
            state: "running",
            retained: Some(3 << 19),
            tallies,
        }
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [5, 1024, 3 << 19, 5 << 30].map(bytes),
            ["5 B", "1.0 KiB", "1.5 MiB", "5.0 GiB"]
        );
        assert_eq!([None, Some(3.21), Some(1234.6)].map(millis), ["-", "3.2 ms", "1,234 ms"]);
    }

    #[test]
    fn table_has_a_line_for_each_class_and_fits_the_screen() {
        let table = table(&frame());
        for class in Class::ALL {
            assert!(table.lines().any(|line| line.starts_with(&format!(" {} ", class.as_str()))));
        }
        assert!(table.contains("01:07 of 01:30") && table.contains("WAL retained 1.5 MiB"));
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
        assert!(line(&frame()).lines().count() == 1);
    }
}
