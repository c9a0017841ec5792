//! S4: 10,000 idle clients, each subscribed to the trades and quotes of one symbol. Measured are
//! the resident memory per client, and the time until all are connected and subscribed. A little
//! load at the end shows that all of them are alive.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::context::Context;
use crate::{
    event::symbol,
    load::Step,
    rig::{Rig, Shape, client},
    sheet::{Case, Goal},
};

const CLIENTS: usize = 10_000;
const QUICK_CLIENTS: usize = 500;
/// How long the memory may settle before it is read.
const SETTLE: Duration = Duration::from_secs(1);
const LIVING_RATE: f64 = 20_000.0;

/// Runs it.
pub fn run(context: &mut Context) -> Result<()> {
    let count = if context.quick { QUICK_CLIENTS } else { CLIENTS };
    let clients: Vec<_> = (0..count)
        .map(|i| {
            let symbol = symbol(i);
            client(&context.feed, format!("T.{symbol},Q.{symbol}"))
        })
        .collect();
    let shapes = context.shapes().into_iter().filter(|(_, shape)| *shape != Shape::Both);
    let shapes: Vec<_> = shapes.collect();
    for (name, shape) in std::iter::repeat_n(shapes, context.runs).flatten() {
        let case = Case { scenario: "S4", shape: name };
        let mut rig = Rig::start(&context.bench, shape, &context.feed, clients.clone())?;
        rig.idle(SETTLE)?;
        let resident = rig.programs[0].resident_bytes()?;
        let each = resident.saturating_sub(rig.resident_before) as f64 / count as f64;
        let seconds = rig.login_seconds;
        eprintln!("S4 {name}: {count} clients in {seconds:.2} s, {each:.0} bytes each");
        let living = Step { rate: Some(LIVING_RATE), duration: context.duration() };
        let outcome = rig.run(living)?;
        ensure!(outcome.is_complete(), "idle clients missed events: {}", outcome.line());
        let sheet = &mut context.sheet;
        let goal = |most| if name == "peer" { Goal::None } else { Goal::AtMost(most) };
        sheet.note(case, "resident for each client", "bytes", each, None, goal(2_500.0));
        sheet.note(case, "all connected and subscribed", "s", seconds, None, goal(2.0));
        let base = rig.resident_before as f64 / 1e6;
        sheet.note(case, "resident without clients", "MB", base, None, Goal::None);
    }
    Ok(())
}
