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

/// A gauge for each value of the label `type`.
pub type LevelByType = Family<EventType, Level>;

/// The label `type`: a type of events.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EventType {
    r#type: String,
}

impl EventType {
    /// A label with this value. The number of values must be small.
    pub fn new(kind: &impl ToString) -> Self {
        Self { r#type: kind.to_string() }
    }
}

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

/// Adds to a counter of cases that may be many. Returns whether to log them: of all cases, the first
/// and each that follows a thousand others.
pub fn count_and_sample(count: &Count, cases: u64) -> bool {
    let before = count.inc_by(cases);
    before.next_multiple_of(1_000) < before + cases
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_case_and_each_after_a_thousand_is_logged() {
        let count = Count::default();
        let logged: Vec<u64> = (0..2_500).filter(|_| count_and_sample(&count, 1)).collect();
        assert_eq!(logged, [0, 1_000, 2_000]);
        assert_eq!(
            [0, 500, 1, 0, 5_000].map(|cases| count_and_sample(&count, cases)),
            [false, false, true, false, true]
        );
        assert_eq!(count.get(), 8_001);
    }
}
