//! Counters of a link.

use std::sync::Arc;

use prometheus_client::registry::Registry;

use super::error::LinkError;
use crate::metrics::{Count, CountByReason, Level, register, register_by_reason, register_bytes};

/// Counters of a link to an upstream.
#[derive(Debug, Default)]
pub struct LinkMetrics {
    /// 1 while logged in, else 0.
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
    /// Registers all of them under the registry's prefix.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let disconnects = "Upstream connections lost and attempts failed";
        let malformed = "Frames received that hold no events";
        let dropped = "Elements of arrays that are no objects, or not JSON";
        let labels = LinkError::LABELS;
        Arc::new(Self {
            up: register(registry, "upstream_up", "1 while logged in upstream"),
            connects: register(registry, "upstream_connects", "Logins upstream"),
            disconnects: register_by_reason(registry, "upstream_disconnects", disconnects, labels),
            frames: register(registry, "frames_in", "Data frames received"),
            events: register(registry, "events_in", "Events received"),
            bytes: register_bytes(registry, "in", "Bytes of data frames received"),
            malformed: register(registry, "frames_malformed", malformed),
            elements_dropped: register(registry, "elements_dropped", dropped),
        })
    }
}
