//! Counters of a link.

use std::sync::Arc;

use super::error::LinkError;
use crate::metrics::{Count, CountByReason, Level, Metrics};

/// Counters of a link to an upstream.
#[derive(Debug, Default)]
pub struct LinkMetrics {
    /// Connections that are logged in: 0 or 1 of one link, more if several links share these
    /// counters.
    pub up: Level,
    /// Successful logins.
    pub connects: Count,
    /// Connections lost and attempts failed, by reason.
    pub disconnects: CountByReason,
    /// Data frames received.
    pub frames: Count,
    /// Objects in the arrays received, without statuses: the ledger's first count. Those dropped as
    /// malformed count too.
    pub events: Count,
    /// Bytes of data frames received.
    pub bytes: Count,
    /// Frames that were not text, or neither a JSON array nor an object.
    pub malformed: Count,
    /// Elements of arrays that were dropped: no objects, or not JSON.
    pub elements_dropped: Count,
}

impl LinkMetrics {
    /// Registers all of them.
    pub fn register(metrics: &mut Metrics) -> Arc<Self> {
        let disconnects = "Upstream connections lost and attempts failed";
        let malformed = "Frames received that hold no events";
        let dropped = "Elements of arrays that are no objects, or not JSON";
        let labels = LinkError::LABELS;
        Arc::new(Self {
            up: metrics.register("upstream_up", "Connections that are logged in upstream"),
            connects: metrics.register("upstream_connects", "Logins upstream"),
            disconnects: metrics.register_by_reason("upstream_disconnects", disconnects, labels),
            frames: metrics.register("frames_in", "Data frames received"),
            events: metrics.register("events_in", "Events received"),
            bytes: metrics.register_bytes("in", "Bytes of data frames received"),
            malformed: metrics.register("frames_malformed", malformed),
            elements_dropped: metrics.register("elements_dropped", dropped),
        })
    }
}
