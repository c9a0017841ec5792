//! The context of every scenario: the programs, the feed, the sheet, and how long the run may wait
//! for a quiet machine.

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

/// The shortest stretch for which two runs of the search agree on a rate.
const FULL: Duration = Duration::from_secs(2);
/// A stretch is repeated if other programs kept more cores busy than this, as long as patience is
/// left.
pub const QUIET_CORES: f64 = 0.25;
const QUICK: Duration = Duration::from_millis(300);

/// The context of every scenario.
#[derive(Debug)]
pub struct Context {
    /// Programs and clock.
    pub bench: Bench,
    /// The feed with 50 events per frame.
    pub feed: Arc<Feed>,
    /// Whether the run only checks that everything works.
    pub quick: bool,
    /// How often each figure is taken.
    pub runs: usize,
    /// The results.
    pub sheet: Sheet,
    /// How long the run may still wait for other programs of the machine to rest.
    patience: Cell<Duration>,
    /// For each stretch, the cores that other programs kept busy.
    others: RefCell<Vec<f64>>,
}

impl Context {
    /// A context with an empty sheet.
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

    /// How many cores other programs kept busy: the median and the maximum over all stretches.
    pub fn disturbance(&self) -> (f64, f64) {
        let others = self.others.borrow().clone();
        let most = others.iter().copied().fold(0.0, f64::max);
        (median(others), most)
    }

    /// The shapes of the filtered tier to measure: alone, with a firehose, and the peer if there is
    /// one, with the names that they have in the report.
    pub fn shapes(&self) -> Vec<(&'static str, Shape)> {
        let peer = self.bench.peer.is_some().then_some(("peer", Shape::Peer));
        [("alone", Shape::Alone), ("both", Shape::Both)].into_iter().chain(peer).collect()
    }

    /// The length of one stretch of load.
    pub fn duration(&self) -> Duration {
        if self.quick { QUICK } else { FULL }
    }

    /// A stretch at this rate, or as fast as possible.
    pub fn step(&self, rate: Option<f64>) -> Step {
        Step { rate, duration: self.duration() }
    }

    /// Sends one stretch through a fresh rig and reports it on standard error.
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

    /// Notes how many cores other programs kept busy in a stretch run without [`once`](Self::once).
    pub fn note_others(&self, outcome: &Outcome) {
        self.others.borrow_mut().push(outcome.other_cores);
    }

    /// Waits until other programs of the machine rest, as long as patience is left. Returns whether
    /// to try again.
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

    /// The highest rate at which the outcome is good. The search begins at `guess`.
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
