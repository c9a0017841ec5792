//! The slow-consumer policy: how much one session may queue, and which sessions are evicted when
//! all together queue too much. Pure functions.

use std::time::Duration;

/// How far a session may fall behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowLimits {
    /// Most bytes queued. Default: 16 MiB.
    pub queue_bytes: usize,
    /// Oldest age of what is queued. Default: 5 s.
    pub max_lag: Duration,
}

impl SlowLimits {
    /// Whether a session may continue with `queued` bytes in its queue, the oldest of them for
    /// `age`.
    #[inline]
    pub fn within_limits(&self, queued: usize, age: Duration) -> bool {
        queued <= self.queue_bytes && age < self.max_lag
    }
}

/// Chooses the sessions to evict, by their index in `held`, so that the bytes held by the others
/// fit `budget`. Takes as few as possible, those that hold the most. Of equals, takes the first.
pub(super) fn sessions_to_evict(held: &[usize], budget: usize) -> Vec<usize> {
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
    fn the_largest_are_evicted_first_and_no_more_than_needed() {
        assert!(sessions_to_evict(&[], 0).is_empty());
        assert!(sessions_to_evict(&[10, 50, 40], 100).is_empty());
        assert_eq!(sessions_to_evict(&[10, 50, 41], 100), [1]);
        assert_eq!(sessions_to_evict(&[10, 50, 41], 51), [1]);
        assert_eq!(sessions_to_evict(&[10, 50, 41], 50), [1, 2]);
        assert_eq!(sessions_to_evict(&[7, 7, 7, 7], 15), [0, 1]);
        assert_eq!(sessions_to_evict(&[0, 3, 0], 0), [1]);
    }

    #[test]
    fn a_session_is_evicted_at_its_limits() {
        let limits = SlowLimits { queue_bytes: 100, max_lag: Duration::from_secs(5) };
        let within = |bytes, millis| limits.within_limits(bytes, Duration::from_millis(millis));
        assert!(within(0, 0));
        assert!(within(100, 4_999));
        assert!(!within(101, 0));
        assert!(!within(1, 5_000));
        assert!(!within(101, 5_001));
    }
}
