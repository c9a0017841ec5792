//! The sheet of results: every figure with its runs, its floor and its goal.

use std::fmt::Write;

use serde::Serialize;

use crate::{number::short, plot::Plot, search::median};

/// The goal of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// At least this value.
    AtLeast(f64),
    /// At most this value.
    AtMost(f64),
    /// At least this part of its floor.
    OfFloor(f64),
    /// At most the first value, or else at most the second times its floor. The second is the ratio
    /// of the first to the floor of the machine on which the goal was set.
    AtMostOr(f64, f64),
    /// At least the first value, or else at least the second times its floor, likewise.
    AtLeastOr(f64, f64),
    /// No goal: a floor, or a figure that explains another.
    None,
}

/// A figure and its results.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// The scenario: `S1`.
    pub scenario: &'static str,
    /// `alone`, `both`, `floor` or `peer`.
    pub shape: &'static str,
    /// What it measures.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// One value per run; the median counts.
    pub runs: Vec<f64>,
    /// The name of the floor to compare with, in the same scenario.
    pub floor: Option<&'static str>,
    /// Its goal.
    pub goal: Goal,
}

/// All figures and plots of a run.
#[derive(Debug, Default)]
pub struct Sheet {
    figures: Vec<Figure>,
    /// The plots.
    pub plots: Vec<Plot>,
}

/// The scenario and the shape that a figure belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The scenario.
    pub scenario: &'static str,
    /// The shape.
    pub shape: &'static str,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    figure: &'a Figure,
    median: f64,
    floor_median: Option<f64>,
    of_floor: Option<f64>,
    reached: Option<Reached>,
}

/// Whether a goal was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Reached {
    Yes,
    /// Reached in proportion to the floor of this machine.
    InProportion,
    No,
}

impl From<bool> for Reached {
    fn from(reached: bool) -> Self {
        if reached { Self::Yes } else { Self::No }
    }
}

impl Sheet {
    /// Adds the value of one run to a figure.
    pub fn note(
        &mut self,
        case: Case,
        name: &str,
        unit: &'static str,
        value: f64,
        floor: Option<&'static str>,
        goal: Goal,
    ) {
        let Case { scenario, shape } = case;
        let known = self.figures.iter_mut().find(|figure| {
            figure.scenario == scenario && figure.shape == shape && figure.name == name
        });
        match known {
            Some(figure) => figure.runs.push(value),
            None => {
                let name = name.to_owned();
                let runs = vec![value];
                self.figures.push(Figure { scenario, shape, name, unit, runs, floor, goal });
            }
        }
    }

    /// A figure.
    pub fn figure(&self, case: Case, name: &str) -> Option<&Figure> {
        let Case { scenario, shape } = case;
        self.figures.iter().find(|figure| {
            figure.scenario == scenario && figure.shape == shape && figure.name == name
        })
    }

    /// The median of a figure's floor.
    pub fn floor_of(&self, figure: &Figure) -> Option<f64> {
        let case = Case { scenario: figure.scenario, shape: "floor" };
        let floor = self.figure(case, figure.floor?)?;
        Some(median(floor.runs.clone()))
    }

