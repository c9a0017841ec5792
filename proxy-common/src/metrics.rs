//! Counters and gauges of a tier, in Prometheus' conventions.
//!
//! Handles are registered once and passed down; the hot path only adds to them. Labels come from enums, and from the
//! operator's file of keys.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64},
    },
    time::SystemTime,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::{Registry, Unit},
};
use tokio::runtime::{Handle, RuntimeMetrics};

use crate::{link::LinkError, server::http::REFUSALS, session::close::CloseReason};

/// A counter that starts at zero when the program does.
pub type Count = Counter<u64, AtomicU64>;
/// A gauge of whole numbers.
pub type Level = Gauge<i64, AtomicI64>;

/// The label `reason`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    reason: &'static str,
}

impl Reason {
    /// A label with this value, which comes from an enum.
    pub fn new(reason: &'static str) -> Self {
        Self { reason }
    }
}

/// Why events that a session was to get did not reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossReason {
    /// The session read too slowly and was ended.
    SlowConsumer,
    /// The session ended, by the client or its connection, with data still queued.
    SessionClosed,
    /// The ring had gone round before the session read on.
    RingOverrun,
    /// A single event longer than a message may be.
    Oversize,
    /// An event in a frame that could not be read to its end, or that names no type.
    Malformed,
}

impl LossReason {
    /// Every reason.
    pub const ALL: [Self; 5] = [
        Self::SlowConsumer,
        Self::SessionClosed,
        Self::RingOverrun,
        Self::Oversize,
        Self::Malformed,
    ];

    /// The value of the label `reason`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::SlowConsumer => "slow_consumer",
            Self::SessionClosed => "session_closed",
            Self::RingOverrun => "ring_overrun",
            Self::Oversize => "oversize",
            Self::Malformed => "malformed",
        }
    }

    /// The loss of what was queued when a session ended so.
    pub const fn of(reason: CloseReason) -> Self {
        match reason {
            CloseReason::SlowConsumer => Self::SlowConsumer,
            CloseReason::ClientGone
            | CloseReason::Protocol
            | CloseReason::NotText
            | CloseReason::TooBig
            | CloseReason::AuthTimeout
            | CloseReason::AuthFailed
            | CloseReason::KeyRevoked
            | CloseReason::Silent
            | CloseReason::ControlFlood
            | CloseReason::Drain
            | CloseReason::Internal => Self::SessionClosed,
        }
    }
}

/// What is counted about sessions.
#[derive(Debug, Default)]
pub struct SessionMetrics {
    /// Sessions now, from the WebSocket handshake to the close.
    pub sessions: Level,
    /// WebSocket handshakes accepted.
    pub opened: Count,
    /// Sessions ended, by reason.
    pub closed: Family<Reason, Count>,
    /// Connections turned away before the upgrade, by reason.
    pub refused: Family<Reason, Count>,
    /// Subscriptions held by all sessions.
    pub subscriptions: Level,
    /// Commands received.
    pub commands: Count,
    /// Events handed out for sessions: one event for two sessions counts twice.
    pub events_owed: Count,
    /// Events written to sessions' sockets, counted likewise.
    pub events_delivered: Count,
    /// Bytes written to sessions' sockets.
    pub bytes_out: Count,
    /// Bytes queued for all sessions.
    pub queue_bytes: Level,
    /// Events queued for all sessions, those unread in the firehose's ring included.
    pub queue_events: Level,
    /// Events lost on the way to sessions, by reason.
    pub events_lost: Family<Reason, Count>,
}

impl SessionMetrics {
    /// Registers everything under the registry's prefix.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self::default();
        for reason in CloseReason::ALL {
            drop(metrics.closed.get_or_create(&Reason::new(reason.label())));
        }
        for reason in REFUSALS {
            drop(metrics.refused.get_or_create(&Reason::new(reason)));
        }
        for reason in LossReason::ALL {
            drop(metrics.events_lost.get_or_create(&Reason::new(reason.label())));
        }
        registry.register("sessions", "Sessions now", metrics.sessions.clone());
        registry.register("sessions_opened", "Sessions accepted", metrics.opened.clone());
        registry.register("sessions_closed", "Sessions ended", metrics.closed.clone());
        registry.register(
            "connections_refused",
            "Connections turned away before the upgrade",
            metrics.refused.clone(),
        );
        registry.register(
            "subscriptions",
            "Subscriptions held by all sessions",
            metrics.subscriptions.clone(),
        );
        registry.register("commands", "Commands received", metrics.commands.clone());
        registry.register(
            "events_owed",
            "Events handed out for sessions, counted for each session",
            metrics.events_owed.clone(),
        );
        registry.register(
            "events_delivered",
            "Events written to sessions, counted for each session",
            metrics.events_delivered.clone(),
        );
        registry.register_with_unit(
            "out",
            "Bytes written to sessions",
            Unit::Bytes,
            metrics.bytes_out.clone(),
        );
        registry.register_with_unit(
            "queue",
            "Bytes queued for sessions",
            Unit::Bytes,
            metrics.queue_bytes.clone(),
        );
        registry.register(
            "queue_events",
            "Events queued for sessions",
            metrics.queue_events.clone(),
        );
        registry.register(
            "events_lost",
            "Events that sessions were to get and did not",
            metrics.events_lost.clone(),
        );
        Arc::new(metrics)
    }

    /// Counts events and bytes that reached a session's socket.
    #[inline]
    pub fn delivered(&self, events: u32, bytes: usize) {
        if events > 0 {
            self.events_delivered.inc_by(events.into());
        }
        if bytes > 0 {
            self.bytes_out.inc_by(bytes as u64);
        }
    }

    /// Counts events that did not reach a session.
    pub fn lost(&self, reason: LossReason, events: u64) {
        if events > 0 {
            self.events_lost.get_or_create(&Reason::new(reason.label())).inc_by(events);
        }
    }

    /// Events lost for this reason until now.
    pub fn lost_until_now(&self, reason: LossReason) -> u64 {
        self.events_lost.get_or_create(&Reason::new(reason.label())).get()
    }
}

