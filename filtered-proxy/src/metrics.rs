//! What is counted about routing.

use prometheus_client::registry::Registry;
use proxy_common::metrics::Count;

/// What is counted about routing.
#[derive(Debug, Default, Clone)]
pub struct RouterMetrics {
    /// Events found in frames.
    pub events: Count,
    /// Events that no session wanted.
    pub unwanted: Count,
    /// Frames that stopped being an array of objects, and objects without a type.
    pub malformed: Count,
}

impl RouterMetrics {
    /// Registers everything under the registry's prefix.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("events_routed", "Events found in frames", metrics.events.clone());
        registry.register(
            "events_filtered",
            "Events that no session wanted",
            metrics.unwanted.clone(),
        );
        registry.register(
            "malformed",
            "Frames that stopped being an array of events, and objects that were none",
            metrics.malformed.clone(),
        );
        metrics
    }
}
