//! The ledger: the outcome of every event, as two balances over counts that come from different
//! code.
//!
//! - Intake: `received`, the objects that the link counts in each array, must equal `routed`, the
//!   events that the tier finds in the frames and uses, + `malformed`.
//! - Sessions: `owed`, counted where events are handed out, must equal `delivered` + `queued` +
//!   lost, counted by each session.
//!
//! Nothing is added to make them equal: an event that gets lost between two counts stays missing.
//! The link counts while it checks an array (`protocol::demux`). The filtered proxy counts the
//! events that `split` yields. The firehose, which does not open frames, counts the events that its
//! ring has accepted.
//!
//! Between the balances, `routed` = `subscribed` + `not_subscribed` + `oversize`. An event for
//! three sessions is owed three times. Events that passed while the link was down are in neither
//! balance, because they cannot be counted. `outages` counts how often the link was lost.

use std::collections::VecDeque;

use serde::Serialize;

use crate::{
    link::LinkMetrics,
    metrics::{Count, Delays, Level, Metrics},
    session::{LossReason, SessionMetrics},
};

/// Counts of the events in frames, between the link and the sessions.
#[derive(Debug, Default, Clone)]
pub struct IntakeMetrics {
    /// Events that the tier found in frames: the ledger's second count.
    pub routed: Count,
    /// Of these, the events that no session was subscribed to.
    pub not_subscribed: Count,
    /// From the read of a frame until it is handed out to all sessions. Some are measured: about a
    /// thousand a second.
    pub forward_latency: Delays,
    /// Events that the two balances of the ledger do not account for.
    unaccounted: [Level; 2],
}

impl IntakeMetrics {
    /// Events that either balance of the ledger has not accounted for during the last minute.
    pub fn unaccounted(&self) -> i64 {
        self.unaccounted.iter().map(|balance| balance.get().abs()).sum()
    }

    /// Registers all of them.
    pub fn register(metrics: &mut Metrics) -> Self {
        let (latency, unaccounted) = ("forward_latency", "ledger_unaccounted_events");
        let help = "Events that a balance of the ledger does not account for";
        Self {
            forward_latency: metrics.register_seconds(latency, "From the read to the hand-out"),
            unaccounted: ["intake", "delivery"].map(|balance| {
                metrics.register_with_label(unaccounted, help, ("balance", balance))
            }),
            routed: metrics.register("events_routed", "Events found in frames"),
            not_subscribed: metrics.register("events_filtered", "Events without a subscriber"),
        }
    }
}

/// Shows how far the ledger has been off balance for a while: the smallest difference of each
/// balance among the last [`BALANCES_KEPT`] readings. While data flows, a reading also finds the
/// events that are between two counts, so one reading means little.
#[derive(Debug, Default)]
pub(super) struct BalanceWatch {
    readings: VecDeque<[i64; 2]>,
}

/// Readings come about once a second.
const BALANCES_KEPT: usize = 60;

impl BalanceWatch {
    /// Adds a reading, and updates the gauge.
    pub(super) fn add(&mut self, ledger: &Ledger, intake: &IntakeMetrics) {
        if self.readings.len() == BALANCES_KEPT {
            self.readings.pop_front();
        }
        self.readings.push_back([ledger.intake.unaccounted, ledger.sessions.unaccounted]);
        for (balance, gauge) in intake.unaccounted.iter().enumerate() {
            let differences = self.readings.iter().map(|reading| reading[balance]);
            gauge.set(differences.min_by_key(|difference| difference.abs()).unwrap_or(0));
        }
    }
}

/// The ledger of a tier at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// Whether both balances hold. While data flows, events between two counts may be missing.
    pub balanced: bool,
    /// From the link to the sessions.
    pub intake: Intake,
    /// From there to the sessions' sockets.
    pub sessions: Deliveries,
    /// How often the link was lost.
    pub outages: u64,
}

/// The outcome of the events received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Intake {
    /// Events received, counted by the link.
    pub received: u64,
    /// Events found in frames, counted by the tier.
    pub routed: u64,
    /// Of these, events that some session was subscribed to.
    pub subscribed: u64,
    /// Of these, events that no session was subscribed to.
    pub not_subscribed: u64,
    /// Of these, lost: events longer than a message may be.
    pub oversize: u64,
    /// Lost: events that were no JSON, and objects without a type.
    pub malformed: u64,
    /// Events received that the tier never found; 0 if all is well.
    pub unaccounted: i64,
}

/// The outcome of the events handed out for sessions, counted once for each session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deliveries {
    /// Events handed out.
    pub owed: u64,
    /// Events written to sockets.
    pub delivered: u64,
    /// Events waiting in queues and in the firehose's ring.
    pub queued: i64,
    /// Lost: the session was too slow.
    pub slow_consumer: u64,
    /// Lost: the session ended, or unsubscribed from everything, with events waiting.
    pub session_closed: u64,
    /// Lost: the ring overwrote them before the session read them.
    pub ring_overrun: u64,
    /// Events handed out that none of these counts contains; 0 if all is well.
    pub unaccounted: i64,
}

