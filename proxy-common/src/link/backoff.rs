//! When to try an upstream again. Pure: the caller passes in the time and chance.

use std::time::Duration;

/// The first retry comes within this time.
const FIRST: Duration = Duration::from_millis(250);
/// The second retry comes within this time; each further one within twice the time before.
const BASE: Duration = Duration::from_millis(500);
/// No retry waits longer.
const CAP: Duration = Duration::from_secs(30);
/// After an eviction we leave the connection to the other process for this long, plus up to half of
/// it by chance.
const EVICTED: Duration = Duration::from_secs(60);
/// Each further eviction doubles that time, up to this.
const EVICTED_CAP: Duration = Duration::from_secs(5 * 60);
/// A connection that lived this long was not in dispute: a process that waits as we do would have
/// taken it sooner. The next eviction counts as the first.
const UNDISPUTED_LIFE: Duration = Duration::from_secs(10 * 60);
/// A connection that lived this long after its login was a good one. The next loss counts as the
/// first.
pub(super) const USEFUL_LIFE: Duration = Duration::from_secs(10);

/// Exponential back-off with full jitter. Only a connection that lived for [`USEFUL_LIFE`] resets
/// it.
///
/// The vendor answers `auth_success` before it evicts a surplus connection (measured by several
/// users). So neither a connection nor a login proves that the link works.
#[derive(Debug, Default, Clone)]
pub(super) struct Backoff {
    failures: u32,
    evictions: u32,
    policy_closes: u32,
}

impl Backoff {
    /// Records that a connection ended. Returns how long to wait. `life` is how long it had been
    /// logged in, zero if it never was.
    ///
    /// `chance` is evenly spread over `0.0..1.0`.
    pub(super) fn after(&mut self, life: Duration, chance: f64) -> Duration {
        if life >= USEFUL_LIFE {
            self.failures = 0;
        }
        if life >= UNDISPUTED_LIFE {
            self.evictions = 0;
            self.policy_closes = 0;
        }
        let ceiling = match self.failures {
            0 => FIRST,
            n => BASE.saturating_mul(1_u32.checked_shl(n - 1).unwrap_or(u32::MAX)).min(CAP),
        };
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(chance)
    }

    /// Records that another process took the account's connection. Returns how long to wait. Call
    /// it after [`Self::after`].
    ///
    /// Two processes that share a key evict each other for as long as both try. `chance` is evenly
    /// spread over `0.0..1.0`.
    pub(super) fn after_eviction(&mut self, chance: f64) -> Duration {
        let factor = 1_u32.checked_shl(self.evictions).unwrap_or(u32::MAX);
        self.evictions = self.evictions.saturating_add(1);
        EVICTED.saturating_mul(factor).min(EVICTED_CAP).mul_f64(1.0 + chance / 2.0)
    }

    /// Records a close with code 1008 without a reason. Returns whether it is not the first in
    /// dispute. Call it after [`Self::after`].
    pub(super) fn is_repeated_policy_close(&mut self) -> bool {
        self.policy_closes = self.policy_closes.saturating_add(1);
        self.policy_closes > 1
    }

    /// How many attempts in a row have failed.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ceilings(backoff: &mut Backoff, life: Duration, n: usize) -> Vec<u64> {
        (0..n).map(|_| backoff.after(life, 1.0).as_millis() as u64).collect()
    }

    #[test]
    fn waits_double_up_to_the_cap() {
        let mut backoff = Backoff::default();
        let expected = [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000];
        assert_eq!(backoff.failures(), 0);
        assert_eq!(ceilings(&mut backoff, Duration::ZERO, 9), expected);
        assert_eq!(backoff.failures(), 9);
        assert_eq!(ceilings(&mut backoff, Duration::ZERO, 100)[99], 30_000);
    }

    #[test]
    fn only_a_useful_life_resets() {
        let mut backoff = Backoff::default();
        ceilings(&mut backoff, Duration::ZERO, 4);
        assert_eq!(ceilings(&mut backoff, Duration::from_millis(9_999), 1), [4_000]);
        assert_eq!(ceilings(&mut backoff, USEFUL_LIFE, 1), [250]);
    }

    #[test]
    fn chance_spreads_over_the_whole_wait() {
        let mut backoff = Backoff { failures: 3, ..Backoff::default() };
        assert_eq!(backoff.after(Duration::ZERO, 0.0), Duration::ZERO);
        assert_eq!(backoff.after(Duration::ZERO, 0.5), Duration::from_secs(2));
    }

    #[test]
    fn the_second_policy_close_counts_unless_a_long_life_lies_between() {
        let mut backoff = Backoff::default();
        assert!(!backoff.is_repeated_policy_close());
        backoff.after(Duration::from_secs(599), 0.0);
        assert!(backoff.is_repeated_policy_close());
        backoff.after(UNDISPUTED_LIFE, 0.0);
        assert!(!backoff.is_repeated_policy_close());
    }

    #[test]
    fn a_slot_in_dispute_is_left_alone_for_longer_each_time() {
        let mut backoff = Backoff::default();
        let mut after = |life: u64, chance| {
            backoff.after(Duration::from_secs(life), chance);
            backoff.after_eviction(chance).as_secs()
        };
        let waits: Vec<u64> = (0..5).map(|_| after(0, 0.0)).collect();
        assert_eq!(waits, [60, 120, 240, 300, 300]);
        assert_eq!(after(599, 1.0), 450, "the other waits as long as we do, and then comes back");
        assert_eq!((after(600, 0.0), after(0, 0.5)), (60, 150));
        assert_eq!((0..100).map(|_| after(0, 0.0)).max(), Some(300));
        backoff.after(UNDISPUTED_LIFE, 0.0);
        backoff.after(Duration::ZERO, 0.0);
        assert_eq!(backoff.after_eviction(0.0), EVICTED, "whatever ended the long life");
    }
}
