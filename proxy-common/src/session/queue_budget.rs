//! Bounds the bytes queued for all sessions together. Beyond the bound, the sessions with the
//! longest queues are evicted first.

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Unit};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    close::CloseReason, metrics::SessionMetrics, open_sessions::OpenSessions, outbound::Outbound,
    slow_consumer::sessions_to_evict,
};
use crate::metrics::encode_gauge;

/// How often the total is checked. Data routed in between may exceed the budget.
const INTERVAL: Duration = Duration::from_millis(100);

/// All sessions of a tier, and the bytes that they may queue together.
#[derive(Debug)]
pub struct QueueBudget {
    bytes: usize,
    /// Of each market.
    metrics: Vec<Arc<SessionMetrics>>,
    open: Arc<OpenSessions>,
}

impl QueueBudget {
    /// A budget of this many bytes, as counted by the gauges of queued bytes, for these sessions.
    pub fn new(bytes: usize, metrics: Vec<Arc<SessionMetrics>>, open: Arc<OpenSessions>) -> Self {
        Self { bytes, metrics, open }
    }

    /// Evicts the sessions with the longest queues if all together exceed the budget.
    fn enforce(&self) {
        let queued: i64 = self.metrics.iter().map(|metrics| metrics.queue_bytes.get()).sum();
        let queued = usize::try_from(queued).unwrap_or(0);
        if queued <= self.bytes {
            return;
        }
        let sessions = self.outbounds();
        let held: Vec<usize> = sessions.iter().map(|outbound| outbound.queued_bytes()).collect();
        let evicted = sessions_to_evict(&held, self.bytes);
        let evict = |&i: &usize| sessions[i].evict(CloseReason::SlowConsumer);
        let evicted = evicted.into_iter().filter(evict).count();
        if evicted > 0 {
            warn!(queued, budget = self.bytes, evicted, "all queues together too long");
        }
    }

    /// The most bytes that any session has queued, and how long ago the oldest event was read from
    /// upstream that any session has yet to get.
    fn slowest(&self) -> (usize, Duration) {
        let backlogs = self.outbounds();
        let backlogs = backlogs.iter().map(|outbound| outbound.backlog());
        backlogs.fold((0, Duration::ZERO), |(bytes, lag), one| {
            (bytes.max(one.bytes), lag.max(one.lag()))
        })
    }

    fn outbounds(&self) -> Vec<Arc<Outbound>> {
        self.open.list().iter().filter_map(|session| session.outbound()).collect()
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
