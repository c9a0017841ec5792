//! The firehose's work of every second, and the problems that `/health` shows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::SystemTime,
};

use proxy_common::{link::LinkMetrics, metrics::Level, program::wiring::Upkeep};
use tokio::time::Instant;

use crate::{
    silence::monitor::{SilenceMonitor, UpstreamSnapshot},
    subscriber::Shared,
};

/// How many frames a second the publisher counts again with a JSON parser, as evidence for the
/// ledger. A frame of 50 events takes about 20 us.
const RECOUNTS: u32 = 32;

/// Does the firehose's work of every second, and reports its problems.
#[derive(Debug)]
pub struct FirehoseUpkeep {
    pub(crate) shared: Shared,
    pub(crate) upstream: Arc<LinkMetrics>,
    pub(crate) silence: SilenceMonitor,
    pub(crate) unread: Level,
    /// How many frames the publisher may still recount in this second.
    pub(crate) recounts: Arc<AtomicU32>,
}

impl Upkeep for FirehoseUpkeep {
    fn problems(&self) -> Vec<String> {
        self.silence.problems()
    }

    fn unread(&self) -> Option<&Level> {
        Some(&self.unread)
    }

    fn tick(&self) {
        let Shared { demand, entitlements, .. } = &self.shared;
        demand.expire(Instant::now());
        let wanted = demand.wanted();
        entitlements.retain(&wanted);
        let snapshot = UpstreamSnapshot {
            up: self.upstream.up.get() == 1,
            wanted: &wanted.channels,
            refused: &entitlements.refused(),
            frames: self.upstream.frames.get(),
        };
        self.silence.tick(Instant::now().into_std(), SystemTime::now(), &snapshot);
        self.recounts.store(RECOUNTS, Ordering::Relaxed);
    }
}