impl Ledger {
    /// Reads the counters of a tier. `unread` counts the events that sessions have yet to fetch, in
    /// a tier where they fetch events.
    pub fn read(
        link: &LinkMetrics,
        intake: &IntakeMetrics,
        sessions: &SessionMetrics,
        unread: Option<&Level>,
    ) -> Self {
        let lost = |reason| sessions.total_lost(reason);
        let (received, routed) = (link.events.get(), intake.routed.get());
        let (not_subscribed, oversize) = (intake.not_subscribed.get(), lost(LossReason::Oversize));
        let malformed = lost(LossReason::Malformed);
        let intake = Intake {
            received,
            routed,
            subscribed: routed.saturating_sub(not_subscribed + oversize),
            not_subscribed,
            oversize,
            malformed,
            unaccounted: difference(received, routed + malformed),
        };
        let (owed, delivered) = (sessions.events_owed.get(), sessions.events_delivered.get());
        let queued = sessions.queue_events.get() + unread.map_or(0, Level::get);
        let slow_consumer = lost(LossReason::SlowConsumer);
        let session_closed = lost(LossReason::SessionClosed);
        let ring_overrun = lost(LossReason::RingOverrun);
        let settled = delivered + slow_consumer + session_closed + ring_overrun;
        let sessions = Deliveries {
            owed,
            delivered,
            queued,
            slow_consumer,
            session_closed,
            ring_overrun,
            unaccounted: difference(owed, settled) - queued,
        };
        let up = link.up.get().max(0) as u64;
        Self {
            balanced: intake.unaccounted == 0 && sessions.unaccounted == 0,
            intake,
            sessions,
            outages: link.connects.get().saturating_sub(up),
        }
    }
}

fn difference(left: u64, right: u64) -> i64 {
    left.wrapping_sub(right) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_is_lost_without_a_reason_shows() {
        let mut metrics = Metrics::default();
        let link = LinkMetrics::register(&mut metrics);
        let intake = IntakeMetrics::register(&mut metrics);
        let sessions = SessionMetrics::register(&mut metrics);
        let unread = Level::default();
        let read = || Ledger::read(&link, &intake, &sessions, Some(&unread));
        assert!(read().balanced);

        // Ten arrive: one is lost in a damaged frame, one is too long, three have no subscriber.
        link.events.inc_by(10);
        assert_eq!(read().intake.unaccounted, 10);
        intake.routed.inc_by(9);
        assert_eq!((read().intake.unaccounted, read().balanced), (1, false));
        sessions.lost(LossReason::Malformed, 1);
        intake.not_subscribed.inc_by(3);
        sessions.lost(LossReason::Oversize, 1);
        let ledger = read();
        assert!(ledger.balanced, "{ledger:?}");
        assert_eq!((ledger.intake.subscribed, ledger.intake.malformed), (5, 1));

        // Five for two sessions each. One gets all. The other gets one, is too slow for three, and
        // has yet to fetch one.
        sessions.events_owed.inc_by(10);
        sessions.delivered(6, 0);
        unread.set(1);
        assert_eq!(read().sessions.unaccounted, 3);
        sessions.lost(LossReason::SlowConsumer, 3);
        assert!(read().balanced);
        unread.set(0);
        sessions.queue_events.set(1);
        assert!(read().balanced);
        // One is delivered twice.
        sessions.delivered(1, 0);
        assert_eq!((read().sessions.unaccounted, read().balanced), (-1, false));
    }

    #[test]
    fn the_gauge_leaves_moments_out_and_shows_what_stays() {
        let mut metrics = Metrics::default();
        let link = LinkMetrics::register(&mut metrics);
        let intake = IntakeMetrics::register(&mut metrics);
        let sessions = SessionMetrics::register(&mut metrics);
        let mut watch = BalanceWatch::default();
        let mut read = |times: usize| {
            for _ in 0..times {
                watch.add(&Ledger::read(&link, &intake, &sessions, None), &intake);
            }
            [&intake.unaccounted[0], &intake.unaccounted[1]].map(Level::get)
        };
        assert_eq!(read(1), [0, 0]);
        link.events.inc_by(7);
        sessions.delivered(1, 0);
        assert_eq!(read(BALANCES_KEPT - 1), [0, 0], "events between two counts");
        assert_eq!(read(1), [7, -1]);
        intake.routed.inc_by(5);
        assert_eq!(read(1), [2, -1]);
        sessions.events_owed.inc();
        assert_eq!(read(1), [2, 0]);
    }
}
