//! Counters and gauges that follow Prometheus' conventions, and functions that register them.
//!
//! Labels come from enums and from the operator's file of keys, so no peer can add labels.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Metric, Registry, Unit},
};

/// A counter that starts at zero with the program.
pub type Count = Counter<u64, AtomicU64>;
/// A gauge of whole numbers.
pub type Level = Gauge<i64, AtomicI64>;
/// A counter for each value of the label `reason`.
pub type CountByReason = Family<Reason, Count>;

/// The label `reason`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    reason: &'static str,
}

impl Reason {
    /// A label with this value, which must come from an enum.
    pub fn new(reason: &'static str) -> Self {
        Self { reason }
    }
}

/// Registers a metric under the registry's prefix.
pub fn register<M: Metric + Clone + Default>(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// Registers a metric that counts bytes.
pub fn register_bytes<M: Metric + Clone + Default>(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
) -> M {
    let metric = M::default();
    registry.register_with_unit(name, help, Unit::Bytes, metric.clone());
    metric
}

/// Registers a counter that shows zero for each of these reasons from the start.
pub fn register_by_reason(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    reasons: impl IntoIterator<Item = &'static str>,
) -> CountByReason {
    let counts: CountByReason = register(registry, name, help);
    for reason in reasons {
        drop(counts.get_or_create(&Reason::new(reason)));
    }
    counts
}
