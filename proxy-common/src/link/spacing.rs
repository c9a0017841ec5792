//! Keeps the attempts of several links to one upstream apart.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// The least time between two attempts of different links.
const SPACING: Duration = Duration::from_secs(2);

/// Gives each attempt a time of its own.
///
/// The vendor takes some time to free the place of a connection that ended. A program that
/// connected all its markets at once lost that race (users' reports).
#[derive(Debug, Default)]
pub struct Spacing {
    /// When the next attempt may begin. Locked for a read and a change.
    next: Mutex<Option<Instant>>,
}

impl Spacing {
    /// Waits until an attempt may begin. The first one, and one after a pause, does not wait.
    pub async fn wait(&self) {
        sleep_until(self.reserve(Instant::now())).await;
    }

    fn reserve(&self, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let start = next.map_or(now, |next| next.max(now));
        *next = Some(start + SPACING);
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_at_once_begin_one_after_another() {
        let (spacing, now) = (Spacing::default(), Instant::now());
        let starts = [(); 3].map(|()| spacing.reserve(now) - now);
        assert_eq!(starts, [Duration::ZERO, SPACING, 2 * SPACING]);
        let later = now + 10 * SPACING;
        assert_eq!(spacing.reserve(later), later, "after a pause");
        assert_eq!(spacing.reserve(later + SPACING / 2), later + SPACING);
    }
}
