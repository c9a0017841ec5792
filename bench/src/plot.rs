//! Plots as SVG: a few lines over a logarithmic axis.

use std::{borrow::Cow, error::Error};

use plotters::prelude::*;
use serde::{Deserialize, Serialize};

const SIZE: (u32, u32) = (720, 400);
const COLOURS: [RGBColor; 4] =
    [RGBColor(27, 108, 168), RGBColor(200, 85, 61), RGBColor(60, 137, 109), RGBColor(125, 91, 166)];

/// A line of a plot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Series {
    /// The name in the legend.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// A plot. The horizontal axis is logarithmic, the vertical one starts at zero.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plot {
    /// The name of its file.
    pub file: Cow<'static, str>,
    /// Its title.
    pub title: Cow<'static, str>,
    /// The label of the horizontal axis.
    pub x: Cow<'static, str>,
    /// The label of the vertical axis.
    pub y: Cow<'static, str>,
    /// Its lines.
    pub series: Vec<Series>,
}

impl Plot {
    /// The plot as SVG.
    ///
    /// # Errors
    ///
    /// The library cannot draw it.
    pub fn svg(&self) -> Result<String, Box<dyn Error + Send + Sync>> {
        let points = || self.series.iter().flat_map(|series| series.points.iter().copied());
        let low = points().map(|(x, _)| x).fold(f64::INFINITY, f64::min).max(1e-9);
        let high = points().map(|(x, _)| x).fold(low * 1.001, f64::max);
        let top = points().map(|(_, y)| y).fold(0.0, f64::max);
        // The legend needs some room above the lines.
        let top = if top > 0.0 { top * 1.3 } else { 1.0 };
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            area.fill(&WHITE)?;
            let mut chart = ChartBuilder::on(&area)
                .caption(&self.title, ("sans-serif", 17))
                .margin(14)
                .x_label_area_size(44)
                .y_label_area_size(64)
                .build_cartesian_2d((low..high).log_scale(), 0.0..top)?;
            chart
                .configure_mesh()
                .x_desc(&*self.x)
                .y_desc(&*self.y)
                .label_style(("sans-serif", 13))
                .x_label_formatter(&|x| format!("{}", x.round()))
                .y_label_formatter(&|y| format!("{y}"))
                .y_labels(6)
                .light_line_style(TRANSPARENT)
                .draw()?;
            for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
                let line = LineSeries::new(series.points.iter().copied(), colour.stroke_width(2))
                    .point_size(3);
                chart.draw_series(line)?.label(&series.name).legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .label_font(("sans-serif", 13))
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.2))
                .draw()?;
            area.present()?;
        }
        Ok(svg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_shows_each_point_and_each_name() {
        let points = vec![(10.0, 1.0), (100.0, 3.0), (1_000.0, 2.0)];
        let series =
            ["alone", "both"].map(|name| Series { name: name.into(), points: points.clone() });
        let svg = Plot {
            file: "x.svg".into(),
            title: "Cost".into(),
            x: "clients".into(),
            y: "us".into(),
            series: series.into(),
        }
        .svg()
        .unwrap();
        assert_eq!(svg.matches("<circle").count(), 6);
        assert!(["Cost", "clients", "us", "alone", "both"].iter().all(|text| svg.contains(text)));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn the_plots_of_the_documents_show_their_results() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/bench/");
        let results = std::fs::read_to_string(format!("{dir}results.json")).unwrap();
        let results: serde_json::Value = serde_json::from_str(&results).unwrap();
        let plots: Vec<Plot> = serde_json::from_value(results["plots"].clone()).unwrap();
        assert!(!plots.is_empty());
        for plot in plots {
            let path = format!("{dir}{}", plot.file);
            let drawn = plot.svg().unwrap();
            if std::env::var_os("REDRAW").is_some() {
                std::fs::write(&path, &drawn).unwrap();
            }
            let shown = std::fs::read_to_string(&path).unwrap();
            assert!(shown == drawn, "{path} is older than results.json: test with REDRAW=1");
        }
    }
}
