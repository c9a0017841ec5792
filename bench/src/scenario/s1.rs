//! S1: one client with `T.AAPL` and `Q.AAPL`, about a tenth of all events. The highest incoming
//! rate without loss.
//!
//! The rate is searched, because the firehose accepts everything at once by design. The filtered
//! tier alone slows the load program down by not reading. The load is therefore also sent as fast
//! as possible, and the better of the two results counts: full buffers are slower than half empty
//! ones. The floor is a relay of bytes, as fast as possible.

use anyhow::Result;

use super::context::Context;
use crate::{
    rig::{Outcome, Shape, client},
    sheet::{Case, Goal},
};

const RELAY: &str = "relay of bytes";
const RATE: &str = "rate without loss";

/// Runs it.
pub fn run(context: &mut Context) -> Result<()> {
    let everything = [client(&context.feed, "*".to_owned())];
    let one = [client(&context.feed, "T.AAPL,Q.AAPL".to_owned())];
    for _ in 0..context.runs {
        let flat_out = context.step(None);
        let relay = context.once("S1 floor: relay", Shape::Relay, &everything, flat_out)?;
        let floor = Case { scenario: "S1", shape: "floor" };
        context.sheet.note(floor, RELAY, "events/s", relay.rate(), None, Goal::None);
        context.sheet.note(
            floor,
            "relay CPU",
            "s/M",
            relay.cpu_per_million_all(),
            None,
            Goal::None,
        );

        let flat_out = context.once("S1 alone: flat out", Shape::Alone, &one, flat_out)?;
        let guess = flat_out.rate();
        for (name, shape, goal) in [("alone", Shape::Alone, 0.75), ("both", Shape::Both, 0.4)] {
            let title = format!("S1 {name}: search");
            let searched = context.search(&title, shape, &one, guess, Outcome::is_sustained)?;
            let flat_out =
                (shape == Shape::Alone && flat_out.is_complete()).then(|| flat_out.clone());
            let best =
                searched.into_iter().chain(flat_out).max_by(|a, b| a.rate().total_cmp(&b.rate()));
            match best {
                Some(best) => note(context, name, &best, goal),
                None => {
                    let case = Case { scenario: "S1", shape: name };
                    let goal = Goal::OfFloor(goal);
                    context.sheet.note(case, RATE, "events/s", 0.0, Some(RELAY), goal);
                }
            }
        }
    }
    Ok(())
}

fn note(context: &mut Context, shape: &'static str, outcome: &Outcome, goal: f64) {
    let case = Case { scenario: "S1", shape };
    let goal = Goal::OfFloor(goal);
    context.sheet.note(case, RATE, "events/s", outcome.rate(), Some(RELAY), goal);
    for (program, name, goal) in
        [("firehose", "firehose CPU", 0.08), ("filtered", "filtered CPU", 0.12)]
    {
        if let Some(cpu) = outcome.cpu_per_million(program) {
            context.sheet.note(case, name, "s/M", cpu, None, Goal::AtMost(goal));
        }
    }
    for cost in &outcome.costs {
        let name = format!("{} peak memory", cost.name);
        context.sheet.note(case, &name, "MB", cost.peak_bytes as f64 / 1e6, None, Goal::None);
    }
    context.sheet.note(
        case,
        "load program CPU",
        "s/M",
        outcome.own_cpu_seconds / outcome.events as f64 * 1e6,
        None,
        Goal::None,
    );
}
