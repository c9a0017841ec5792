//! S1: one client with `T.AAPL` and `Q.AAPL` (about a tenth of all events). The highest rate in without loss.
//!
//! Alone, the filtered tier slows the generator down by not reading, so the load is sent as fast as it goes. With both
//! tiers the firehose takes everything at once, on purpose, and the rate is searched. Floor: a relay of bytes.

use anyhow::Result;

use super::Context;
use crate::{
    rig::{Outcome, Shape, client},
    sheet::{Goal, Place},
};

const RELAY: &str = "relay of bytes";

/// Runs it.
pub fn run(context: &mut Context) -> Result<()> {
    let everything = [client(&context.feed, "*".to_owned())];
    let one = [client(&context.feed, "T.AAPL,Q.AAPL".to_owned())];
    for _ in 0..context.runs {
        let flat_out = context.step(None);
        let relay = context.once("S1 floor: relay", Shape::Relay, &everything, flat_out)?;
        let floor = Place { scenario: "S1", shape: "floor" };
        context.sheet.note(floor, RELAY, "events/s", relay.rate(), None, Goal::None);
        context.sheet.note(
            floor,
            "relay CPU",
            "s/M",
            relay.cpu_per_million_all(),
            None,
            Goal::None,
        );

        let alone = context.once("S1 alone: flat out", Shape::Alone, &one, flat_out)?;
        note(context, "alone", &alone, if alone.is_complete() { alone.rate() } else { 0.0 }, 0.75);

        let title = "S1 both: search";
        let both = context.search(title, Shape::Both, &one, alone.rate(), Outcome::is_sustained)?;
        if let Some(both) = both {
            note(context, "both", &both, both.rate(), 0.4);
        } else {
            let place = Place { scenario: "S1", shape: "both" };
            let goal = Goal::OfFloor(0.4);
            context.sheet.note(place, "rate without loss", "events/s", 0.0, Some(RELAY), goal);
        }
    }
    Ok(())
}

fn note(context: &mut Context, shape: &'static str, outcome: &Outcome, rate: f64, goal: f64) {
    let place = Place { scenario: "S1", shape };
    let goal = Goal::OfFloor(goal);
    context.sheet.note(place, "rate without loss", "events/s", rate, Some(RELAY), goal);
    for (program, name, goal) in
        [("firehose", "firehose CPU", 0.08), ("filtered", "filtered CPU", 0.12)]
    {
        if let Some(cpu) = outcome.cpu_per_million(program) {
            context.sheet.note(place, name, "s/M", cpu, None, Goal::AtMost(goal));
        }
    }
    for cost in &outcome.costs {
        let name = format!("{} peak memory", cost.name);
        context.sheet.note(place, &name, "MB", cost.peak_bytes as f64 / 1e6, None, Goal::None);
    }
    context.sheet.note(
        place,
        "load program CPU",
        "s/M",
        outcome.own_cpu_seconds / outcome.events as f64 * 1e6,
        None,
        Goal::None,
    );
}
