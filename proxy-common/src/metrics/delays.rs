//! A histogram of delays that any thread can add to without a lock, and that can be read.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// The upper bounds of the buckets, in microseconds. One bucket more holds what is longer.
const BOUNDS: [u64; 18] = [
    25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// How many delays each bucket holds.
pub type BucketCounts = [u64; BOUNDS.len() + 1];

/// A histogram of delays, from 25 us to 10 s. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Delays(Arc<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BOUNDS.len() + 1],
    total_nanos: AtomicU64,
}

impl Delays {
    /// Adds a delay.
    pub fn observe(&self, delay: Duration) {
        let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| bound * 1_000 < nanos);
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.total_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// How many delays each bucket holds, since the start of the program.
    pub fn counts(&self) -> BucketCounts {
        std::array::from_fn(|bucket| self.0.counts[bucket].load(Ordering::Relaxed))
    }
}

/// Estimates the delay that this part of all delays does not exceed, from 0 to 1. Within a bucket,
/// delays count as evenly spread, as Prometheus assumes too. `None` without delays.
pub fn quantile(counts: &BucketCounts, part: f64) -> Option<Duration> {
    let total: u64 = counts.iter().sum();
    let rank = part * total as f64;
    let mut below = 0;
    for (bucket, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        if (below + count) as f64 >= rank {
            let lower = bucket.checked_sub(1).map_or(0, |bucket| BOUNDS[bucket]) as f64;
            let upper = BOUNDS.get(bucket).map_or(lower, |bound| *bound as f64);
            let within = (rank - below as f64) / count as f64;
            return Some(Duration::from_secs_f64((lower + (upper - lower) * within) / 1e6));
        }
        below += count;
    }
    None
}

impl TypedMetric for Delays {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Delays {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let counts = self.counts();
        let bounds = BOUNDS.iter().map(|micros| *micros as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let total = self.0.total_nanos.load(Ordering::Relaxed) as f64 / 1e9;
        encoder.encode_histogram::<NoLabelSet>(total, counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn quantiles_are_estimated_within_their_bucket() {
        let mut counts = BucketCounts::default();
        assert_eq!(quantile(&counts, 0.5), None);
        (counts[0], counts[2], counts[18]) = (50, 40, 10);
        for (part, micros) in [(0.25, 12.5), (0.5, 25.0), (0.7, 75.0), (0.9, 100.0), (0.99, 1e7)] {
            let found = quantile(&counts, part).unwrap().as_secs_f64() * 1e6;
            assert!((found - micros).abs() < 0.01, "{part}: {found}");
        }
    }

    #[test]
    fn a_delay_counts_in_the_first_bucket_that_is_not_below_it() {
        let mut metrics = Metrics::with_prefix("tier");
        let delays: Delays = metrics.register_seconds("delay", "Delay");
        for micros in [0, 25, 26, 900, 10_000_000, 10_000_001] {
            delays.observe(Duration::from_micros(micros));
        }
        let text = metrics.encode().unwrap();
        for line in [
            "# TYPE tier_delay_seconds histogram",
            r#"tier_delay_seconds_bucket{le="0.000025"} 2"#,
            r#"tier_delay_seconds_bucket{le="0.00005"} 3"#,
            r#"tier_delay_seconds_bucket{le="0.0005"} 3"#,
            r#"tier_delay_seconds_bucket{le="0.001"} 4"#,
            r#"tier_delay_seconds_bucket{le="10.0"} 5"#,
            r#"tier_delay_seconds_bucket{le="+Inf"} 6"#,
            "tier_delay_seconds_count 6",
            "tier_delay_seconds_sum 20.000952",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
