//! Counters and gauges that follow Prometheus' conventions, and the set that they belong to.
//!
//! Labels come from enums and from the operator's settings, so no peer can add labels.

mod delays;

pub use self::delays::{BucketCounts, Delays, quantile};

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    sync::atomic::{AtomicI64, AtomicU64},
};

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeGaugeValue, EncodeLabel, EncodeLabelSet, EncodeMetric,
        LabelSetEncoder, text,
    },
    metrics::{
        TypedMetric,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::{Metric, Registry, Unit},
};

use crate::protocol::{Kind, Market};

/// A counter that starts at zero with the program.
pub type Count = Counter<u64, AtomicU64>;
/// A gauge of whole numbers.
pub type Level = Gauge<i64, AtomicI64>;
/// A gauge of fractions, or of moments as seconds since 1970.
pub type Value = Gauge<f64, AtomicU64>;

/// A counter for each value of the label `reason`.
#[derive(Debug, Clone, Default)]
pub struct CountByReason {
    counts: Family<Labels, Count>,
    market: Option<Market>,
}

impl CountByReason {
    /// The counter for this reason, which must come from an enum.
    pub fn of(&self, reason: &'static str) -> Count {
        let named = Some(("reason", reason));
        let labels = Labels { market: self.market, named, ..Labels::default() };
        self.counts.get_or_create(&labels).clone()
    }
}

/// Adds to a counter of cases that may be many. Returns whether to log them: of all cases, the
/// first and each that follows a thousand others.
pub fn count_and_sample(count: &Count, cases: u64) -> bool {
    let before = count.inc_by(cases);
    before.next_multiple_of(1_000) < before + cases
}

/// A metric for each value of the label `type`. It shows a type once that was asked for.
#[derive(Debug, Clone, Default)]
pub struct ByType<M> {
    metrics: Family<Labels, M>,
    market: Option<Market>,
}

impl<M: Clone + Default> ByType<M> {
    /// The metric of this type of events. The number of types must be small.
    pub fn of(&self, kind: Kind) -> M {
        self.with(TypeLabel::Kind(kind))
    }

    /// The metric of all types that have none of their own.
    pub fn of_others(&self) -> M {
        self.with(TypeLabel::Others)
    }

    fn with(&self, kind: TypeLabel) -> M {
        let labels = Labels { market: self.market, kind: Some(kind), ..Labels::default() };
        self.metrics.get_or_create(&labels).clone()
    }
}

/// The value of the label `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum TypeLabel {
    Kind(Kind),
    Others,
}

/// The labels of a metric, as far as they apply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Labels {
    market: Option<Market>,
    kind: Option<TypeLabel>,
    /// Another label and its value.
    named: Option<(&'static str, &'static str)>,
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        if let Some(market) = self.market {
            ("market", market.name()).encode(encoder.encode_label())?;
        }
        match self.kind {
            Some(TypeLabel::Kind(kind)) => {
                ("type", kind.to_string()).encode(encoder.encode_label())?;
            }
            Some(TypeLabel::Others) => ("type", "other").encode(encoder.encode_label())?,
            None => {}
        }
        if let Some(named) = self.named {
            named.encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

/// The metrics of a program.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Of the process, without a prefix.
    process: Registry,
    registry: Registry,
    /// The market that new metrics belong to.
    market: Option<Market>,
    /// The families of metrics that each market has, by name.
    families: HashMap<&'static str, Box<dyn Any + Send + Sync>>,
}

impl Metrics {
    /// Metrics whose names begin with this word.
    pub fn with_prefix(prefix: &'static str) -> Self {
        Self { registry: Registry::with_prefix(prefix), ..Self::default() }
    }

    /// Whatever is registered from now on belongs to this market, and has it as the label `market`.
    pub fn in_market(&mut self, market: Option<Market>) {
        self.market = market;
    }

    /// Registers a metric under the prefix.
    pub fn register<M>(&mut self, name: &'static str, help: &'static str) -> M
    where
        M: EncodeMetric + TypedMetric + Metric + Clone + Default,
    {
        self.register_with_unit(name, help, None)
    }

    /// Registers a metric that counts bytes.
    pub fn register_bytes<M>(&mut self, name: &'static str, help: &'static str) -> M
    where
        M: EncodeMetric + TypedMetric + Metric + Clone + Default,
    {
        self.register_with_unit(name, help, Some(Unit::Bytes))
    }

    /// Registers a metric that measures seconds.
    pub fn register_seconds<M>(&mut self, name: &'static str, help: &'static str) -> M
    where
        M: EncodeMetric + TypedMetric + Metric + Clone + Default,
    {
        self.register_with_unit(name, help, Some(Unit::Seconds))
    }

