//! Charts of nanoseconds against nanoseconds.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

/// A contender's line.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// Whoever has the same number has the same colour in every chart.
    pub number: usize,
    /// Drawn strong, before all others.
    pub is_ours: bool,
}

/// What a chart says besides its lines.
pub struct Captions<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
}

const OURS: RGBColor = RGBColor(200, 30, 45);
/// Colours that those who see colours otherwise can tell apart as well (after Okabe and Ito).
const OTHERS: [RGBColor; 10] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(86, 180, 233),
    RGBColor(204, 121, 167),
    RGBColor(120, 94, 240),
    RGBColor(90, 90, 90),
    RGBColor(150, 120, 60),
    RGBColor(0, 60, 60),
    RGBColor(170, 170, 40),
];

/// Draws `lines` to an SVG file, both axes logarithmic, with each line's name at its end.
pub fn draw(
    path: &Path,
    captions: &Captions<'_>,
    lines: &[Line],
    y_range: std::ops::Range<f64>,
) -> Result<(), Box<dyn Error>> {
    let xs = || {
        lines
            .iter()
            .flat_map(|line| line.points.iter().map(|(x, _)| *x))
    };
    let (x_min, x_max) = xs().fold((f64::MAX, f64::MIN), |(min, max), x| {
        (min.min(x), max.max(x))
    });
    let area = SVGBackend::new(path, (960, 560)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(captions.title, ("sans-serif", 20))
        .margin(16)
        .margin_right(260)
        .x_label_area_size(48)
        .y_label_area_size(72)
        .build_cartesian_2d((x_min..x_max).log_scale(), y_range.clone().log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(BLACK.mix(0.04))
        .bold_line_style(BLACK.mix(0.12))
        .x_desc(captions.x)
        .y_desc(captions.y)
        .x_label_formatter(&|nanos| time(*nanos))
        .y_label_formatter(&|value| plain(*value))
        .axis_desc_style(("sans-serif", 15))
        .label_style(("sans-serif", 13))
        .draw()?;

    // From the top down at the right end, so far apart that all can be read.
    let mut ends: Vec<(usize, f64)> = lines
        .iter()
        .enumerate()
        .filter_map(|(which, line)| Some((which, line.points.last()?.1)))
        .collect();
    ends.sort_by(|a, b| b.1.total_cmp(&a.1));
    let (area_y, step) = (chart.plotting_area().get_pixel_range().1, 19);
    let right = chart.plotting_area().get_pixel_range().0.end;
    let mut next_y = area_y.start;
    let colour_of = |line: &Line| match line.is_ours {
        true => OURS,
        false => OTHERS[line.number % OTHERS.len()],
    };
    let room_below = |left: usize| area_y.end - step * left as i32;
    for (rank, (which, value)) in ends.iter().enumerate() {
        let clamped = value.clamp(y_range.start, y_range.end);
        let (_, at) = chart.backend_coord(&(x_max, clamped));
        let y = at.max(next_y).min(room_below(ends.len() - rank - 1));
        next_y = y + step;
        let colour = colour_of(&lines[*which]);
        area.draw(&PathElement::new(
            vec![(right + 2, at), (right + 14, y)],
            colour.mix(0.5),
        ))?;
        let style = ("sans-serif", 13).into_font().color(&colour);
        area.draw(&Text::new(
            lines[*which].name.clone(),
            (right + 18, y - 7),
            style,
        ))?;
    }
    for line in lines.iter().rev() {
        let colour = colour_of(line);
        let width = if line.is_ours { 4 } else { 2 };
        let shown = line
            .points
            .iter()
            .map(|(x, y)| (*x, y.clamp(y_range.start, y_range.end)));
        chart.draw_series(
            LineSeries::new(shown.clone(), colour.stroke_width(width)).point_size(3),
        )?;
    }
    area.present()?;
    Ok(())
}

fn time(nanos: f64) -> String {
    match nanos {
        n if n < 1e3 => format!("{n} ns"),
        n if n < 1e6 => format!("{} µs", n / 1e3),
        n => format!("{} ms", n / 1e6),
    }
}

fn plain(value: f64) -> String {
    if value < 1.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}
