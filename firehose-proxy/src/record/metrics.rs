//! What a recording counts.

use proxy_common::metrics::{Count, Level, Metrics};

/// The counts of one market.
#[derive(Debug, Clone)]
pub(super) struct RecordMetrics {
    /// 1 while frames are recorded.
    pub(super) active: Level,
    /// Frames written.
    pub(super) frames: Count,
    /// Compressed bytes written.
    pub(super) bytes: Count,
}

impl RecordMetrics {
    pub(super) fn register(metrics: &mut Metrics) -> Self {
        Self {
            active: metrics.register("record_active", "1 while frames are recorded"),
            frames: metrics.register("record_frames", "Frames written to files"),
            bytes: metrics.register_bytes("record", "Compressed bytes written to files"),
        }
    }
}
