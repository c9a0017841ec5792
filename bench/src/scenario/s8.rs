//! S8: the clients of S3 at 50,000 events a second through both tiers. 100 of them leave, and come
//! back a minute later, all at once and each from where it stood. Measured are the time until each
//! is live again, what it gets, and the delays of the 900 others.
//!
//! The generator's numbers tell exactly what was lost, and what of it a `gap` had announced. With
//! the default history the filtered tier cannot reach back so far; with a large one it can.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{context::Context, s3};
use crate::{
    fleet::Fleet,
    load::Step,
    process::Program,
    rig::{Rig, Shape},
    search::median,
    sheet::{Case, Goal},
};

const CLIENTS: usize = 1_000;
/// Every tenth client leaves.
const ONE_IN: usize = 10;
const RATE: f64 = 50_000.0;
/// Holds the frames of a minute and a half.
const LARGE: u64 = 768 << 20;

/// When the clients leave, come back, and the load ends.
#[derive(Debug, Clone, Copy)]
struct Times {
    here: Duration,
    away: Duration,
    /// The end of `away`, in which the delays of the others are measured.
    before: Duration,
    back: Duration,
}

const FULL: Times = Times {
    here: Duration::from_secs(5),
    away: Duration::from_secs(60),
    before: Duration::from_secs(10),
    back: Duration::from_secs(30),
};
const QUICK: Times = Times {
    here: Duration::from_millis(300),
    away: Duration::from_millis(600),
    before: Duration::from_millis(300),
    back: Duration::from_secs(3),
};

/// Delays of the others in milliseconds, and what the filtered tier used meanwhile.
#[derive(Debug, Default, Clone, Copy)]
struct Stretch {
    p50_ms: f64,
    p99_ms: f64,
    most_ms: f64,
    cores: f64,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Here,
    Away,
    Before,
    Returning,
    Back,
}

/// Runs it.
pub fn run(context: &mut Context) -> Result<()> {
    let mut clients = s3::clients(&context.feed, CLIENTS);
    clients.iter_mut().step_by(ONE_IN).for_each(|client| client.returns = true);
    let times = if context.quick { QUICK } else { FULL };
    let duration = times.here + times.away + times.back;
    let step = Step { rate: Some(RATE), duration };
    for _ in 0..context.runs {
        for (name, shape) in [("both", Shape::Both), ("768 MiB", Shape::History(LARGE))] {
            let feed = std::sync::Arc::clone(&context.feed);
            let mut rig = Rig::start(&context.bench, shape, &feed, clients.clone())?;
            let mut course = Course::new(context.bench.clock.now_ns(), times);
            let clock = context.bench.clock;
            let outcome = rig
                .run_while(step, |fleet, programs| course.steer(clock.now_ns(), fleet, programs))?;
            eprintln!("{:28} {}", format!("S8 {name}"), outcome.line());
            context.note_others(&outcome);
            let returns = || rig.returns();
            let waits: Vec<f64> = returns()
                .filter_map(|back| Some((back.live_ns? - back.asked_ns) as f64 / 1e6))
                .collect();
            ensure!(
                waits.len() == returns().count() && course.stage == Stage::Back,
                "only {} came back in time",
                waits.len()
            );
            let replayed: Vec<f64> = returns().map(|back| back.replayed as f64).collect();
            let told: u64 = returns().map(|back| back.told).sum();
            let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
            let mut note = |figure: &str, unit, value| {
                let case = Case { scenario: "S8", shape: name };
                context.sheet.note(case, figure, unit, value, None, Goal::None);
            };
            note("p50 until live", "ms", median(waits.clone()));
            note("most until live", "ms", most(&waits));
            note("events replayed for one, median", "", median(replayed.clone()));
            note("events replayed for one, most", "", most(&replayed));
            note("events replayed for all", "", replayed.iter().sum());
            note("events told as lost", "", told as f64);
            // Negative if more was told as lost than was.
            note("events lost and not told", "", outcome.faults.missing as f64 - told as f64);
            note("events twice", "", outcome.faults.repeated as f64);
            let other = outcome.faults.foreign + outcome.faults.corrupt;
            note("events foreign or altered", "", other as f64);
            note("sessions ended", "", outcome.ended as f64);
            for (when, stretch) in [("before", course.before), ("during", course.during)] {
                note(&format!("p50 of the others {when}"), "ms", stretch.p50_ms);
                note(&format!("p99 of the others {when}"), "ms", stretch.p99_ms);
                note(&format!("most of the others {when}"), "ms", stretch.most_ms);
                note(&format!("filtered CPU {when}"), "cores", stretch.cores);
            }
            note("filtered peak memory", "MB", outcome.costs[0].peak_bytes as f64 / 1e6);
            note("firehose peak memory", "MB", outcome.costs[1].peak_bytes as f64 / 1e6);
        }
    }
    Ok(())
}

/// Lets the clients leave and come back, and measures the others meanwhile.
#[derive(Debug)]
struct Course {
    start_ns: u64,
    times: Times,
    stage: Stage,
    /// When the current stretch began, and the filtered tier's processor time then.
    began: (u64, f64),
    before: Stretch,
    during: Stretch,
}

impl Course {
    fn new(start_ns: u64, times: Times) -> Self {
        let (before, during) = (Stretch::default(), Stretch::default());
        Self { start_ns, times, stage: Stage::Here, began: (0, 0.0), before, during }
    }

    fn steer(&mut self, now_ns: u64, fleet: &mut Fleet, programs: &[Program]) -> Result<()> {
        let since = Duration::from_nanos(now_ns - self.start_ns);
        let Times { here, away, before, .. } = self.times;
        match self.stage {
            Stage::Here if since >= here => {
                fleet.leave()?;
                self.stage = Stage::Away;
            }
            Stage::Away if since >= here + away - before => {
                self.take(now_ns, fleet, programs)?;
                self.stage = Stage::Before;
            }
            Stage::Before if since >= here + away => {
                self.before = self.take(now_ns, fleet, programs)?;
                fleet.come_back()?;
                self.stage = Stage::Returning;
            }
            Stage::Returning if fleet.returns().all(|back| back.live_ns.is_some()) => {
                self.during = self.take(now_ns, fleet, programs)?;
                self.stage = Stage::Back;
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends a stretch and begins another.
    fn take(&mut self, now_ns: u64, fleet: &mut Fleet, programs: &[Program]) -> Result<Stretch> {
        let cpu = programs[0].cpu_seconds()?;
        let seconds = (now_ns - self.began.0) as f64 / 1e9;
        let cores = (cpu - self.began.1) / seconds;
        self.began = (now_ns, cpu);
        let mut quantile = |share| fleet.latency.quantile_ms(share);
        let (p50_ms, p99_ms, most_ms) = (quantile(0.5), quantile(0.99), quantile(1.0));
        fleet.latency.clear();
        Ok(Stretch { p50_ms, p99_ms, most_ms, cores })
    }
}
