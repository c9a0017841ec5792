//! Growth: the filtered tier's processor time per delivery while one thing grows and the deliveries
//! per second stay the same. What grows is clients, distinct subscriptions, prefixes or events per
//! frame. The tier runs alone, at rates far below saturation.

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::{context::Context, s3};
use crate::{
    client::ClientPlan,
    event::symbol,
    feed::{FRAME_EVENTS, Feed},
    plot::{Plot, Series},
    rig::{Shape, client},
    search::median,
    shapes,
    sheet::{Case, Goal},
};

/// A line counts as flat if its last point costs at most this many times its first.
const FLAT: f64 = 1.25;

/// Runs it.
pub fn run(context: &mut Context) -> Result<()> {
    clients(context)?;
    subscriptions(context)?;
    prefixes(context)?;
    frames(context)
}

fn clients(context: &mut Context) -> Result<()> {
    let feed = Arc::clone(&context.feed);
    let (mut all, mut one) = (Vec::new(), Vec::new());
    for count in sizes(context, &[10, 30, 100, 300, 1_000]) {
        let star = vec![client(&feed, "*".to_owned()); count];
        all.push(point(context, "growth: clients on *", &feed, count, &star, 1_000_000.0)?);
        let each: Vec<_> = (0..count)
            .map(symbol)
            .map(|symbol| client(&feed, format!("T.{symbol},Q.{symbol}")))
            .collect();
        one.push(point(context, "growth: one symbol each", &feed, count, &each, 50_000.0)?);
    }
    flatness(context, "clients on *: last over first", &all);
    flatness(context, "clients with one symbol each: last over first", &one);
    context.sheet.plots.push(Plot {
        file: "growth-clients.svg".into(),
        title: "Processor time a delivery, by clients".into(),
        x: "clients".into(),
        y: "us a delivery".into(),
        series: vec![
            Series { name: "all on *".to_owned(), points: all },
            Series { name: "one symbol each".to_owned(), points: one },
        ],
    });
    Ok(())
}

fn subscriptions(context: &mut Context) -> Result<()> {
    const CLIENTS: usize = 10;
    let feed = Arc::clone(&context.feed);
    let mut points = Vec::new();
    for total in sizes(context, &[10, 100, 1_000, 10_000, 100_000]) {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|i| {
                // One channel that gets events, and others that never do.
                let quiet = (1..total / CLIENTS).map(|n| format!("T.Z{}", n * CLIENTS + i));
                let channels: Vec<String> =
                    std::iter::once(format!("T.{}", symbol(i))).chain(quiet).collect();
                client(&feed, channels.join(","))
            })
            .collect();
        points.push(point(context, "growth: subscriptions", &feed, total, &clients, 20_000.0)?);
    }
    flatness(context, "distinct subscriptions: last over first", &points);
    context.sheet.plots.push(Plot {
        file: "growth-subscriptions.svg".into(),
        title: "Processor time a delivery, by distinct subscriptions".into(),
        x: "distinct subscriptions of 10 clients".into(),
        y: "us a delivery".into(),
        series: vec![Series { name: "alone".to_owned(), points }],
    });
    Ok(())
}

fn prefixes(context: &mut Context) -> Result<()> {
    const CLIENTS: usize = 10;
    let feed = Arc::clone(&context.feed);
    let mut points = Vec::new();
    for total in sizes(context, &[1, 100, 10_000]) {
        let mut clients: Vec<_> =
            (1..CLIENTS).map(|i| client(&feed, format!("T.{}", symbol(i)))).collect();
        clients.push(client(&feed, shapes::prefixes(total)));
        points.push(point(context, "growth: prefixes", &feed, total, &clients, 20_000.0)?);
    }
    flatness(context, "prefixes: last over first", &points);
    context.sheet.plots.push(Plot {
        file: "growth-prefixes.svg".into(),
        title: "Processor time a delivery, by prefixes".into(),
        x: "prefixes of one of 10 clients".into(),
        y: "us a delivery".into(),
        series: vec![Series { name: "alone".to_owned(), points }],
    });
    Ok(())
}

fn frames(context: &mut Context) -> Result<()> {
    let mut points = Vec::new();
    for events in sizes(context, &[FRAME_EVENTS, 150, 500, 1_500, 5_000]) {
        let feed = Arc::new(Feed::new(events));
        let clients = s3::clients(&feed, 100);
        points.push(point(context, "growth: events a frame", &feed, events, &clients, 100_000.0)?);
    }
    flatness(context, "events a frame: last over first", &points);
    context.sheet.plots.push(Plot {
        file: "growth-frames.svg".into(),
        title: "Processor time a delivery, by events a frame".into(),
        x: "events a frame".into(),
        y: "us a delivery".into(),
        series: vec![Series { name: "100 clients, each event to one".to_owned(), points }],
    });
    Ok(())
}

/// A quick run takes only the first and the last.
fn sizes(context: &Context, all: &[usize]) -> Vec<usize> {
    if context.quick { vec![all[0], all[all.len() - 1]] } else { all.to_vec() }
}

/// The median cost of a delivery in microseconds, at this many deliveries per second.
fn point(
    context: &Context,
    title: &str,
    feed: &Arc<Feed>,
    size: usize,
    clients: &[ClientPlan],
    deliveries: f64,
) -> Result<(f64, f64)> {
    let ring = feed.topics().len() as u64;
    let per_lap: u64 = clients.iter().map(|plan| plan.verifier.expected(ring, ring)).sum();
    let rate = deliveries / (per_lap as f64 / ring as f64);
    let mut costs = Vec::new();
    for _ in 0..context.runs {
        let title = format!("{title}, {size}");
        let step = context.step(Some(rate));
        let outcome = context.once_on(feed, &title, Shape::Alone, clients, step)?;
        ensure!(outcome.is_complete(), "events lost at a moderate rate: {}", outcome.line());
        costs.push(outcome.costs[0].cpu_seconds / outcome.deliveries.max(1) as f64 * 1e6);
    }
    Ok((size as f64, median(costs)))
}

fn flatness(context: &mut Context, name: &str, points: &[(f64, f64)]) {
    if let (Some(first), Some(last)) = (points.first(), points.last()) {
        let case = Case { scenario: "growth", shape: "alone" };
        context.sheet.note(case, name, "", last.1 / first.1, None, Goal::AtMost(FLAT));
    }
}
