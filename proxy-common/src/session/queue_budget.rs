//! Bounds the bytes queued for all sessions together. Beyond the bound, the sessions with the
//! longest queues are evicted first.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Unit};
use slab::Slab;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{metrics::SessionMetrics, outbound::Outbound, slow_consumer::sessions_to_evict};
use crate::metrics::encode_gauge;

/// How often the total is checked. Data routed in between may exceed the budget.
const INTERVAL: Duration = Duration::from_millis(100);

/// All sessions of a tier, and the bytes that they may queue together.
#[derive(Debug)]
pub struct QueueBudget {
    bytes: usize,
    /// Of each market.
    metrics: Vec<Arc<SessionMetrics>>,
    /// Locked when a session begins or ends, and when the total exceeds the budget.
    sessions: Mutex<Slab<Weak<Outbound>>>,
}

/// A session's entry. Dropping it removes the session from the budget.
#[derive(Debug)]
pub struct Entry<'a> {
    budget: &'a QueueBudget,
    key: usize,
}

impl QueueBudget {
    /// A budget of this many bytes, as counted by the gauges of queued bytes.
    pub fn new(bytes: usize, metrics: Vec<Arc<SessionMetrics>>) -> Self {
        Self { bytes, metrics, sessions: Mutex::default() }
    }

    /// Includes a session until its entry is dropped.
    pub fn enter(&self, outbound: &Arc<Outbound>) -> Entry<'_> {
        Entry { budget: self, key: self.sessions().insert(Arc::downgrade(outbound)) }
    }

    /// Evicts the sessions with the longest queues if all together exceed the budget.
    fn enforce(&self) {
        let queued: i64 = self.metrics.iter().map(|metrics| metrics.queue_bytes.get()).sum();
        let queued = usize::try_from(queued).unwrap_or(0);
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

    /// The most bytes that any session has queued, and how long ago the oldest event was read from
    /// upstream that any session has yet to get.
    fn slowest(&self) -> (usize, Duration) {
        let sessions = self.sessions();
        let backlogs =
            sessions.iter().filter_map(|(_, one)| one.upgrade()).map(|one| one.backlog());
        let (bytes, oldest) = backlogs.fold((0, None), |(most, oldest), (bytes, read_at)| {
            let read_at: Option<Instant> = read_at;
            (bytes.max(most), oldest.into_iter().chain(read_at).min())
        });
        (bytes, oldest.map_or(Duration::ZERO, |read_at| read_at.elapsed()))
    }

    fn sessions(&self) -> MutexGuard<'_, Slab<Weak<Outbound>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The budget, and how far it is used by the slowest sessions, for `/metrics`.
#[derive(Debug)]
pub struct QueueMetrics(pub Arc<QueueBudget>);

impl Collector for QueueMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let encoder = &mut encoder;
        let (bytes, lag) = self.0.slowest();
        let help = "Most bytes that all sessions together may queue";
        encode_gauge(encoder, "queue_limit", help, Some(&Unit::Bytes), self.0.bytes as i64)?;
        let help = "Most bytes queued for any session";
        encode_gauge(encoder, "slowest_session_queue", help, Some(&Unit::Bytes), bytes as i64)?;
        let help = "Age of the oldest event that any session has yet to get";
        encode_gauge(encoder, "slowest_session_lag", help, Some(&Unit::Seconds), lag.as_secs_f64())
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.budget.sessions().remove(self.key);
    }
}

/// Enforces the budget until `stop`. After that, the time to drain bounds the queues.
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
