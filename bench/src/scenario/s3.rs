//! S3: 1,000 clients with 10 symbols each, trades and quotes. Every symbol belongs to one client,
//! so each event is delivered once. Measured are the highest rate without loss at a p99 under 50
//! ms, and the delays and costs at 50,000, 200,000 and 500,000 events per second.
//!
//! The floor composes the same messages from precomputed events and sends one blocking write to
//! each client that gets any. It does so after every frame, after 64, 256 or 1,024 frames, and at
//! the three rates after all frames that are due.

use anyhow::Result;

use super::context::Context;
use crate::{
    client::ClientPlan,
    event::symbol,
    feed::{Feed, SYMBOLS},
    floor::Handing,
    rig::{Outcome, Shape, client},
    sheet::{Case, Goal},
};

const CLIENTS: usize = 1_000;
/// "Without loss" also requires this: an event that is later is as good as lost.
const P99_LIMIT_MS: f64 = 50.0;
/// The rates at which delays and costs are taken, in events per second.
const RATES: [f64; 3] = [50_000.0, 200_000.0, 500_000.0];

/// Clients that share all symbols among them.
pub fn clients(feed: &Feed, count: usize) -> Vec<ClientPlan> {
    let mut ranks: Vec<usize> = (0..SYMBOLS).collect();
    fastrand::Rng::with_seed(3).shuffle(&mut ranks);
    let share = ranks.len() / count;
    ranks
        .chunks(share)
        .take(count)
        .map(|ranks| {
            let channels: Vec<String> =
                ranks.iter().map(|&rank| symbol(rank)).map(|s| format!("T.{s},Q.{s}")).collect();
            client(feed, channels.join(","))
        })
        .collect()
}

/// Runs it.
pub fn run(context: &mut Context) -> Result<()> {
    let clients = clients(&context.feed, CLIENTS);
    for _ in 0..context.runs {
        floors(context, &clients)?;
        let alone = highest(context, &clients, "alone", Shape::Alone, 6e6)?;
        note_rate(context, "alone", alone.as_ref(), Goal::AtLeastOr(2e6, 1.4));
        let high = alone.as_ref().map_or(2e6, |alone| alone.rate() * 1.2);
        let both = highest(context, &clients, "both", Shape::Both, high)?;
        // The floor was 1.39 M where the goal was set.
        note_rate(context, "both", both.as_ref(), Goal::AtLeastOr(1.2e6, 1.2 / 1.39));
        if context.bench.peer.is_some() {
            let peer = highest(context, &clients, "peer", Shape::Peer, high)?;
            note_rate(context, "peer", peer.as_ref(), Goal::None);
        }
        for rate in RATES {
            for (name, shape) in context.shapes() {
                let title = format!("S3 {name} at {}k", rate / 1e3);
                let step = context.step(Some(rate));
                let outcome = context.once(&title, shape, &clients, step)?;
                note_times(context, name, rate, &outcome);
            }
        }
    }
    Ok(())
}

fn good(outcome: &Outcome) -> bool {
    outcome.is_sustained() && outcome.p99_ms <= P99_LIMIT_MS
}

/// The rate as fast as possible, if that result is good: a proxy may slow the load program down.
/// Otherwise the rate is searched.
fn highest(
    context: &Context,
    clients: &[ClientPlan],
    name: &str,
    shape: Shape,
    high: f64,
) -> Result<Option<Outcome>> {
    let mut high = high;
    if shape != Shape::Both {
        let title = format!("S3 {name}: flat out");
        let flat_out = context.once(&title, shape, clients, context.step(None))?;
        if good(&flat_out) {
            return Ok(Some(flat_out));
        }
        high = high.min(flat_out.rate() * 1.5);
    }
    context.search(&format!("S3 {name}: search"), shape, clients, high, good)
}

