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
    /// Waits for the turn of an attempt. The first one, and one after a pause, does not wait.
    pub async fn turn(&self) {
        sleep_until(self.take(Instant::now())).await;
    }

    fn take(&self, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = next.map_or(now, |next| next.max(now));
        *next = Some(turn + SPACING);
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_at_once_get_turns_one_after_another() {
        let (spacing, now) = (Spacing::default(), Instant::now());
        let turns = [(); 3].map(|()| spacing.take(now) - now);
        assert_eq!(turns, [Duration::ZERO, SPACING, 2 * SPACING]);
        let later = now + 10 * SPACING;
        assert_eq!(spacing.take(later), later, "no turn is due");
        assert_eq!(spacing.take(later + SPACING / 2), later + SPACING);
    }
}
