//! S9: one client with two channels at each of one or four filtered proxies, which take the feed
//! from the firehose directly, or through NATS with its stream on disk or in memory. Measured are
//! the delays, and the processor time of each program, at 200,000 and 1,000,000 events a second.
//!
//! All of them run in turns within the same run, so that what disturbs one disturbs the others.

use std::time::Duration;

use anyhow::Result;

use super::context::Context;
use crate::{
    client::ClientPlan,
    load::Step,
    process::Storage,
    rig::{Outcome, Shape, client},
    sheet::{Case, Goal},
};

const CHANNELS: &str = "T.AAPL,Q.AAPL";
const RATES: [f64; 2] = [200_000.0, 1_000_000.0];
const PROXIES: [usize; 2] = [1, 4];
/// The server of NATS collects its garbage in intervals. Several of them shall lie in a stretch.
const FULL: Duration = Duration::from_secs(5);

/// Runs it.
pub fn run(context: &mut Context) -> Result<()> {
    let duration = if context.quick { context.duration() } else { FULL };
    for _ in 0..context.runs {
        for proxies in PROXIES {
            let one = client(&context.feed, CHANNELS.to_owned());
            let clients: Vec<ClientPlan> = vec![one; proxies];
            for rate in RATES {
                for (name, shape) in [
                    ("direct", Shape::Link(proxies)),
                    ("NATS, disk", Shape::Nats(proxies, Storage::File)),
                    ("NATS, memory", Shape::Nats(proxies, Storage::Memory)),
                ] {
                    let title = format!("S9 {name}, {proxies} at {}k", rate / 1e3);
                    let step = Step { rate: Some(rate), duration };
                    let outcome = context.once(&title, shape, &clients, step)?;
                    note(context, name, proxies, rate, &outcome);
                }
            }
        }
    }
    Ok(())
}

fn note(context: &mut Context, shape: &'static str, proxies: usize, rate: f64, outcome: &Outcome) {
    let case = Case { scenario: "S9", shape };
    let stretch = format!("{proxies} x {}k/s", rate / 1e3);
    let mut note = |figure: &str, unit, value| {
        let figure = format!("{stretch}: {figure}");
        context.sheet.note(case, &figure, unit, value, None, Goal::None);
    };
    note("p50", "ms", outcome.p50_ms);
    note("p99", "ms", outcome.p99_ms);
    note("rate reached", "events/s", outcome.rate());
    for (program, name) in [("firehose", "CPU of the firehose"), ("nats", "CPU of NATS")] {
        if let Some(seconds) = outcome.cpu_per_million(program) {
            note(name, "s/M", seconds);
        }
    }
    if let Some(seconds) = outcome.cpu_per_million("filtered") {
        note("CPU of each proxy", "s/M", seconds / proxies as f64);
    }
    note("CPU of all", "s/M", outcome.cpu_per_million_all());
    let faults = &outcome.faults;
    let wrong = faults.missing + faults.repeated + faults.foreign + faults.corrupt;
    note("events lost, twice or altered", "", wrong as f64);
    if let Some(nats) = outcome.costs.iter().find(|cost| cost.name == "nats") {
        note("peak memory of NATS", "MB", nats.peak_bytes as f64 / 1e6);
    }
}
