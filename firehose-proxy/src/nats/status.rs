//! What is known of the writer: its metrics, its problem for `/health`, and a line in the log with
//! each change.

use std::sync::{Mutex, MutexGuard, PoisonError};

use proxy_common::metrics::{Count, Level, Metrics};
use tracing::{error, info, warn};

/// How the writer of a market gets on.
#[derive(Debug)]
pub(crate) struct WriterStatus {
    /// 1 while NATS takes the feed.
    up: Level,
    pub(super) messages: Count,
    pub(super) bytes: Count,
    pub(super) unacknowledged: Level,
    pub(super) refused: Count,
    fenced: Level,
    pub(super) lag: Level,
    pub(super) lost: Count,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Why NATS does not take the feed.
    reason: Option<String>,
    /// What else is wrong.
    remarks: Vec<String>,
}

impl WriterStatus {
    pub(super) fn register(metrics: &mut Metrics) -> Self {
        Self {
            up: metrics.register("nats_up", "1 while NATS takes the feed"),
            messages: metrics.register("nats_messages", "Messages that NATS has stored"),
            bytes: metrics.register_bytes("nats", "Bytes of messages that NATS has stored"),
            unacknowledged: metrics
                .register("nats_unacknowledged", "Messages sent that NATS has yet to store"),
            refused: metrics.register("nats_refused", "Times that NATS refused a message"),
            fenced: metrics
                .register("nats_fenced", "1 if a later firehose writes, and this one never again"),
            lag: metrics
                .register("nats_lag_frames", "Frames of the history that NATS has yet to store"),
            lost: metrics.register(
                "nats_lost_events",
                "Events that the history dropped before NATS could store them",
            ),
            known: Mutex::default(),
        }
    }

    /// Says once that NATS takes the feed.
    pub(super) fn is_up(&self, epoch: u64) {
        let known = &mut *self.known();
        if self.up.set(1) == 0 || known.reason.is_some() {
            info!(epoch, "NATS takes the feed");
        }
        self.fenced.set(0);
        known.reason = None;
    }

    /// Says once, for each reason, that NATS does not take the feed.
    pub(super) fn is_down(&self, reason: &str) {
        let known = &mut *self.known();
        self.up.set(0);
        if known.reason.as_deref() != Some(reason) {
            warn!(reason, "NATS does not take the feed");
            known.reason = Some(reason.to_owned());
        }
    }

    /// Says that another firehose writes, and this one never again in its epoch.
    pub(super) fn is_fenced(&self, epoch: u64, later: u64) {
        self.up.set(0);
        self.fenced.set(1);
        error!(epoch, later, "another firehose writes to NATS: this one writes no more");
        self.known().reason = Some(
            "another firehose began to write later, and this one writes no more: stop one of \
             them, or set LEASE at both"
                .to_owned(),
        );
    }

    /// This program is not the one to write.
    pub(super) fn is_off(&self) {
        self.up.set(0);
        self.fenced.set(0);
        self.unacknowledged.set(0);
        self.lag.set(0);
        self.known().reason = None;
    }

    /// Says once what is wrong with a stream that takes the feed nevertheless.
    pub(super) fn remark(&self, remarks: Vec<String>) {
        let known = &mut *self.known();
        if known.remarks != remarks {
            for remark in &remarks {
                warn!("{remark}");
            }
            known.remarks = remarks;
        }
    }

    /// What is wrong, in sentences for `/health`.
    pub(crate) fn problems(&self) -> Vec<String> {
        let known = self.known();
        let reason = known.reason.iter();
        let reason = reason.map(|reason| format!("NATS does not take the feed: {reason}"));
        reason.chain(known.remarks.iter().cloned()).collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
