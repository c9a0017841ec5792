//! Plots as SVG, written by hand: a few lines over a logarithmic axis.

use std::fmt::Write;

use serde::Serialize;

use crate::number::short;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;
const COLOURS: [&str; 4] = ["#1b6ca8", "#c8553d", "#3c896d", "#7d5ba6"];

/// A line of a plot.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    /// The name in the legend.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// A plot. The horizontal axis is logarithmic, the vertical one starts at zero.
#[derive(Debug, Clone, Serialize)]
pub struct Plot {
    /// The name of its file.
    pub file: &'static str,
    /// Its title.
    pub title: &'static str,
    /// The label of the horizontal axis.
    pub x: &'static str,
    /// The label of the vertical axis.
    pub y: &'static str,
    /// Its lines.
    pub series: Vec<Series>,
}

impl Plot {
    /// The plot as SVG.
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| series.points.iter().copied());
        let low = points().map(|(x, _)| x).fold(f64::INFINITY, f64::min).max(1e-9);
        let high = points().map(|(x, _)| x).fold(low * 1.001, f64::max);
        let top = points().map(|(_, y)| y).fold(0.0, f64::max) * 1.15;
        let top = if top > 0.0 { top } else { 1.0 };
        let across = |x: f64| LEFT + (x / low).ln() / (high / low).ln() * (WIDTH - LEFT - RIGHT);
        let up = |y: f64| HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
             <text x=\"{LEFT}\" y=\"26\" font-size=\"15\">{}</text>\n",
            self.title
        );
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for i in 0..=4 {
            let y = top * f64::from(i) / 4.0;
            // Writing to a string cannot fail.
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/>\
                 <text x=\"{x}\" y=\"{text:.1}\" text-anchor=\"end\">{label}</text>",
                at = up(y),
                x = LEFT - 8.0,
                text = up(y) + 4.0,
                label = short(y),
            );
        }
        let mut ticks: Vec<f64> = points().map(|(x, _)| x).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        for x in ticks {
            let _ = writeln!(
                svg,
                "<path d=\"M{at:.1} {bottom}v5\" stroke=\"#555\"/>\
                 <text x=\"{at:.1}\" y=\"{y}\" text-anchor=\"middle\">{x}</text>",
                at = across(x),
                y = bottom + 20.0,
            );
        }
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"#555\"/>\n\
             <text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{}</text>\n\
             <text x=\"18\" y=\"{mid:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 18 {mid:.1})\">{}</text>",
            self.x,
            self.y,
            x = (LEFT + right) / 2.0,
            y = HEIGHT - 14.0,
            mid = (TOP + bottom) / 2.0,
        );
        for (i, (series, colour)) in self.series.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let path: Vec<String> = series
                .points
                .iter()
                .map(|&(x, y)| format!("{:.1} {:.1}", across(x), up(y)))
                .collect();
            let _ = writeln!(
                svg,
                "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join("L")
            );
            for &(x, y) in &series.points {
                let (x, y) = (across(x), up(y));
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
                );
            }
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" fill=\"{colour}\">{}</text>",
                right + 12.0,
                TOP + 14.0 + 18.0 * i as f64,
                series.name
            );
        }
        svg + "</svg>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_stand_inside_the_frame() {
        let points = vec![(10.0, 1.0), (100.0, 3.0), (1_000.0, 2.0)];
        let series = vec![Series { name: "alone".to_owned(), points }];
        let plot = Plot { file: "x.svg", title: "Cost", x: "clients", y: "us", series };
        let svg = plot.svg();
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("cx=\"80.0\"") && svg.contains("cx=\"530.0\""), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
