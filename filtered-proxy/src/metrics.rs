//! What is counted about routing.

use prometheus_client::registry::Registry;
use proxy_common::metrics::{Count, IntakeMetrics};

/// What is counted about routing.
#[derive(Debug, Default, Clone)]
pub struct RouterMetrics {
    /// What became of the events of frames.
    pub intake: IntakeMetrics,
    /// Frames that stopped being an array of objects, and objects without a type.
    pub malformed: Count,
}

impl RouterMetrics {
    /// Registers everything under the registry's prefix.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics =
            Self { intake: IntakeMetrics::register(registry), malformed: Count::default() };
        registry.register(
            "malformed",
            "Frames that stopped being an array of events, and objects that were none",
            metrics.malformed.clone(),
        );
        metrics
    }
}
