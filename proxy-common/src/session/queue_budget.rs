//! The bound on what waits for all sessions together: past it, those that hold the most pay first.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use slab::Slab;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{metrics::SessionMetrics, outbound::Outbound, slow_consumer::sessions_to_evict};

/// How often the total is looked at. It may be passed by what is routed in this time.
const INTERVAL: Duration = Duration::from_millis(100);

/// All sessions of a tier, and what they may hold together.
#[derive(Debug)]
pub struct QueueBudget {
    bytes: usize,
    metrics: Arc<SessionMetrics>,
    /// Locked when a session comes or goes, and when the total is passed.
    sessions: Mutex<Slab<Weak<Outbound>>>,
}

/// A session's entry. Dropping it takes the session out.
#[derive(Debug)]
pub struct Entry<'a> {
    budget: &'a QueueBudget,
    key: usize,
}

impl QueueBudget {
    /// A budget of this many bytes, as counted by the gauge of queued bytes.
    pub fn new(bytes: usize, metrics: Arc<SessionMetrics>) -> Self {
        Self { bytes, metrics, sessions: Mutex::default() }
    }

    /// Counts a session in until its entry is dropped.
    pub fn enter(&self, outbound: &Arc<Outbound>) -> Entry<'_> {
        Entry { budget: self, key: self.sessions().insert(Arc::downgrade(outbound)) }
    }

    /// Ends the worst sessions if all together hold too much.
    fn enforce(&self) {
        let queued = usize::try_from(self.metrics.queue_bytes.get()).unwrap_or(0);
        if queued <= self.bytes {
            return;
        }
        let sessions: Vec<_> =
            self.sessions().iter().filter_map(|(_, one)| one.upgrade()).collect();
        let held: Vec<usize> = sessions.iter().map(|outbound| outbound.queued_bytes()).collect();
        let evicted = sessions_to_evict(&held, self.bytes);
        let evicted = evicted.into_iter().filter(|&i| sessions[i].evict()).count();
        if evicted > 0 {
            warn!(queued, budget = self.bytes, evicted, "all queues together too long");
        }
    }

    fn sessions(&self) -> MutexGuard<'_, Slab<Weak<Outbound>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.budget.sessions().remove(self.key);
    }
}

/// Keeps to the budget until `stop`; what is queued then is bounded by the time to drain.
pub async fn enforce_until(budget: Arc<QueueBudget>, stop: CancellationToken) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => budget.enforce(),
        }
    }
}
