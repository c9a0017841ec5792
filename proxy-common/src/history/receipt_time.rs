//! When a frame was received, by the wall clock.

use std::time::SystemTime;

use tokio::time::Instant;

use crate::protocol::millis;

/// Gives the wall clock's time of frames. Frames that were read at once share one look at the
/// clock.
#[derive(Debug, Default)]
pub struct ReceiptTime {
    last: Option<(Instant, u64)>,
}

impl ReceiptTime {
    /// The time, in milliseconds since 1970, of a frame that was read just now, at `read_at`.
    pub fn of(&mut self, read_at: Instant) -> u64 {
        match self.last {
            Some((known, time)) if known == read_at => time,
            _ => {
                let time = millis(SystemTime::now());
                self.last = Some((read_at, time));
                time
            }
        }
    }
}