    fn lines(&self) -> Vec<Line<'_>> {
        self.figures.iter().map(|figure| self.line(figure)).collect()
    }

    fn line<'a>(&self, figure: &'a Figure) -> Line<'a> {
        let value = median(figure.runs.clone());
        let floor_median = self.floor_of(figure);
        let of_floor = floor_median.map(|floor| value / floor);
        let reached = match figure.goal {
            Goal::AtLeast(goal) => Some((value >= goal).into()),
            Goal::AtMost(goal) => Some((value <= goal).into()),
            Goal::OfFloor(goal) => of_floor.map(|part| (part >= goal).into()),
            Goal::AtMostOr(goal, times) => {
                Some(either(value <= goal, of_floor.is_some_and(|part| part <= times)))
            }
            Goal::AtLeastOr(goal, part) => {
                Some(either(value >= goal, of_floor.is_some_and(|of_floor| of_floor >= part)))
            }
            Goal::None => None,
        };
        Line { figure, median: value, floor_median, of_floor, reached }
    }

    /// The table, as Markdown. If other programs disturbed the run, each result says so.
    pub fn table(&self, disturbed: bool) -> String {
        let but = if disturbed { " (disturbed)" } else { "" };
        let mut rows = vec![
            ["scenario", "shape", "figure", "median", "runs", "floor", "of floor", "goal", ""]
                .map(str::to_owned),
        ];
        for line in self.lines() {
            let figure = line.figure;
            let runs: Vec<String> = figure.runs.iter().map(|value| short(*value)).collect();
            let goal = match figure.goal {
                Goal::AtLeast(goal) => format!("at least {}", short(goal)),
                Goal::AtMost(goal) => format!("at most {}", short(goal)),
                Goal::OfFloor(goal) => format!("{goal} of the floor"),
                Goal::AtMostOr(goal, times) => {
                    format!("at most {}, or {} of the floor", short(goal), short(times))
                }
                Goal::AtLeastOr(goal, part) => {
                    format!("at least {}, or {} of the floor", short(goal), short(part))
                }
                Goal::None => String::new(),
            };
            let of_floor = line.of_floor.filter(|part| part.is_finite());
            // A figure above its floor shows that it needs another floor.
            let is_of_floor = matches!(figure.goal, Goal::OfFloor(_));
            let reached = match line.reached {
                Some(Reached::Yes) if of_floor.is_some_and(|part| part > 1.0) && is_of_floor => {
                    format!("reached, above its floor{but}")
                }
                Some(Reached::Yes) => format!("reached{but}"),
                Some(Reached::InProportion) => format!("reached, of its floor{but}"),
                Some(Reached::No) => format!("NOT reached{but}"),
                None => String::new(),
            };
            let unit = if line.median.is_finite() { figure.unit } else { "" };
            rows.push([
                figure.scenario.to_owned(),
                figure.shape.to_owned(),
                figure.name.clone(),
                format!("{} {unit}", short(line.median)).trim_end().to_owned(),
                runs.join(" / "),
                line.floor_median.map(short).unwrap_or_default(),
                of_floor.map(|part| format!("{part:.2}")).unwrap_or_default(),
                goal,
                reached,
            ]);
        }
        markdown(&rows)
    }

    /// The figures as JSON, with where and when they were taken.
    pub fn json(&self, about: &serde_json::Value) -> serde_json::Value {
        let plots: Vec<&Plot> = self.plots.iter().collect();
        serde_json::json!({ "about": about, "figures": self.lines(), "plots": plots })
    }
}

fn either(reached: bool, in_proportion: bool) -> Reached {
    match (reached, in_proportion) {
        (true, _) => Reached::Yes,
        (false, true) => Reached::InProportion,
        (false, false) => Reached::No,
    }
}

/// A table, whose first row is its head.
pub fn markdown<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let widths: Vec<usize> = (0..COLUMNS)
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(3))
        .collect();
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(text, "| {cell:width$} ");
        }
        text += "|\n";
        if i == 0 {
            for width in &widths {
                let _ = write!(text, "| {} ", "-".repeat(*width));
            }
            text += "|\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_compared_with_medians_and_floors() {
        let mut sheet = Sheet::default();
        let floor = Case { scenario: "S1", shape: "floor" };
        let alone = Case { scenario: "S1", shape: "alone" };
        for (value, of) in [(70.0, 100.0), (80.0, 100.0), (90.0, 1_000.0)] {
            sheet.note(floor, "relay", "events/s", of, None, Goal::None);
            sheet.note(alone, "rate", "events/s", value, Some("relay"), Goal::OfFloor(0.75));
            sheet.note(alone, "cpu", "s/M", value, None, Goal::AtMost(79.0));
            sheet.note(alone, "time", "ms", value, Some("relay"), Goal::AtMostOr(79.0, 0.8));
            sheet.note(alone, "more", "ms", value, Some("relay"), Goal::AtLeastOr(81.0, 0.9));
        }
        let reached: Vec<_> = sheet.lines().iter().map(|line| line.reached).collect();
        let (yes, no) = (Some(Reached::Yes), Some(Reached::No));
        assert_eq!(reached, [None, yes, no, Some(Reached::InProportion), no]);
        assert!(sheet.table(false).contains("| NOT reached "));
        assert!(sheet.table(true).contains("| NOT reached (disturbed) "));
    }
}
