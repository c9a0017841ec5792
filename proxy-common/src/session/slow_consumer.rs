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

/// What the policy says of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Within its limits.
    Keep,
    /// More bytes queued than allowed.
    TooMuch,
    /// The oldest queued data is older than allowed.
    TooOld,
}

impl SlowLimits {
    /// Judges a session whose queue would hold `queued` bytes, the oldest waiting since `age`.
    #[inline]
    pub fn judge(&self, queued: usize, age: Duration) -> Verdict {
        if queued > self.queue_bytes {
            Verdict::TooMuch
        } else if age >= self.max_lag {
            Verdict::TooOld
        } else {
            Verdict::Keep
        }
    }
}

/// Which sessions to end, given the bytes that each holds, so that all together hold no more than `budget`: as few as can be,
/// those that hold the most. Of equals, those that stand first.
pub fn worst(held: &[usize], budget: usize) -> Vec<usize> {
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
        assert!(worst(&[], 0).is_empty());
        assert!(worst(&[10, 50, 40], 100).is_empty());
        assert_eq!(worst(&[10, 50, 41], 100), [1]);
        assert_eq!(worst(&[10, 50, 41], 51), [1]);
        assert_eq!(worst(&[10, 50, 41], 50), [1, 2]);
        assert_eq!(worst(&[7, 7, 7, 7], 15), [0, 1]);
        assert_eq!(worst(&[0, 3, 0], 0), [1]);
    }

    #[test]
    fn a_session_is_given_up_at_its_limits() {
        let limits = SlowLimits { queue_bytes: 100, max_lag: Duration::from_secs(5) };
        let judge = |bytes, millis| limits.judge(bytes, Duration::from_millis(millis));
        assert_eq!(judge(0, 0), Verdict::Keep);
        assert_eq!(judge(100, 4_999), Verdict::Keep);
        assert_eq!(judge(101, 0), Verdict::TooMuch);
        assert_eq!(judge(1, 5_000), Verdict::TooOld);
        assert_eq!(judge(101, 5_001), Verdict::TooMuch);
    }
}