    /// Registers a metric that has this label and value. All metrics of a name have the same label.
    pub fn register_with_label<M>(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: (&'static str, &'static str),
    ) -> M
    where
        M: EncodeMetric + TypedMetric + Metric + Clone + Default,
    {
        let labels = Labels { market: self.market, named: Some(label), ..Labels::default() };
        let family: Family<Labels, M> = self.family(name, help, None);
        family.get_or_create(&labels).clone()
    }

    fn register_with_unit<M>(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
    ) -> M
    where
        M: EncodeMetric + TypedMetric + Metric + Clone + Default,
    {
        let labels = Labels { market: self.market, ..Labels::default() };
        if self.market.is_some() {
            let family: Family<Labels, M> = self.family(name, help, unit);
            return family.get_or_create(&labels).clone();
        }
        let metric = M::default();
        self.add(name, help, unit, metric.clone());
        metric
    }

    /// Registers a counter that shows zero for each of these reasons from the start.
    pub fn register_by_reason(
        &mut self,
        name: &'static str,
        help: &'static str,
        reasons: impl IntoIterator<Item = &'static str>,
    ) -> CountByReason {
        let counts = CountByReason { counts: self.family(name, help, None), market: self.market };
        for reason in reasons {
            drop(counts.of(reason));
        }
        counts
    }

    /// Registers a metric that each of some types of events has.
    pub fn register_by_type<M>(&mut self, name: &'static str, help: &'static str) -> ByType<M>
    where
        M: EncodeMetric + TypedMetric + Metric + Clone + Default,
    {
        ByType { metrics: self.family(name, help, None), market: self.market }
    }

    /// Registers a number of seconds that each of some types of events has.
    pub fn register_seconds_by_type<M>(
        &mut self,
        name: &'static str,
        help: &'static str,
    ) -> ByType<M>
    where
        M: EncodeMetric + TypedMetric + Metric + Clone + Default,
    {
        ByType { metrics: self.family(name, help, Some(Unit::Seconds)), market: self.market }
    }

    /// Registers a collector of the process, without the prefix.
    pub fn register_of_process(&mut self, collector: impl Collector) {
        self.process.register_collector(Box::new(collector));
    }

    /// Registers a collector under the prefix.
    pub fn register_collector(&mut self, collector: impl Collector) {
        self.registry.register_collector(Box::new(collector));
    }

    /// The family of this name, which all markets share.
    fn family<M>(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
    ) -> Family<Labels, M>
    where
        M: EncodeMetric + TypedMetric + Metric + Clone + Default,
    {
        if let Some(family) = self.families.get(name) {
            let family: Option<&Family<Labels, M>> = family.downcast_ref();
            return family.expect("a name has one type").clone();
        }
        let family = Family::default();
        self.add(name, help, unit, family.clone());
        self.families.insert(name, Box::new(family.clone()));
        family
    }

    fn add(&mut self, name: &str, help: &str, unit: Option<Unit>, metric: impl Metric) {
        match unit {
            Some(unit) => self.registry.register_with_unit(name, help, unit, metric),
            None => self.registry.register(name, help, metric),
        }
    }

    /// All metrics as text, in the format of OpenMetrics.
    ///
    /// # Errors
    ///
    /// A collector fails.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode_registry(&mut text, &self.process)?;
        text::encode_registry(&mut text, &self.registry)?;
        text::encode_eof(&mut text)?;
        Ok(text)
    }
}

/// Writes a gauge that a collector reads at this moment.
pub fn encode_gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: impl EncodeGaugeValue + Copy,
) -> Result<(), fmt::Error> {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_market_has_its_own_line_of_one_family() {
        let mut metrics = Metrics::with_prefix("tier");
        let total: Count = metrics.register("frames", "Frames");
        total.inc();
        for (market, count) in [(Market::Stocks, 2), (Market::Crypto, 3)] {
            metrics.in_market(Some(market));
            metrics.register::<Count>("events", "Events").inc_by(count);
            metrics.register_by_reason("lost", "Lost", ["a", "b"]).of("b").inc_by(count);
        }
        let text = metrics.encode().unwrap();
        for line in [
            "tier_frames_total 1",
            r#"tier_events_total{market="stocks"} 2"#,
            r#"tier_events_total{market="crypto"} 3"#,
            r#"tier_lost_total{market="stocks",reason="a"} 0"#,
            r#"tier_lost_total{market="crypto",reason="b"} 3"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert_eq!(text.matches("# TYPE tier_events ").count(), 1, "{text}");
    }

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
