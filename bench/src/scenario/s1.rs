//! S1: one client with `T.AAPL` and `Q.AAPL`, about a tenth of all events. The highest incoming
//! rate without loss.
//!
//! The rate is searched, because the firehose accepts everything at once by design. The filtered
//! tier alone slows the load program down by not reading. The load is therefore also sent as fast
//! as possible, and the better of the two results counts: full buffers are slower than half empty
//! ones. The floor is a relay of bytes, as fast as possible, to a client that only counts. Delays
//! and costs are also taken at 1,000,000 events per second.

use anyhow::Result;

use super::context::Context;
use crate::{
    rig::{Outcome, Shape, client, counter},
    sheet::{Case, Goal},
};

const RELAY: &str = "relay of bytes";
const RELAY_CPU: &str = "relay CPU";
const RATE: &str = "rate without loss";
/// The rate at which delays and costs are compared, in events per second.
const MODERATE: f64 = 1e6;

/// Runs it.
pub fn run(context: &mut Context) -> Result<()> {
    let everything = [counter(&context.feed)];
    let one = [client(&context.feed, "T.AAPL,Q.AAPL".to_owned())];
    for _ in 0..context.runs {
        let flat_out = context.step(None);
        let relay = context.once("S1 floor: relay", Shape::Relay, &everything, flat_out)?;
        let floor = Case { scenario: "S1", shape: "floor" };
        context.sheet.note(floor, RELAY, "events/s", relay.rate(), None, Goal::None);
        let guess = relay.rate() / 2.0;
        let cpu = relay.cpu_per_million_all();
        context.sheet.note(floor, RELAY_CPU, "s/M", cpu, None, Goal::None);
        let moderate = context.step(Some(MODERATE));
        let relay = context.once("S1 floor at 1M", Shape::Relay, &everything, moderate)?;
        note_moderate(context, "floor", &relay);

        for (name, shape) in context.shapes() {
            let goal = match shape {
                Shape::Alone => Goal::OfFloor(0.75),
                Shape::Both => Goal::OfFloor(0.4),
                _ => Goal::None,
            };
            // Only the firehose takes more than it can pass on.
            let slows_down = shape != Shape::Both;
            let title = format!("S1 {name}: flat out");
            let flat_out = slows_down.then(|| context.once(&title, shape, &one, flat_out));
            let flat_out = flat_out.transpose()?.filter(Outcome::is_complete);
            let guess = flat_out.as_ref().map_or(guess, Outcome::rate);
            let title = format!("S1 {name}: search");
            let searched = context.search(&title, shape, &one, guess, Outcome::is_sustained)?;
            let both = searched.into_iter().chain(flat_out);
            match both.max_by(|a, b| a.rate().total_cmp(&b.rate())) {
                Some(best) => note(context, name, &best, goal),
                None => {
                    let case = Case { scenario: "S1", shape: name };
                    context.sheet.note(case, RATE, "events/s", 0.0, Some(RELAY), goal);
                }
            }
            let title = format!("S1 {name} at 1M");
            let outcome = context.once(&title, shape, &one, context.step(Some(MODERATE)))?;
            note_moderate(context, name, &outcome);
        }
    }
    Ok(())
}

/// Notes delays and costs at the moderate rate.
fn note_moderate(context: &mut Context, shape: &'static str, outcome: &Outcome) {
    let case = Case { scenario: "S1", shape };
    // Those of a stretch that lost events or fell behind mean nothing.
    let valid = |value: f64| if outcome.is_sustained() { value } else { f64::INFINITY };
    for (name, unit, value) in [
        ("p50 at 1M", "ms", outcome.p50_ms),
        ("p99 at 1M", "ms", outcome.p99_ms),
        ("CPU at 1M", "s/M", outcome.cpu_per_million_all()),
    ] {
        let floor = (shape != "floor").then_some(name);
        context.sheet.note(case, name, unit, valid(value), floor, Goal::None);
    }
}

fn note(context: &mut Context, shape: &'static str, outcome: &Outcome, goal: Goal) {
    let case = Case { scenario: "S1", shape };
    context.sheet.note(case, RATE, "events/s", outcome.rate(), Some(RELAY), goal);
    let cpu = outcome.cpu_per_million_all();
    context.sheet.note(case, "CPU of all programs", "s/M", cpu, Some(RELAY_CPU), Goal::None);
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
