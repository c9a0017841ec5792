//! Time as all processes of a run see it: nanoseconds since the load program started.

use std::time::Duration;

use rustix::{
    thread::clock_nanosleep_absolute,
    time::{ClockId, Timespec, clock_gettime},
};

/// The system's monotonic clock, counted from the moment at which the run began.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    epoch_ns: u64,
}

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self { epoch_ns: monotonic_ns() }
    }

    /// The clock of another process, from the value of its [`epoch_ns`](Self::epoch_ns).
    pub fn since(epoch_ns: u64) -> Self {
        Self { epoch_ns }
    }

    /// The moment at which the clock began, to pass to another process.
    pub fn epoch_ns(&self) -> u64 {
        self.epoch_ns
    }

    /// Nanoseconds since the clock began.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        monotonic_ns() - self.epoch_ns
    }

    /// Sleeps until this time.
    pub fn sleep_until(&self, ns: u64) {
        let at = Duration::from_nanos(self.epoch_ns + ns);
        let at = Timespec { tv_sec: at.as_secs() as i64, tv_nsec: at.subsec_nanos().into() };
        // If a signal wakes it early, the caller finds nothing due and sleeps again.
        let _ = clock_nanosleep_absolute(ClockId::Monotonic, &at);
    }
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
