//! What every scenario gets: the rig's parts, the feed, the sheet, and the patience of the run.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    client::ClientPlan,
    feed::{FRAME_EVENTS, Feed},
    load::Step,
    process::{busy_cores, idle_seconds, pause},
    rig::{Bench, Outcome, Rig, Shape},
    search::{highest, median},
    sheet::Sheet,
};

/// A rate that two runs of the search agree on needs at least this long a stretch.
const FULL: Duration = Duration::from_secs(2);
/// A stretch during which other programs kept more cores busy than this is repeated, as far as the
/// patience goes.
pub const QUIET_CORES: f64 = 0.25;
const QUICK: Duration = Duration::from_millis(300);

/// What every scenario gets.
#[derive(Debug)]
pub struct Context {
    /// Programs and clock.
    pub bench: Bench,
    /// The feed with 50 events a frame.
    pub feed: Arc<Feed>,
    /// Whether this is only to see that everything works.
    pub quick: bool,
    /// How often each figure is taken.
    pub runs: usize,
    /// What came out.
    pub sheet: Sheet,
    /// How long the run may still wait for the machine's other programs to rest.
    patience: Cell<Duration>,
    /// Cores that other programs kept busy, by stretch.
    others: RefCell<Vec<f64>>,
}

impl Context {
    /// With an empty sheet.
    pub fn new(bench: Bench, quick: bool, runs: usize, patience: Duration) -> Self {
        let feed = Arc::new(Feed::new(FRAME_EVENTS));
        Self {
            bench,
            feed,
            quick,
            runs,
            sheet: Sheet::default(),
            patience: Cell::new(patience),
            others: RefCell::default(),
        }
    }

    /// How many cores the machine's other programs kept busy meanwhile: the median and the most of
    /// all stretches.
    pub fn disturbance(&self) -> (f64, f64) {
        let others = self.others.borrow().clone();
        let most = others.iter().copied().fold(0.0, f64::max);
        (median(others), most)
    }

    /// How long one stretch of load is.
    pub fn duration(&self) -> Duration {
        if self.quick { QUICK } else { FULL }
    }

    /// A stretch at this rate, or as fast as it goes.
    pub fn step(&self, rate: Option<f64>) -> Step {
        Step { rate, duration: self.duration() }
    }

    /// One stretch through a fresh rig, reported on standard error.
    pub fn once(
        &self,
        title: &str,
        shape: Shape,
        clients: &[ClientPlan],
        step: Step,
    ) -> Result<Outcome> {
        self.once_on(&self.feed, title, shape, clients, step)
    }

    /// The same with another feed.
    pub fn once_on(
        &self,
        feed: &Arc<Feed>,
        title: &str,
        shape: Shape,
        clients: &[ClientPlan],
        step: Step,
    ) -> Result<Outcome> {
        loop {
            let mut rig = Rig::start(&self.bench, shape, feed, clients.to_vec())?;
            let outcome = rig.run(step)?;
            drop(rig);
            eprintln!("{title:28} {}", outcome.line());
            if outcome.other_cores <= QUIET_CORES || !self.wait_for_quiet()? {
                self.others.borrow_mut().push(outcome.other_cores);
                return Ok(outcome);
            }
        }
    }

    /// Waits until the machine's other programs rest, as far as the run's patience goes. Whether it
    /// is worth to try again.
    fn wait_for_quiet(&self) -> Result<bool> {
        while !self.patience.get().is_zero() {
            let (began, idle) = (Instant::now(), idle_seconds()?);
            while began.elapsed() < Duration::from_secs(1) {
                pause();
            }
            self.patience.set(self.patience.get().saturating_sub(began.elapsed()));
            if busy_cores(began, idle)? <= QUIET_CORES {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The highest rate at which the outcome is good; the search begins at `guess`.
    pub fn search(
        &self,
        title: &str,
        shape: Shape,
        clients: &[ClientPlan],
        guess: f64,
        good: impl Fn(&Outcome) -> bool,
    ) -> Result<Option<Outcome>> {
        highest(guess, good, |rate| self.once(title, shape, clients, self.step(Some(rate))))
    }
}
