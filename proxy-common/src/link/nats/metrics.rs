//! Counters of a session over NATS.

use crate::metrics::{Count, Level, Metrics};

/// Counters of a market's reader.
#[derive(Debug, Default)]
pub struct ReaderMetrics {
    /// Messages of the stream that are yet to be read.
    pub lag_messages: Level,
    /// How old the last message read was, if more follow, in milliseconds.
    pub lag_ms: Level,
    /// Consumers made anew within a session.
    pub consumers_renewed: Count,
    /// Messages of an epoch that was over.
    pub old_epoch: Count,
    /// Holes in the stream that held events.
    pub holes: Count,
    /// The events in them, as far as is known.
    pub lost_events: Count,
}

impl ReaderMetrics {
    /// Registers all of them.
    pub fn register(metrics: &mut Metrics) -> Self {
        let lag = "Messages of the NATS stream that are yet to be read";
        let lag_ms = "Age of the last message read if more follow, in milliseconds";
        let old = "Messages of the NATS stream passed over because their epoch was over";
        Self {
            lag_messages: metrics.register("nats_lag_messages", lag),
            lag_ms: metrics.register("nats_lag_milliseconds", lag_ms),
            consumers_renewed: metrics
                .register("nats_consumers_renewed", "NATS consumers made anew"),
            old_epoch: metrics.register("nats_old_epoch_messages", old),
            holes: metrics.register("nats_holes", "Holes in the NATS stream that held events"),
            lost_events: metrics
                .register("nats_lost_events", "Events in holes of the NATS stream, where known"),
        }
    }
}
