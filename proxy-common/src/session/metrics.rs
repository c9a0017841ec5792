//! Counters of sessions, and of the events delivered to them.

use std::sync::Arc;

use super::close::CloseReason;
use crate::{
    metrics::{Count, CountByReason, Delays, Level, Metrics},
    named_enum::named_enum,
};

named_enum! {
    /// Why an event did not reach a session.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum LossReason by
    /// The value of the metric label `reason`.
    label {
        /// The session read too slowly and was closed.
        SlowConsumer = "slow_consumer",
        /// The session ended, or unsubscribed from everything, with the event still queued.
        SessionClosed = "session_closed",
        /// The firehose's ring overwrote the event before the session read it.
        RingOverrun = "ring_overrun",
        /// The event alone is longer than a message may be.
        Oversize = "oversize",
        /// The event is no JSON, or has no type.
        Malformed = "malformed",
    }
}

impl LossReason {
    /// Why the queue of a session that ended with `reason` is lost.
    pub const fn of(reason: CloseReason) -> Self {
        let slow = matches!(reason, CloseReason::SlowConsumer);
        if slow { Self::SlowConsumer } else { Self::SessionClosed }
    }
}

/// Counters of sessions.
#[derive(Debug, Default)]
pub struct SessionMetrics {
    /// Sessions now, from the WebSocket handshake to the close.
    pub sessions: Level,
    /// WebSocket handshakes accepted.
    pub opened: Count,
    /// Sessions ended, by reason.
    pub closed: CountByReason,
    /// Subscriptions held by all sessions.
    pub subscriptions: Level,
    /// Commands received.
    pub commands: Count,
    /// Events handed out for sessions: one event for two sessions counts twice.
    pub events_owed: Count,
    /// Events written to sessions' sockets, also counted for each session.
    pub events_delivered: Count,
    /// Bytes written to sessions' sockets.
    pub bytes_out: Count,
    /// Bytes queued for all sessions. Only [`Outbound`](super::outbound::Outbound) writes it.
    pub queue_bytes: Level,
    /// Events queued for all sessions. Only [`Outbound`](super::outbound::Outbound) writes it.
    pub queue_events: Level,
    /// Events that did not reach sessions, by reason.
    pub events_lost: CountByReason,
    /// From the read of a frame to the write of its last byte to a session's socket. Some are
    /// measured: about a thousand a second.
    pub added_delay: Delays,
}

impl SessionMetrics {
    /// Registers all of them .
    pub fn register(metrics: &mut Metrics) -> Arc<Self> {
        let closed = CloseReason::ALL.iter().map(|reason| reason.label());
        let lost = LossReason::ALL.iter().map(|reason| reason.label());
        Arc::new(Self {
            sessions: metrics.register("sessions", "Sessions now"),
            opened: metrics.register("sessions_opened", "Sessions accepted"),
            closed: metrics.register_by_reason("sessions_closed", "Sessions ended", closed),
            subscriptions: metrics.register("subscriptions", "Subscriptions of all sessions"),
            commands: metrics.register("commands", "Commands received"),
            events_owed: metrics.register("events_owed", "Events to deliver, for each session"),
            events_delivered: metrics.register("events_delivered", "Events written to sessions"),
            bytes_out: metrics.register_bytes("out", "Bytes written to sessions"),
            queue_bytes: metrics.register_bytes("queue", "Bytes queued for sessions"),
            queue_events: metrics.register("queue_events", "Events queued for sessions"),
            events_lost: metrics.register_by_reason("events_lost", "Events lost", lost),
            added_delay: metrics.register_seconds("added_delay", "Delay from read to write"),
        })
    }

    /// Counts events and bytes that reached a session's socket.
    #[inline]
    pub fn delivered(&self, events: u32, bytes: usize) {
        if events > 0 {
            self.events_delivered.inc_by(events.into());
        }
        if bytes > 0 {
            self.bytes_out.inc_by(bytes as u64);
        }
    }

    /// Counts events that did not reach a session.
    pub fn lost(&self, reason: LossReason, events: u64) {
        if events > 0 {
            self.events_lost.of(reason.label()).inc_by(events);
        }
    }

    /// Events lost for this reason since the start.
    pub fn total_lost(&self, reason: LossReason) -> u64 {
        self.events_lost.of(reason.label()).get()
    }
}
