//! Memory, start time and tasks of this process, for `/metrics`.

use std::{fmt, time::SystemTime};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric},
    metrics::gauge::ConstGauge,
    registry::Unit,
};
use tokio::runtime::{Handle, RuntimeMetrics};

/// Memory and start time, under the names that Prometheus' own exporters use, and the number of
/// tasks.
#[derive(Debug)]
pub struct ProcessMetrics {
    start: f64,
    runtime: RuntimeMetrics,
}

impl ProcessMetrics {
    /// The metrics of a process that starts now.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    #[expect(clippy::new_without_default, reason = "now is not a default")]
    pub fn new() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { start: since.as_secs_f64(), runtime: Handle::current().metrics() }
    }
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let encoder = &mut encoder;
        let (start, tasks) = (self.start, self.runtime.num_alive_tasks() as i64);
        let seconds = Some(&Unit::Seconds);
        gauge(encoder, "process_start_time", "Start of the process since 1970", seconds, start)?;
        gauge(encoder, "process_tasks", "Asynchronous tasks that have not ended", None, tasks)?;
        if let Some(memory) = memory_stats::memory_stats() {
            let (bytes, resident) = (Some(&Unit::Bytes), memory.physical_mem as i64);
            gauge(encoder, "process_resident_memory", "Resident memory", bytes, resident)?;
        }
        Ok(())
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: impl EncodeGaugeValue + Copy,
) -> Result<(), fmt::Error> {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
}
