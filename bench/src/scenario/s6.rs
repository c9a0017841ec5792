//! S6: the filtered tier alone, plain and with TLS on its port. Measured are processor time and
//! delays at the same load, for many clients with few events each and for few clients with all
//! events. Also measured are the memory of idle sessions and the time that many logins take.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::context::Context;
use crate::{
    client::ClientPlan,
    event::symbol,
    load::Step,
    rig::{Rig, Shape, client},
    sheet::{Case, Goal},
};

const IDLE: usize = 1_000;
const SETTLE: Duration = Duration::from_secs(1);

/// Runs it.
pub fn run(context: &mut Context) -> Result<()> {
    let feed = &context.feed;
    // Ten symbols each, as in S3.
    let few_symbols = |i: usize| {
        let channels: Vec<String> = (10 * i..10 * i + 10)
            .map(|n| {
                let symbol = symbol(n);
                format!("T.{symbol},Q.{symbol}")
            })
            .collect();
        client(feed, channels.join(","))
    };
    let many: Vec<ClientPlan> = (0..1_000).map(few_symbols).collect();
    let whole = vec![client(feed, "*".to_owned()); 20];
    let idle: Vec<_> = (0..IDLE).map(|i| client(feed, format!("T.{}", symbol(i)))).collect();
    for _ in 0..context.runs {
        for (name, shape) in [("alone", Shape::Alone), ("TLS", Shape::Tls)] {
            let case = Case { scenario: "S6", shape: name };
            for (load, clients, rate) in
                [("1,000 x 10 symbols", &many, 100_000.0), ("20 x *", &whole, 100_000.0)]
            {
                let title = format!("S6 {name}: {load}");
                let step = context.step(Some(rate));
                let outcome = context.once(&title, shape, clients, step)?;
                ensure!(outcome.is_complete(), "events lost: {}", outcome.line());
                let cpu = outcome.costs[0].cpu_seconds / outcome.deliveries as f64 * 1e6;
                let sheet = &mut context.sheet;
                let mut note = |figure: &str, unit, value| {
                    sheet.note(case, &format!("{load}: {figure}"), unit, value, None, Goal::None);
                };
                note("CPU", "s/M deliveries", cpu);
                note("p50", "ms", outcome.p50_ms);
                note("p99", "ms", outcome.p99_ms);
            }
            let mut rig = Rig::start(&context.bench, shape, &context.feed, idle.clone())?;
            rig.idle(SETTLE)?;
            let resident = rig.programs[0].resident_bytes()?.saturating_sub(rig.resident_before);
            let each = resident as f64 / IDLE as f64;
            let seconds = rig.login_seconds;
            let living = Step { rate: Some(20_000.0), duration: context.duration() };
            let outcome = rig.run(living)?;
            ensure!(outcome.is_complete(), "idle clients missed events: {}", outcome.line());
            eprintln!("S6 {name}: {IDLE} clients in {seconds:.2} s, {each:.0} bytes each");
            let sheet = &mut context.sheet;
            sheet.note(case, "resident for each of 1,000", "bytes", each, None, Goal::None);
            sheet.note(case, "1,000 connected one by one", "s", seconds, None, Goal::None);
        }
    }
    Ok(())
}
