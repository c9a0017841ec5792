//! The slow-consumer policy: what one session may hold, and who pays when all together hold too much. Pure.

use std::time::Duration;

/// How far a session may fall behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowLimits {
    /// Most bytes queued.
    pub queue_bytes: usize,
    /// Oldest age of what is queued.
    pub max_lag: Duration,
}

impl SlowLimits {
    /// Whether a session may go on whose queue would hold `queued` bytes, the oldest of them for
    /// `age`.
    #[inline]
    pub fn within_limits(&self, queued: usize, age: Duration) -> bool {
        queued <= self.queue_bytes && age < self.max_lag
    }
}

/// Which sessions to end, given the bytes that each holds, so that all together hold no more than `budget`: as few as can be,
/// those that hold the most. Of equals, those that stand first.
pub fn sessions_to_evict(held: &[usize], budget: usize) -> Vec<usize> {
    let mut total: usize = held.iter().sum();
    if total <= budget {
        return Vec::new();
    }
    let mut order: Vec<usize> = (0..held.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(held[i]));
    let needed = order.iter().take_while(|&&i| {
        let over = total > budget;
        total -= held[i];
        over
    });
    needed.copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_pay_first_and_no_more_than_needed() {
        assert!(sessions_to_evict(&[], 0).is_empty());
        assert!(sessions_to_evict(&[10, 50, 40], 100).is_empty());
        assert_eq!(sessions_to_evict(&[10, 50, 41], 100), [1]);
        assert_eq!(sessions_to_evict(&[10, 50, 41], 51), [1]);
        assert_eq!(sessions_to_evict(&[10, 50, 41], 50), [1, 2]);
        assert_eq!(sessions_to_evict(&[7, 7, 7, 7], 15), [0, 1]);
        assert_eq!(sessions_to_evict(&[0, 3, 0], 0), [1]);
    }

    #[test]
    fn a_session_is_given_up_at_its_limits() {
        let limits = SlowLimits { queue_bytes: 100, max_lag: Duration::from_secs(5) };
        let within = |bytes, millis| limits.within_limits(bytes, Duration::from_millis(millis));
        assert!(within(0, 0));
        assert!(within(100, 4_999));
        assert!(!within(101, 0));
        assert!(!within(1, 5_000));
        assert!(!within(101, 5_001));
    }
}
