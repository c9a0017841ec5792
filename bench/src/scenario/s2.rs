//! S2: 100 clients on `*`, each of which gets every frame. The highest rate without loss, in
//! deliveries per second.
//!
//! There are three floors:
//!
//! - Unchanged frames, one blocking write per frame and client, at the highest rate that it keeps
//!   up with. That rate is searched as for the proxies. Sent as fast as possible the floor would be
//!   slower, because every socket's buffer would be full and out of the cache.
//! - The same with one write for all frames that are due.
//! - 16 frames per write, as fast as possible.
//!
//! The goal refers to the first. A proxy that gathers waiting frames can beat it, and the table
//! then says so. The second is the floor of such a proxy.

use anyhow::Result;

use super::context::Context;
use crate::{
    floor::Handing,
    rig::{Outcome, Shape, client},
    sheet::{Case, Goal},
};

const CLIENTS: usize = 100;
const PACED: &str = "one write a frame, paced";
const DUE: &str = "a write of what is due, paced";
/// The most frames in one such write.
const MOST_DUE: usize = 256;
const FLAT_OUT: &str = "16 frames a write, flat out";

/// Runs it.
pub fn run(context: &mut Context) -> Result<()> {
    let clients = vec![client(&context.feed, "*".to_owned()); CLIENTS];
    for _ in 0..context.runs {
        let case = Case { scenario: "S2", shape: "floor" };
        let flat_out = Shape::Floor(Handing::Whole(16));
        let title = "S2 floor: flat out";
        let flat_out = context.once(title, flat_out, &clients, context.step(None))?.delivery_rate();
        context.sheet.note(case, FLAT_OUT, "deliveries/s", flat_out, None, Goal::None);
        let guess = flat_out / CLIENTS as f64 / 2.0;
        let floors = [(PACED, Handing::Whole(1)), (DUE, Handing::Whole(MOST_DUE))];
        let floors = floors.map(|(name, handing)| (name, Shape::Floor(handing)));
        for (name, shape) in floors.into_iter().chain(context.shapes()) {
            let title = format!("S2 {name}: search");
            let found = context.search(&title, shape, &clients, guess, Outcome::is_sustained)?;
            let goal = match shape {
                Shape::Floor(_) => {
                    let rate = found.as_ref().map_or(0.0, Outcome::delivery_rate);
                    context.sheet.note(case, name, "deliveries/s", rate, None, Goal::None);
                    continue;
                }
                Shape::Alone => Goal::OfFloor(0.85),
                Shape::Both => Goal::OfFloor(0.7),
                _ => Goal::None,
            };
            note(context, name, found.as_ref(), goal);
        }
    }
    Ok(())
}

fn note(context: &mut Context, shape: &'static str, outcome: Option<&Outcome>, goal: Goal) {
    let case = Case { scenario: "S2", shape };
    let sheet = &mut context.sheet;
    let rate = outcome.map_or(0.0, Outcome::delivery_rate);
    sheet.note(case, "rate without loss", "deliveries/s", rate, Some(PACED), goal);
    let Some(outcome) = outcome else { return };
    sheet.note(case, "p99 there", "ms", outcome.p99_ms, None, Goal::None);
    for cost in &outcome.costs {
        let (cpu, memory) = (format!("{} CPU", cost.name), format!("{} peak memory", cost.name));
        let per_million = cost.cpu_seconds / outcome.deliveries as f64 * 1e6;
        sheet.note(case, &cpu, "s/M deliveries", per_million, None, Goal::None);
        sheet.note(case, &memory, "MB", cost.peak_bytes as f64 / 1e6, None, Goal::None);
    }
}
