//! A few small plots one below the other, over the same time, as SVG in plain text.

use std::fmt::Write as _;

/// One plot: lines over time.
#[derive(Debug)]
pub struct Panel<'a> {
    /// What it shows, with the unit.
    pub title: &'a str,
    /// Each line's name, and its value for each of the times.
    pub lines: Vec<(&'a str, Vec<f64>)>,
    /// A bound to be drawn, with its name.
    pub limit: Option<(&'a str, f64)>,
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const HEIGHT: f64 = 130.0;
const STEP: f64 = 185.0;
const TOP: f64 = 40.0;

/// Points of a line; more are thinned out, the greatest of each group kept.
const POINTS: usize = 240;

const COLOURS: [&str; 4] = ["#1f6fb4", "#d9730d", "#2e8b57", "#9b3fb5"];

/// Draws them. `seconds` are the times; `marks` are moments with a name.
#[must_use]
pub fn svg(seconds: &[f64], marks: &[(&str, f64)], panels: &[Panel<'_>]) -> String {
    let end = seconds.iter().copied().fold(1.0, f64::max);
    let x = |second: f64| LEFT + second / end * (WIDTH - LEFT - RIGHT);
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let height = TOP + STEP * panels.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"#fff\"/>\n"
    );
    let mut top = TOP;
    for panel in panels {
        draw(&mut out, panel, seconds, top, &x);
        for (name, at) in marks {
            let (at, bottom) = (x(*at), top + HEIGHT);
            let _ = writeln!(
                out,
                "<path d=\"M{at:.1} {top}V{bottom}\" stroke=\"#999\" stroke-dasharray=\"3 3\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#666\">{name}</text>",
                at + 3.0,
                top + 11.0
            );
        }
        for tick in 0..=5 {
            let second = end * f64::from(tick) / 5.0;
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">{:.0} s</text>",
                x(second),
                top + HEIGHT + 15.0,
                second
            );
        }
        top += STEP;
    }
    out.push_str("</svg>\n");
    out
}

fn draw(out: &mut String, panel: &Panel<'_>, seconds: &[f64], top: f64, x: &impl Fn(f64) -> f64) {
    let values = panel.lines.iter().flat_map(|(_, values)| values.iter().copied());
    let limit = panel.limit.map_or(0.0, |(_, value)| value);
    let most = values.fold(limit, f64::max).max(f64::MIN_POSITIVE) * 1.05;
    let y = |value: f64| top + HEIGHT - value / most * HEIGHT;
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"bold\">{}</text>\
         <rect x=\"{LEFT}\" y=\"{top}\" width=\"{}\" height=\"{HEIGHT}\" fill=\"none\" \
         stroke=\"#ccc\"/>",
        top - 8.0,
        panel.title,
        WIDTH - LEFT - RIGHT
    );
    for share in [0.0, 0.5, 1.0] {
        let value = most / 1.05 * share;
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#666\">{}</text>",
            LEFT - 6.0,
            y(value) + 4.0,
            short(value)
        );
    }
    if let Some((name, value)) = panel.limit {
        let (right, at) = (WIDTH - RIGHT, y(value));
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#c00\" stroke-dasharray=\"6 3\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#c00\">{name}</text>",
            right - 4.0,
            at + 13.0
        );
    }
    let mut legend = WIDTH - RIGHT;
    for ((name, values), colour) in panel.lines.iter().zip(COLOURS) {
        let group = values.len().div_ceil(POINTS).max(1);
        let mut path = String::new();
        for (seconds, values) in seconds.chunks(group).zip(values.chunks(group)) {
            let at = seconds.first().copied().unwrap_or_default();
            let value = values.iter().copied().fold(0.0, f64::max);
            let command = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", x(at), y(value));
        }
        let _ = writeln!(
            out,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\
             <text x=\"{legend:.0}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{colour}\">{name}</text>",
            top - 8.0
        );
        #[expect(clippy::cast_precision_loss, reason = "a short name")]
        let width = name.len() as f64 * 7.0 + 12.0;
        legend -= width;
    }
}

/// A number with few digits.
fn short(value: f64) -> String {
    match value {
        1e6.. => format!("{:.1} M", value / 1e6),
        1e4.. => format!("{:.0} k", value / 1e3),
        100.0.. | 0.0 => format!("{value:.0}"),
        _ => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plot_shows_each_line_limit_and_mark_and_stays_small() {
        let seconds: Vec<f64> = (0..2_000).map(f64::from).collect();
        let lines =
            vec![("rows", seconds.clone()), ("half", seconds.iter().map(|s| s / 2.0).collect())];
        let panel = Panel { title: "Rows", lines, limit: Some(("limit", 3_000.0)) };
        let svg = svg(&seconds, &[("back", 1_000.0)], &[panel]);
        for part in ["Rows", "rows</text>", "half</text>", "limit</text>", "back</text>", "</svg>"]
        {
            assert!(svg.contains(part), "{part}");
        }
        assert!(svg.len() < 20_000, "{}", svg.len());
    }
}
