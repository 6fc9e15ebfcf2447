//! A few small plots one below the other, over the same time, as SVG.

use std::ops::Range;

use anyhow::Result;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// One plot: lines over time.
#[derive(Debug, Default)]
pub struct Panel<'a> {
    /// What it shows, with the unit.
    pub title: &'a str,
    /// Each line's name, and its value for each of the times.
    pub lines: Vec<(&'a str, Vec<f64>)>,
    /// A bound to be drawn, with its name.
    pub limit: Option<(&'a str, f64)>,
    /// Whether ten times as much is one step further up.
    pub is_logarithmic: bool,
}

const WIDTH: u32 = 860;
const STEP: u32 = 185;
const MARGIN: u32 = 8;

/// Room for the values beside a plot.
const LEFT: u32 = 64;

/// The time that is shown beside that of the lines, of theirs, with the names of the lines.
const BESIDE: f64 = 0.18;

/// By how much the name of every second moment stands lower.
const LOWER: i32 = 12;

/// Points of a line; more are thinned out, the greatest of each group kept.
const POINTS: usize = 240;

/// The least that a plot with logarithmic values shows.
const LEAST: f64 = 0.1;

const COLOURS: [RGBColor; 5] = [
    RGBColor(31, 111, 180),
    RGBColor(217, 115, 13),
    RGBColor(46, 139, 87),
    RGBColor(155, 63, 181),
    RGBColor(120, 120, 120),
];
const RED: RGBColor = RGBColor(204, 0, 0);
const GREY: RGBColor = RGBColor(120, 120, 120);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws them. `seconds` are the times; `marks` are moments with a name.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn svg(seconds: &[f64], marks: &[(&str, f64)], panels: &[Panel<'_>]) -> Result<String> {
    let mut out = String::new();
    {
        let height = STEP * u32::try_from(panels.len())?.max(1);
        let root = SVGBackend::with_string(&mut out, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let end = seconds.iter().copied().fold(1.0, f64::max) * (1.0 + BESIDE);
        for (panel, area) in panels.iter().zip(root.split_evenly((panels.len().max(1), 1))) {
            let values = panel.lines.iter().flat_map(|(_, values)| values.iter().copied());
            let limit = panel.limit.map_or(0.0, |(_, value)| value);
            let most = values.fold(limit, f64::max) * 1.1;
            if panel.is_logarithmic {
                let values = (LEAST..most.max(LEAST * 10.0)).log_scale();
                draw(&area, panel, values, 0.0..end, seconds, marks)?;
            } else {
                draw(&area, panel, 0.0..most.max(f64::MIN_POSITIVE), 0.0..end, seconds, marks)?;
            }
        }
        root.present()?;
    }
    Ok(out)
}

fn draw<Y>(
    area: &Area<'_>,
    panel: &Panel<'_>,
    values: Y,
    time: Range<f64>,
    seconds: &[f64],
    marks: &[(&str, f64)],
) -> Result<()>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let text = |size: u32, colour: RGBColor| ("sans-serif", size).into_font().color(&colour);
    let end = time.end;
    let mut chart = ChartBuilder::on(area)
        .margin(MARGIN)
        .caption(panel.title, text(13, BLACK))
        .x_label_area_size(22)
        .y_label_area_size(LEFT)
        .build_cartesian_2d(time, values)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GREY.mix(0.25))
        .axis_style(GREY)
        .label_style(text(11, GREY))
        .x_labels(7)
        .y_labels(5)
        .x_label_formatter(&|second| format!("{second:.0} s"))
        .y_label_formatter(&|value| short(*value))
        .draw()?;
    let bottom = if panel.is_logarithmic { LEAST } else { 0.0 };
    let most = chart.y_range().end;
    for (n, (name, at)) in (0..).zip(marks) {
        let line = [(*at, bottom), (*at, most)];
        chart.draw_series(LineSeries::new(line, GREY.mix(0.6)))?;
        let style = text(11, GREY).pos(Pos::new(HPos::Left, VPos::Top));
        let name = Text::new((*name).to_owned(), (3, LOWER * (n % 2)), style);
        chart.draw_series([EmptyElement::at((*at, most)) + name])?;
    }
    for ((name, values), colour) in panel.lines.iter().zip(COLOURS) {
        let group = values.len().div_ceil(POINTS).max(1);
        let points = seconds.chunks(group).zip(values.chunks(group)).map(|(seconds, values)| {
            let value = values.iter().copied().fold(bottom, f64::max);
            (seconds.first().copied().unwrap_or_default(), value)
        });
        let line = LineSeries::new(points, colour.stroke_width(2));
        let key = move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour.stroke_width(2));
        chart.draw_series(line)?.label(*name).legend(key);
    }
    if let Some((name, limit)) = panel.limit {
        let line = DashedLineSeries::new([(0.0, limit), (end, limit)], 6, 4, RED.into());
        let key = |(x, y)| PathElement::new([(x, y), (x + 14, y)], RED);
        chart.draw_series(line)?.label(name).legend(key);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(text(11, BLACK))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}

/// A number with few digits.
fn short(value: f64) -> String {
    match value {
        1e6.. => format!("{:.1} M", value / 1e6),
        1e4.. => format!("{:.0} k", value / 1e3),
        10.0.. | 0.0 => format!("{value:.0}"),
        _ => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plot_shows_each_line_limit_and_mark_and_stays_small() {
        let seconds: Vec<f64> = (0..2_000).map(f64::from).collect();
        let lines = |rows: &Vec<f64>| {
            vec![("rows", rows.clone()), ("half", rows.iter().map(|s| s / 2.0).collect())]
        };
        let limit = Some(("limit", 3_000.0));
        let panel = |title, is_logarithmic| {
            let lines = lines(&seconds);
            Panel { title, lines, limit, is_logarithmic }
        };
        let panels = [panel("Rows", false), panel("Rows, by tens", true)];
        let svg = svg(&seconds, &[("back", 1_000.0)], &panels).unwrap();
        for part in ["Rows", "Rows, by tens", "rows", "half", "limit", "back", "</svg>"] {
            assert!(svg.contains(part), "{part}");
        }
        assert!(svg.len() < 60_000, "{}", svg.len());
    }
}
