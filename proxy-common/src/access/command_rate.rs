//! Limits how fast a session may send commands: a budget that refills, and a pause when it is
//! spent. Time is an argument.

use std::time::{Duration, Instant};

/// A full budget holds the commands of this many seconds, because official clients send all their
/// subscriptions at once.
pub(super) const BURST_SECONDS: u32 = 10;
/// The longest pause. It is short enough to answer a client's ping before the client gives up:
/// official clients wait 20 s and more.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// A message counts as one command, plus one for each full block of this many bytes.
const BYTES_PER_COMMAND: usize = 1_024;

/// How fast sessions may send commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandRate {
    interval: Duration,
}

impl CommandRate {
    /// Allows `count` commands a second, at least one, and [`BURST_SECONDS`] times as many at once.
    pub fn per_second(count: u32) -> Self {
        Self { interval: Duration::from_secs(1) / count.max(1) }
    }

    fn burst(self) -> Duration {
        Duration::from_secs(BURST_SECONDS.into())
    }
}

/// The budget of one session.
#[derive(Debug, Clone, Copy)]
pub struct CommandBudget {
    /// When the budget is full again.
    full_at: Instant,
}

impl CommandBudget {
    /// A full budget.
    pub fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Charges one message, or a part of one, of this many bytes. If the budget is spent, returns
    /// the time until which the session must not be read.
    pub fn take(&mut self, rate: CommandRate, bytes: usize, now: Instant) -> Option<Instant> {
        let count = u32::try_from(bytes / BYTES_PER_COMMAND + 1).unwrap_or(u32::MAX);
        let cost = rate.interval.saturating_mul(count);
        let most = rate.burst() + MAX_PAUSE;
        let debt = self.full_at.saturating_duration_since(now).saturating_add(cost).min(most);
        self.full_at = now + debt;
        let pause = debt.saturating_sub(rate.burst());
        (!pause.is_zero()).then(|| now + pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_costs_nothing_and_then_the_rate_holds() {
        let rate = CommandRate::per_second(100);
        let mut now = Instant::now();
        let mut budget = CommandBudget::new(now);
        for n in 0..1_000 {
            assert_eq!(budget.take(rate, 50, now), None, "{n}");
        }
        let started = now;
        for _ in 0..500 {
            now = budget.take(rate, 50, now).expect("the budget is spent");
        }
        assert_eq!(now - started, Duration::from_secs(5));
        // A quarter of the budget comes back in a quarter of its time.
        now += Duration::from_millis(2_500);
        for n in 0..250 {
            assert_eq!(budget.take(rate, 50, now), None, "{n}");
        }
        assert_eq!(budget.take(rate, 50, now), Some(now + Duration::from_millis(10)));
    }

    #[test]
    fn long_commands_count_by_their_length_and_no_pause_is_long() {
        let rate = CommandRate::per_second(1_000);
        let now = Instant::now();
        let mut budget = CommandBudget::new(now);
        for _ in 0..9 {
            assert_eq!(budget.take(rate, 1 << 20, now), None);
        }
        let resume = budget.take(rate, 1 << 20, now).expect("ten MiB are more than ten seconds");
        assert_eq!(resume - now, Duration::from_millis(250));
        let mut slow = CommandBudget::new(now);
        let resume = slow.take(CommandRate::per_second(1), 1 << 20, now).expect("far too much");
        assert_eq!(resume - now, MAX_PAUSE);
    }
}
