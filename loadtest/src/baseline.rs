//! The figures that were reached: `benchmarks/baseline.toml`, and what is said of a run beside them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::figure::{Better, Figure};

/// One figure's entry.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The median that was reached; none yet, and nothing fails.
    pub value: Option<f64>,
    /// The share of it by which a median may be worse before the run fails.
    margin: f64,
    /// What is to be reached.
    pub goal: Option<f64>,
}

/// All of them, by group and key.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Baseline(BTreeMap<String, BTreeMap<String, Entry>>);

/// What a median is beside its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is no entry, or no value in it: it stands beside others, or was not raised yet.
    Unknown,
    /// By more than the margin.
    Worse,
    /// Neither.
    Within,
    /// By more than the margin: the entry is to be raised.
    Improved,
}

impl Verdict {
    /// For the table.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::Worse => "WORSE",
            Self::Within => "ok",
            Self::Improved => "improved",
        }
    }
}

impl Baseline {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }

    /// A figure's entry.
    #[must_use]
    pub fn entry(&self, figure: &Figure) -> Option<Entry> {
        self.0.get(figure.group)?.get(figure.key).copied()
    }

    /// How its median stands beside its entry.
    #[must_use]
    pub fn verdict(&self, figure: &Figure) -> Verdict {
        let Some(Entry { value: Some(value), margin, .. }) = self.entry(figure) else {
            return Verdict::Unknown;
        };
        let (median, slack) = (figure.spread().median, value.abs() * margin);
        // How much worse it is; what is not a number is no figure that was reached.
        let worse = match figure.better {
            Better::Less => median - value,
            Better::More => value - median,
        };
        if worse.is_nan() || worse > slack {
            Verdict::Worse
        } else if worse < -slack {
            Verdict::Improved
        } else {
            Verdict::Within
        }
    }
}

/// The file's text with the medians of these figures in the place of their entries' values, or in front of what
/// an entry without one says, and nothing else changed. A figure without an entry is left out.
#[must_use]
pub fn raised(text: &str, figures: &[Figure]) -> String {
    let mut group = "";
    let mut raised = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            group = name;
        }
        let key = line.split(' ').next().unwrap_or_default();
        let figure = figures.iter().find(|figure| figure.group == group && figure.key == key);
        let changed = figure.and_then(|figure| {
            let median = rounded(figure.spread().median);
            let Some((before, rest)) = line.split_once("value = ") else {
                let (before, rest) = line.split_once("{ ")?;
                return Some(format!("{before}{{ value = {median}, {rest}\n"));
            };
            let end = rest.find([',', ' ', '}'])?;
            Some(format!("{before}value = {median}{}\n", rest.get(end..)?))
        });
        raised.push_str(&changed.unwrap_or_else(|| format!("{line}\n")));
    }
    raised
}

/// With as many digits as are worth something.
#[must_use]
pub fn rounded(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 || size == 0.0 => 2,
        size if size >= 0.1 => 3,
        _ => 4,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Reached.\n[one]\ncpu = { value = 2.0, margin = 0.1, goal = 1.2 }\n\
                        rate = { value = 0.5, margin = 0.1 }\n[two]\ncpu = { value = 0, margin = 0.2 }\n\
                        wal = { margin = 0.2, goal = 9 }\n";

    fn figure(group: &'static str, key: &'static str, better: Better, value: f64) -> Figure {
        let mut figure = Figure::new(group, key, "", better);
        figure.value(value);
        figure
    }

    #[test]
    fn verdict_is_by_margin_and_direction() {
        let baseline: Baseline = toml::from_str(TEXT).unwrap();
        let cpu = |value| baseline.verdict(&figure("one", "cpu", Better::Less, value));
        let rate = |value| baseline.verdict(&figure("one", "rate", Better::More, value));
        assert_eq!(
            [2.19, 2.21, 1.79].map(cpu),
            [Verdict::Within, Verdict::Worse, Verdict::Improved]
        );
        assert_eq!(
            [0.46, 0.44, 0.56].map(rate),
            [Verdict::Within, Verdict::Worse, Verdict::Improved]
        );
        assert_eq!(cpu(f64::NAN), Verdict::Worse);
        let none = |value| baseline.verdict(&figure("two", "cpu", Better::Less, value));
        assert_eq!([0.0, 1.0].map(none), [Verdict::Within, Verdict::Worse]);
        for key in ["rate", "wal"] {
            let other = figure("two", key, Better::Less, 1.0);
            assert_eq!(baseline.verdict(&other), Verdict::Unknown);
        }
    }

    #[test]
    fn raised_baseline_differs_in_the_values_of_the_figures_alone() {
        let figures = [
            figure("two", "cpu", Better::Less, 1234.5),
            figure("one", "rate", Better::More, 0.61234),
            figure("three", "cpu", Better::Less, 9.0),
            figure("two", "wal", Better::Less, 8.0),
        ];
        let expected = TEXT
            .replace("value = 0.5", "value = 0.612")
            .replace("value = 0,", "value = 1234,")
            .replace("{ margin = 0.2, goal", "{ value = 8.00, margin = 0.2, goal");
        assert_eq!(raised(TEXT, &figures), expected);
        let baseline: Baseline = toml::from_str(&expected).unwrap();
        assert_eq!(baseline.entry(&figures[1]).and_then(|entry| entry.value), Some(0.612));
    }
}
