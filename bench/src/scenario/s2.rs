//! S2: 100 clients on `*`, each of which gets every frame. The highest rate without loss, in deliveries a second.
//!
//! Floors: frames as they are, one blocking write for each frame and client; and 16 frames a write.

use anyhow::Result;

use super::Context;
use crate::{
    floor::Handing,
    rig::{Outcome, Shape, client},
    sheet::{Goal, Place},
};

const CLIENTS: usize = 100;
const PACED: &str = "one write a frame";

/// Runs it.
pub fn run(context: &mut Context) -> Result<()> {
    let clients = vec![client(&context.feed, "*".to_owned()); CLIENTS];
    for _ in 0..context.runs {
        let place = Place { scenario: "S2", shape: "floor" };
        let mut paced = 0.0;
        for (name, group) in [(PACED, 1), ("16 frames a write", 16)] {
            let title = format!("S2 floor: {name}");
            let shape = Shape::Floor(Handing::Whole(group));
            let outcome = context.once(&title, shape, &clients, context.step(None))?;
            let rate = outcome.delivery_rate();
            context.sheet.note(place, name, "deliveries/s", rate, None, Goal::None);
            if group == 1 {
                paced = rate;
            }
        }
        for (shape, name, goal) in [(Shape::Alone, "alone", 0.85), (Shape::Both, "both", 0.7)] {
            let high = paced / CLIENTS as f64 * 2.5;
            let title = format!("S2 {name}: search");
            let found = context.search(&title, shape, &clients, high, Outcome::is_sustained)?;
            note(context, name, found.as_ref(), goal);
        }
    }
    Ok(())
}

fn note(context: &mut Context, shape: &'static str, outcome: Option<&Outcome>, goal: f64) {
    let place = Place { scenario: "S2", shape };
    let sheet = &mut context.sheet;
    let rate = outcome.map_or(0.0, Outcome::delivery_rate);
    sheet.note(place, "rate without loss", "deliveries/s", rate, Some(PACED), Goal::OfFloor(goal));
    let Some(outcome) = outcome else { return };
    sheet.note(place, "p99 there", "ms", outcome.p99_ms, None, Goal::None);
    for cost in &outcome.costs {
        let (cpu, memory) = (format!("{} CPU", cost.name), format!("{} peak memory", cost.name));
        let per_million = cost.cpu_seconds / outcome.deliveries as f64 * 1e6;
        sheet.note(place, &cpu, "s/M deliveries", per_million, None, Goal::None);
        sheet.note(place, &memory, "MB", cost.peak_bytes as f64 / 1e6, None, Goal::None);
    }
}
