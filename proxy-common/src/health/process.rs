//! What this process uses, for `/metrics`: memory, CPU time, open files and tasks.

use std::{fmt, fs, time::SystemTime};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::counter::ConstCounter,
    registry::Unit,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Handle, RuntimeMetrics};

use crate::metrics::encode_gauge;

/// Start time, memory, CPU time and open files, under the names that Prometheus' own exporters use,
/// and the number of tasks.
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
        let help = "Start of the process since 1970";
        encode_gauge(encoder, "process_start_time", help, seconds, start)?;
        let help = "Asynchronous tasks that have not ended";
        encode_gauge(encoder, "process_tasks", help, None, tasks)?;
        if let Some(memory) = memory_stats::memory_stats() {
            let (bytes, resident) = (Some(&Unit::Bytes), memory.physical_mem as i64);
            encode_gauge(encoder, "process_resident_memory", "Resident memory", bytes, resident)?;
        }
        let cpu = ConstCounter::new(cpu_seconds());
        let help = "CPU time of all threads";
        cpu.encode(encoder.encode_descriptor("process_cpu", help, seconds, cpu.metric_type())?)?;
        if let Some(open) = open_files() {
            encode_gauge(encoder, "process_open_fds", "Open file descriptors", None, open as i64)?;
        }
        if let Ok((limit, _)) = rlimit::getrlimit(rlimit::Resource::NOFILE) {
            let help = "Most file descriptors that may be open";
            encode_gauge(encoder, "process_max_fds", help, None, limit as f64)?;
        }
        Ok(())
    }
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// How many files are open. `None` on a system without `/proc`.
fn open_files() -> Option<u64> {
    let directory = "/proc/self/fd";
    // Since Linux 6.2 it is the size of the directory. To list thousands would take long.
    match fs::metadata(directory).ok()?.len() {
        // One of them is the directory itself.
        0 => Some((fs::read_dir(directory).ok()?.count() as u64).saturating_sub(1)),
        open => Some(open),
    }
}
