//! What was measured, in pairs of runs.

/// Which way a figure improves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Less is better.
    Less,
    /// More is better.
    More,
}

/// One pair of runs.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// walhook's.
    pub ours: f64,
    /// What it is divided by; without, the figure is ours alone.
    pub theirs: Option<f64>,
}

impl Pair {
    /// The ratio, or the value.
    #[must_use]
    pub fn value(self) -> f64 {
        self.theirs.map_or(self.ours, |theirs| self.ours / theirs)
    }
}

/// A figure of some pairs.
#[derive(Debug, Clone)]
pub struct Figure {
    /// Its table in the baseline.
    pub group: &'static str,
    /// Its key there.
    pub key: &'static str,
    /// What it is, in the words of the table.
    pub what: &'static str,
    /// Which way it improves.
    pub better: Better,
    /// What was measured.
    pub pairs: Vec<Pair>,
}

impl Figure {
    /// Without a pair yet.
    #[must_use]
    pub fn new(group: &'static str, key: &'static str, what: &'static str, better: Better) -> Self {
        Self { group, key, what, better, pairs: Vec::new() }
    }

    /// Enters a pair.
    pub fn ratio(&mut self, ours: f64, theirs: f64) {
        self.pairs.push(Pair { ours, theirs: Some(theirs) });
    }

    /// Enters a value that is divided by nothing.
    pub fn value(&mut self, ours: f64) {
        self.pairs.push(Pair { ours, theirs: None });
    }

    /// Median, least and greatest of the pairs' values.
    #[must_use]
    pub fn spread(&self) -> Spread {
        Spread::of(self.pairs.iter().map(|pair| pair.value()).collect())
    }

    /// The medians of both sides.
    #[must_use]
    pub fn sides(&self) -> (f64, Option<f64>) {
        let ours = Spread::of(self.pairs.iter().map(|pair| pair.ours).collect()).median;
        let theirs: Option<Vec<f64>> = self.pairs.iter().map(|pair| pair.theirs).collect();
        (ours, theirs.map(|theirs| Spread::of(theirs).median))
    }
}

/// Median and range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub most: f64,
}

impl Spread {
    /// Of these; of an even number, the mean of the two in the middle. Not a number without any.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |n: usize| values.get(n).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        let median = f64::midpoint(at(last / 2), at(values.len() / 2));
        Self { median, least: at(0), most: at(last) }
    }
}

#[test]
fn spread_of_an_even_number_has_the_mean_of_the_middle_as_its_median() {
    let spread = |values: &[f64]| Spread::of(values.to_vec());
    assert_eq!(spread(&[3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, most: 3.0 });
    assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Spread { median: 2.5, least: 1.0, most: 4.0 });
    assert!(spread(&[]).median.is_nan());
}
