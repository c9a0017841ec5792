//! Counters of routing.

use prometheus_client::registry::Registry;
use proxy_common::{
    health::IntakeMetrics,
    metrics::{Count, register},
};

/// Counters of routing.
#[derive(Debug, Default, Clone)]
pub struct RouterMetrics {
    /// The counts of events in frames.
    pub intake: IntakeMetrics,
    /// Damaged frames, and objects without a type.
    pub malformed: Count,
}

impl RouterMetrics {
    /// Registers what `intake` does not hold, under the registry's prefix.
    pub fn register(intake: IntakeMetrics, registry: &mut Registry) -> Self {
        let help = "Frames that stopped being an array of events, and objects that were none";
        Self { intake, malformed: register(registry, "malformed", help) }
    }
}