/// What is counted about the events of frames, between the link and the sessions.
#[derive(Debug, Default, Clone)]
pub struct IntakeMetrics {
    /// Events found in frames.
    pub routed: Count,
    /// Events of those that no session was subscribed to.
    pub unwanted: Count,
    /// By how many the events found in sound frames differ from the link's count by the key `ev`.
    pub recounted: Level,
}

impl IntakeMetrics {
    /// Registers everything under the registry's prefix.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("events_routed", "Events found in frames", metrics.routed.clone());
        registry.register(
            "events_filtered",
            "Events that no session was subscribed to",
            metrics.unwanted.clone(),
        );
        registry.register(
            "events_recounted",
            "Events found in sound frames less those counted when they came",
            metrics.recounted.clone(),
        );
        metrics
    }

    /// Notes how many events were found in frames that the link told to hold `told`, and returns how many of these are lost:
    /// what damaged frames were told to hold and do not.
    pub fn found(&self, found: u64, told: u64, damaged: bool) -> u64 {
        self.routed.inc_by(found);
        if damaged && told > found {
            return told - found;
        }
        if found != told {
            self.recounted.inc_by(found as i64 - told as i64);
        }
        0
    }
}

/// What is counted about a link to an upstream.
#[derive(Debug, Default)]
pub struct LinkMetrics {
    /// 1 while logged in, else 0.
    pub up: Level,
    /// Logins that succeeded.
    pub connects: Count,
    /// Connections lost and tries failed, by reason.
    pub disconnects: Family<Reason, Count>,
    /// Data frames received.
    pub frames: Count,
    /// Events received, told by their key `ev`.
    pub events: Count,
    /// Bytes of data frames received.
    pub bytes: Count,
    /// Frames that were no JSON array or object, or not text.
    pub malformed: Count,
}

impl LinkMetrics {
    /// Registers everything under the registry's prefix.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self::default();
        for label in LinkError::LABELS {
            drop(metrics.disconnects.get_or_create(&Reason::new(label)));
        }
        registry.register("upstream_up", "1 while logged in upstream", metrics.up.clone());
        registry.register("upstream_connects", "Logins upstream", metrics.connects.clone());
        registry.register(
            "upstream_disconnects",
            "Upstream connections lost and tries failed",
            metrics.disconnects.clone(),
        );
        registry.register("frames_in", "Data frames received", metrics.frames.clone());
        registry.register("events_in", "Events received", metrics.events.clone());
        registry.register_with_unit(
            "in",
            "Bytes of data frames received",
            Unit::Bytes,
            metrics.bytes.clone(),
        );
        registry.register(
            "frames_malformed",
            "Frames received that hold no events",
            metrics.malformed.clone(),
        );
        Arc::new(metrics)
    }
}

/// Memory and start time of this process, under the names that Prometheus' own exporters use, and its tasks.
#[derive(Debug)]
pub struct ProcessMetrics {
    start: f64,
    runtime: RuntimeMetrics,
}

impl ProcessMetrics {
    /// For a process that starts now.
    ///
    /// # Panics
    ///
    /// It is called outside of the runtime that the process works on.
    #[expect(clippy::new_without_default, reason = "now is not a default")]
    pub fn new() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { start: since.as_secs_f64(), runtime: Handle::current().metrics() }
    }
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let start = ConstGauge::new(self.start);
        start.encode(encoder.encode_descriptor(
            "process_start_time",
            "Start of the process since 1970",
            Some(&Unit::Seconds),
            start.metric_type(),
        )?)?;
        let tasks = ConstGauge::new(self.runtime.num_alive_tasks() as i64);
        tasks.encode(encoder.encode_descriptor(
            "process_tasks",
            "Asynchronous tasks that have not ended",
            None,
            tasks.metric_type(),
        )?)?;
        let Some(memory) = memory_stats::memory_stats() else { return Ok(()) };
        let resident = ConstGauge::new(memory.physical_mem as i64);
        resident.encode(encoder.encode_descriptor(
            "process_resident_memory",
            "Resident memory",
            Some(&Unit::Bytes),
            resident.metric_type(),
        )?)?;
        Ok(())
    }
}