fn floors(context: &mut Context, clients: &[ClientPlan]) -> Result<()> {
    let case = Case { scenario: "S3", shape: "floor" };
    for group in [1, 64, 256, 1_024] {
        let shape = Shape::Floor(Handing::Split(group));
        let title = format!("S3 floor: {group} frames");
        let outcome = context.once(&title, shape, clients, context.step(None))?;
        let rate = outcome.delivery_rate();
        context.sheet.note(case, floor_name(group), "deliveries/s", rate, None, Goal::None);
    }
    for rate in RATES {
        let shape = Shape::Floor(Handing::Split(0));
        let title = format!("S3 floor at {}k", rate / 1e3);
        let outcome = context.once(&title, shape, clients, context.step(Some(rate)))?;
        let (p50, p99, cpu) = names(rate);
        context.sheet.note(case, p50, "ms", outcome.p50_ms, None, Goal::None);
        context.sheet.note(case, p99, "ms", outcome.p99_ms, None, Goal::None);
        context.sheet.note(case, cpu, "s/M", outcome.cpu_per_million_all(), None, Goal::None);
    }
    Ok(())
}

fn floor_name(group: usize) -> &'static str {
    match group {
        1 => "one write a frame",
        64 => "64 frames a write",
        256 => "256 frames a write",
        _ => "1,024 frames a write",
    }
}

fn note_rate(context: &mut Context, shape: &'static str, outcome: Option<&Outcome>, goal: Goal) {
    let case = Case { scenario: "S3", shape };
    let floor = Some("64 frames a write");
    let sheet = &mut context.sheet;
    let rate = outcome.map_or(0.0, Outcome::delivery_rate);
    sheet.note(case, "rate without loss", "deliveries/s", rate, floor, goal);
    let Some(outcome) = outcome else { return };
    let goal = if shape == "peer" { Goal::None } else { Goal::AtMost(P99_LIMIT_MS) };
    sheet.note(case, "p50 there", "ms", outcome.p50_ms, None, Goal::None);
    sheet.note(case, "p99 there", "ms", outcome.p99_ms, None, goal);
    for cost in &outcome.costs {
        let (cpu, memory) =
            (format!("{} CPU there", cost.name), format!("{} peak memory", cost.name));
        let per_million = cost.cpu_seconds / outcome.events as f64 * 1e6;
        sheet.note(case, &cpu, "s/M", per_million, None, Goal::None);
        sheet.note(case, &memory, "MB", cost.peak_bytes as f64 / 1e6, None, Goal::None);
    }
}

fn names(rate: f64) -> (&'static str, &'static str, &'static str) {
    match rate {
        ..100_000.0 => ("p50 at 50k", "p99 at 50k", "CPU at 50k"),
        ..300_000.0 => ("p50 at 200k", "p99 at 200k", "CPU at 200k"),
        _ => ("p50 at 500k", "p99 at 500k", "CPU at 500k"),
    }
}

fn note_times(context: &mut Context, shape: &'static str, rate: f64, outcome: &Outcome) {
    let case = Case { scenario: "S3", shape };
    let (p50, p99, cpu) = names(rate);
    // The floors of the machine on which the goals were set.
    let (floor50, floor99, floor_cpu) =
        if rate < 300_000.0 { (0.12, 0.30, 2.7) } else { (0.12, 1.1, 2.7) };
    let at_most = |goal, floor| Goal::AtMostOr(goal, goal / floor);
    let (goal50, goal99, goal_cpu) = match (rate, shape) {
        (..100_000.0, _) | (_, "peer") => (Goal::None, Goal::None, Goal::None),
        (..300_000.0, "alone") => {
            (at_most(0.2, floor50), at_most(3.0, floor99), at_most(3.0, floor_cpu))
        }
        (..300_000.0, _) => (at_most(0.3, floor50), at_most(5.0, floor99), Goal::None),
        (_, "alone") => (at_most(1.0, floor50), at_most(8.0, floor99), Goal::None),
        _ => (Goal::None, at_most(20.0, floor99), Goal::None),
    };
    // Delays of a stretch that lost events or fell behind mean nothing.
    let valid = |value: f64| if outcome.is_sustained() { value } else { f64::INFINITY };
    let sheet = &mut context.sheet;
    sheet.note(case, p50, "ms", valid(outcome.p50_ms), Some(p50), goal50);
    sheet.note(case, p99, "ms", valid(outcome.p99_ms), Some(p99), goal99);
    sheet.note(case, cpu, "s/M", valid(outcome.cpu_per_million_all()), Some(cpu), goal_cpu);
}
