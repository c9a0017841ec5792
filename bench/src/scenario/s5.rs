//! S5: 100 clients on `T.*`, 5 of which stop reading. The delays and the completeness of the other
//! 95 are compared with those of 95 clients alone. Also measured is the memory that the stalled
//! ones cost until the proxy ends them.

use std::time::Duration;

use anyhow::Result;

use super::context::Context;
use crate::{
    load::Step,
    rig::client,
    sheet::{Case, Goal},
};

const READING: usize = 95;
const STALLED: usize = 5;
const RATE: f64 = 40_000.0;
/// Long enough to fill a stalled session's socket and queue and to exceed its time limit.
const DURATION: Duration = Duration::from_secs(12);
/// What the queues of the stalled clients may hold (the default of `CLIENT_QUEUE_BYTES`), and some
/// slack.
const MEMORY_MB: f64 = (STALLED * 16 + 16) as f64 * 1.048_576;

/// Runs it.
pub fn run(context: &mut Context) -> Result<()> {
    let duration = if context.quick { context.duration() } else { DURATION };
    let step = Step { rate: Some(RATE), duration };
    let reading = vec![client(&context.feed, "T.*".to_owned()); READING];
    let mut all = reading.clone();
    all.extend(reading[..STALLED].iter().cloned().map(|mut plan| {
        plan.stalled = true;
        plan
    }));
    for _ in 0..context.runs {
        for (name, shape) in context.shapes() {
            let without = context.once(&format!("S5 {name}: 95 reading"), shape, &reading, step)?;
            let with = context.once(&format!("S5 {name}: and 5 stalled"), shape, &all, step)?;
            let case = Case { scenario: "S5", shape: name };
            let sheet = &mut context.sheet;
            let faults = with.faults;
            let wrong = faults.missing + faults.repeated + faults.foreign + faults.corrupt;
            let peak = |outcome: &crate::rig::Outcome| outcome.costs[0].peak_bytes as f64 / 1e6;
            let more = peak(&with) - peak(&without);
            let times = with.p99_ms / without.p99_ms;
            let cpu = with.cpu_per_million_all();
            sheet.note(case, "CPU of all programs", "s/M", cpu, None, Goal::None);
            // A peer has no duty to end the stalled ones.
            let goal = |most| if name == "peer" { Goal::None } else { Goal::AtMost(most) };
            sheet.note(case, "p99 without stalled", "ms", without.p99_ms, None, Goal::None);
            sheet.note(case, "p99 of the other 95", "ms", with.p99_ms, None, Goal::None);
            sheet.note(case, "p99 with over without", "", times, None, goal(1.25));
            sheet.note(case, "events wrong of the 95", "", wrong as f64, None, goal(0.0));
            sheet.note(case, "of the 95 cut off", "", with.ended as f64, None, goal(0.0));
            sheet.note(case, "filtered memory more", "MB", more, None, goal(MEMORY_MB));
        }
    }
    Ok(())
}
