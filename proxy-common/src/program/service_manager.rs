//! Reports to the service manager (systemd): ready, reloading, stopping, a line of status, and the
//! watchdog. Without a service manager, nothing is sent.

use std::{
    env,
    io::Result,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sd_notify::{NotifyState, notify};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};
use tracing::debug;

use crate::health::{HealthDocument, HealthStatus};

/// The beats of each loop within the time of the watchdog.
const BEATS: u32 = 4;
/// The least time between two beats.
const MIN_PERIOD: Duration = Duration::from_millis(1);
/// How often the status is looked at.
const STATUS_PERIOD: Duration = Duration::from_secs(1);
/// How long the end of the program may take after its last session.
const END_TIME: Duration = Duration::from_secs(5);

/// The ports are bound: clients that connect from now on are served. Also the end of a reload.
pub(super) fn ready() {
    send(&[NotifyState::Ready]);
}

/// The program has begun to read files again.
pub(super) fn reloading() {
    // The manager compares the time with that of its own request.
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        send(&[NotifyState::Reloading, now]);
    }
}

/// The program closes its sessions, which may take this long. The manager then waits as long, also
/// if its own limit is shorter.
pub(super) fn stopping(limit: Duration) {
    let limit = u32::try_from((limit + END_TIME).as_micros()).unwrap_or(u32::MAX);
    let status = NotifyState::Status("stopping: closing the sessions");
    send(&[NotifyState::Stopping, status, NotifyState::ExtendTimeoutUsec(limit)]);
}

/// Shows the status that `health` returns, whenever it has changed. Never ends.
pub(super) async fn show_status(health: impl Fn() -> HealthDocument) {
    if env::var_os("NOTIFY_SOCKET").is_none() {
        return std::future::pending().await;
    }
    let mut shown = String::new();
    loop {
        let status = status_line(&health());
        if status != shown {
            send(&[NotifyState::Status(&status)]);
            shown = status;
        }
        sleep(STATUS_PERIOD).await;
    }
}

/// The condition and the first problem. It is one line, because the next line would be another
/// message to the manager.
fn status_line(health: &HealthDocument) -> String {
    let status = match health.status() {
        HealthStatus::Ok => "ok",
        HealthStatus::Degraded => "degraded",
        HealthStatus::Standby => "standby",
        HealthStatus::Down => "down",
    };
    let line = match health.problems() {
        [] => status.to_owned(),
        [problem] => format!("{status}: {problem}"),
        [problem, others @ ..] => format!("{status}: {problem} (and {} more)", others.len()),
    };
    line.replace(char::is_control, " ")
}

fn send(states: &[NotifyState<'_>]) {
    report(notify(states));
}

fn report(sent: Result<()>) {
    if let Err(error) = sent {
        debug!(%error, "failed to notify the service manager");
    }
}

/// The heartbeat of one loop that moves data. The watchdog is fed by the loops themselves, and only
/// once all of them have beaten: one loop that hangs lets the manager restart the program.
#[derive(Debug, Default)]
pub struct Heartbeat(Option<Beat>);

#[derive(Debug)]
struct Beat {
    /// Whether each loop has beaten since the watchdog was fed.
    beaten: Arc<[AtomicBool]>,
    own: usize,
    due: Interval,
}

impl Heartbeat {
    /// A heartbeat for each of these loops. Without a watchdog of the service manager they are off.
    pub(super) fn of(loops: usize) -> Vec<Self> {
        let Some(limit) = sd_notify::watchdog_enabled() else {
            return (0..loops).map(|_| Self::default()).collect();
        };
        let beaten: Arc<[AtomicBool]> = (0..loops).map(|_| AtomicBool::new(false)).collect();
        let heartbeat = |own| {
            let mut due = interval((limit / BEATS).max(MIN_PERIOD));
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            Self(Some(Beat { beaten: Arc::clone(&beaten), own, due }))
        };
        (0..loops).map(heartbeat).collect()
    }

    /// Whether the loop has to beat at all.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Waits until the next beat is due, and beats. Never ends if it is off. Cancel-safe. The loop
    /// awaits it beside its data.
    pub async fn beat(&mut self) {
        let Some(Beat { beaten, own, due }) = &mut self.0 else {
            return std::future::pending().await;
        };
        due.tick().await;
        if feeds(beaten, *own) {
            send(&[NotifyState::Watchdog]);
        }
    }
}

/// Records the beat of a loop. Whether all loops have beaten since this was last so.
fn feeds(beaten: &[AtomicBool], own: usize) -> bool {
    beaten[own].store(true, Ordering::Relaxed);
    let all = beaten.iter().all(|beaten| beaten.load(Ordering::Relaxed));
    if all {
        beaten.iter().for_each(|beaten| beaten.store(false, Ordering::Relaxed));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_fed_once_all_loops_have_beaten() {
        let beaten = [const { AtomicBool::new(false) }; 3];
        let fed = |own| feeds(&beaten, own);
        assert!(![0, 1, 0, 1, 1].map(fed).contains(&true), "the third hangs");
        assert_eq!([2, 2, 0, 1, 1].map(fed), [true, false, false, true, false]);
        let one = [const { AtomicBool::new(false) }];
        assert!(feeds(&one, 0) && feeds(&one, 0));
    }

    #[tokio::test]
    async fn without_a_watchdog_no_beat_is_ever_due() {
        let mut heartbeat = Heartbeat::default();
        assert!(!heartbeat.is_on());
        let beat = tokio::time::timeout(Duration::from_millis(20), heartbeat.beat());
        assert!(beat.await.is_err());
    }
}
