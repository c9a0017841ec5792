//! The slow-consumer policy: one pure function.

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

#[cfg(test)]
mod tests {
    use super::*;

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
