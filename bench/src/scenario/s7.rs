//! S7: both tiers with the client of S1, with and without `RECORD_DIR` at the firehose. Measured
//! are processor time and delays at the same rates, the highest rate, and the bytes on the disk.
//!
//! The two take turns, so that a machine that gets busier does not burden one of them alone.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::context::Context;
use crate::{
    load::Step,
    rig::{Outcome, Shape, client},
    search::highest,
    sheet::{Case, Goal},
};

const RATES: [(&str, f64); 2] = [("200k", 200_000.0), ("500k", 500_000.0)];
/// Where the search begins, in events a second.
const GUESS: f64 = 1_000_000.0;
/// Long enough that a recording that is behind shows it: 128 MiB may wait for the disk.
const LONG: Duration = Duration::from_secs(6);

/// Runs it.
pub fn run(context: &mut Context) -> Result<()> {
    let one = [client(&context.feed, "T.AAPL,Q.AAPL".to_owned())];
    let shapes = [("both", Shape::Both), ("recorded", Shape::Recorded)];
    let duration = if context.quick { context.duration() } else { LONG };
    for _ in 0..context.runs {
        for (label, rate) in RATES {
            for (name, shape) in shapes {
                let title = format!("S7 {name}: {label}");
                let step = Step { rate: Some(rate), duration };
                let outcome = context.once(&title, shape, &one, step)?;
                ensure!(is_good(&outcome), "events lost or not recorded: {}", outcome.line());
                let mut note = |figure: &str, unit, value| {
                    let figure = format!("{figure} at {label}");
                    let case = Case { scenario: "S7", shape: name };
                    context.sheet.note(case, &figure, unit, value, None, Goal::None);
                };
                note("firehose CPU", "s/M", cpu(&outcome));
                note("p50", "ms", outcome.p50_ms);
                note("p99", "ms", outcome.p99_ms);
                if let Some(recording) = &outcome.recording {
                    let each = recording.bytes as f64 / outcome.events as f64;
                    note("bytes of an event on the disk", "", each);
                }
            }
        }
        for (name, shape) in shapes {
            let title = format!("S7 {name}: search");
            let once = |rate| {
                let step = Step { rate: Some(rate), duration };
                context.once(&title, shape, &one, step)
            };
            let best = highest(GUESS, is_good, once)?;
            let rate = best.as_ref().map_or(0.0, Outcome::rate);
            let case = Case { scenario: "S7", shape: name };
            let sheet = &mut context.sheet;
            sheet.note(case, "rate without loss", "events/s", rate, None, Goal::None);
            if let Some(best) = best {
                sheet.note(case, "firehose CPU there", "s/M", cpu(&best), None, Goal::None);
            }
        }
    }
    Ok(())
}

/// Whether no event was lost, and the recording goes on.
fn is_good(outcome: &Outcome) -> bool {
    let stopped = outcome.recording.as_ref().is_some_and(|recording| recording.stopped);
    outcome.is_sustained() && !stopped
}

fn cpu(outcome: &Outcome) -> f64 {
    outcome.cpu_per_million("firehose").unwrap_or_default()
}
