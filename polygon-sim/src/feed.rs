//! The running market: generates the events that are due at each tick.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{config::Profile, hub::Hub};

/// The most events generated before other tasks may run.
const BLOCK: usize = 1_024;
/// The most time that a late tick makes up for.
const CATCH_UP: Duration = Duration::from_millis(100);

/// Runs the market until `stop`. It generates nothing while no client is subscribed.
pub(crate) async fn run(hub: Arc<Hub>, stop: CancellationToken) {
    let mut ticks = interval(hub.config.tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut schedule = Schedule::new(hub.config.profile);
    let start = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if !hub.has_audience() {
            schedule.pause();
            continue;
        }
        let due = schedule.due(Instant::now().into_std(), hub.rate());
        hub.counters.events_skipped.add(due.skipped);
        // Counted by the clock, so that ticks delayed by a busy machine count as lag.
        let tick = start.elapsed().as_nanos() / hub.config.tick.as_nanos();
        let tick = u64::try_from(tick).unwrap_or(u64::MAX);
        let per_frame = hub.config.frame_events;
        // Whole frames, so that only the last frame of a tick is short.
        let block = BLOCK.next_multiple_of(per_frame);
        let mut left = due.events;
        while left > 0 && !stop.is_cancelled() {
            let count = left.min(block);
            hub.generate(count, per_frame, Some(tick));
            left -= count;
            tokio::task::yield_now().await;
        }
    }
}

/// How many events are due at which time.
#[derive(Debug)]
struct Schedule {
    profile: Profile,
    opened: Option<std::time::Instant>,
    last: Option<std::time::Instant>,
    /// The fraction of an event left over from the tick before.
    rest: f64,
}

#[derive(Debug, PartialEq, Eq)]
struct Due {
    events: usize,
    skipped: usize,
}

impl Schedule {
    fn new(profile: Profile) -> Self {
        Self { profile, opened: None, last: None, rest: 0.0 }
    }

    /// Leaves out the time until the next call.
    fn pause(&mut self) {
        self.last = None;
    }

    fn due(&mut self, now: std::time::Instant, rate: f64) -> Due {
        let opened = *self.opened.get_or_insert(now);
        let elapsed = now - self.last.replace(now).unwrap_or(now);
        let rate = rate * self.profile.factor(now - opened);
        let made_up = elapsed.min(CATCH_UP);
        let exact = rate * made_up.as_secs_f64() + self.rest;
        self.rest = exact.fract();
        Due { events: whole(exact), skipped: whole(rate * (elapsed - made_up).as_secs_f64()) }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of events are neither negative nor near 2^53"
)]
fn whole(events: f64) -> usize {
    events as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_add_up_to_the_rate() {
        let (start, mut schedule) = (std::time::Instant::now(), Schedule::new(Profile::Steady));
        let ticks = (0..=200_u32).map(|n| start + n * Duration::from_millis(5));
        let total: usize = ticks.map(|now| schedule.due(now, 30.0).events).sum();
        assert!((29..=30).contains(&total), "{total}");
    }

    #[test]
    fn a_late_tick_makes_up_for_a_little_and_counts_the_rest() {
        let (start, mut schedule) = (std::time::Instant::now(), Schedule::new(Profile::Steady));
        schedule.due(start, 1_000.0);
        let due = schedule.due(start + Duration::from_millis(600), 1_000.0);
        assert_eq!(due, Due { events: 100, skipped: 500 });
        schedule.pause();
        let due = schedule.due(start + Duration::from_secs(60), 1_000.0);
        assert_eq!(due, Due { events: 0, skipped: 0 }, "a pause is not made up for");
    }

    #[test]
    fn the_open_is_busier() {
        let (start, mut schedule) = (std::time::Instant::now(), Schedule::new(Profile::Open));
        schedule.due(start, 1_000.0);
        assert!(schedule.due(start + Duration::from_millis(10), 1_000.0).events > 90);
    }
}
