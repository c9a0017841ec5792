//! The ledger: what became of every event, as two balances over counters that are kept in different places.
//!
//! | balance | left | right |
//! | --- | --- | --- |
//! | intake | `received` (counted by the link) + `recounted` | `routed` (counted where frames are taken apart) + `malformed` |
//! | sessions | `owed` (counted where events are handed out) | `delivered` + `queued` + lost (counted by each session) |
//!
//! Between them: `routed` = `subscribed` + `not_subscribed` + `oversize`. An event for three sessions is owed three times.
//! What passed while the link was down is in neither: nobody can count it, so the outages are.

use serde::Serialize;

use crate::metrics::{IntakeMetrics, LinkMetrics, LossReason, SessionMetrics};

/// The ledger of a tier at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// Whether both balances hold. While data flows they may miss what is between two counters just then.
    pub balanced: bool,
    /// From the link to the sessions.
    pub intake: Intake,
    /// From there to the sessions' sockets.
    pub sessions: Deliveries,
    /// Times that the link was lost; how many events passed meanwhile is unknown.
    pub outages: u64,
}

/// What became of the events received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Intake {
    /// Events received, told by their key `ev`.
    pub received: u64,
    /// By how many that count was wrong for sound frames: nested or escaped keys.
    pub recounted: i64,
    /// Events found in frames.
    pub routed: u64,
    /// Events of those that some session was subscribed to.
    pub subscribed: u64,
    /// Events of those that no session was subscribed to.
    pub not_subscribed: u64,
    /// Lost: events longer than a message may be.
    pub oversize: u64,
    /// Lost: events of damaged frames, and objects that name no type.
    pub malformed: u64,
    /// Events that were received and are nowhere; 0 if all is well.
    pub unaccounted: i64,
}

/// What became of the events handed out for sessions, counted once for each session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deliveries {
    /// Events handed out.
    pub owed: u64,
    /// Events written to sockets.
    pub delivered: u64,
    /// Events waiting.
    pub queued: i64,
    /// Lost: the session was too slow.
    pub slow_consumer: u64,
    /// Lost: the session ended, or gave up what it held, with events waiting.
    pub session_closed: u64,
    /// Lost: the ring had gone round before the session read on.
    pub ring_overrun: u64,
    /// Events that were handed out and are nowhere; 0 if all is well.
    pub unaccounted: i64,
}

impl Ledger {
    /// Reads the counters of a tier.
    pub fn read(link: &LinkMetrics, intake: &IntakeMetrics, sessions: &SessionMetrics) -> Self {
        let lost = |reason| sessions.lost_until_now(reason);
        let up = link.up.get().clamp(0, 1) as u64;
        let intake = Intake {
            received: link.events.get(),
            recounted: intake.recounted.get(),
            routed: intake.routed.get(),
            subscribed: 0,
            not_subscribed: intake.unwanted.get(),
            oversize: lost(LossReason::Oversize),
            malformed: lost(LossReason::Malformed),
            unaccounted: 0,
        };
        let sessions = Deliveries {
            owed: sessions.events_owed.get(),
            delivered: sessions.events_delivered.get(),
            queued: sessions.queue_events.get(),
            slow_consumer: lost(LossReason::SlowConsumer),
            session_closed: lost(LossReason::SessionClosed),
            ring_overrun: lost(LossReason::RingOverrun),
            unaccounted: 0,
        };
        Self::balance(intake, sessions, link.connects.get().saturating_sub(up))
    }

    /// Works out what follows from the counts.
    fn balance(mut intake: Intake, mut sessions: Deliveries, outages: u64) -> Self {
        intake.subscribed = intake.routed.saturating_sub(intake.not_subscribed + intake.oversize);
        intake.unaccounted =
            difference(intake.received, intake.routed + intake.malformed) + intake.recounted;
        let lost = sessions.slow_consumer + sessions.session_closed + sessions.ring_overrun;
        sessions.unaccounted =
            difference(sessions.owed, sessions.delivered + lost) - sessions.queued;
        let balanced = intake.unaccounted == 0 && sessions.unaccounted == 0;
        Self { balanced, intake, sessions, outages }
    }
}

fn difference(left: u64, right: u64) -> i64 {
    left.wrapping_sub(right) as i64
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn what_is_lost_without_a_reason_shows() {
        let mut registry = Registry::default();
        let link = LinkMetrics::register(&mut registry);
        let intake = IntakeMetrics::register(&mut registry);
        let sessions = SessionMetrics::register(&mut registry);
        let read = || Ledger::read(&link, &intake, &sessions);
        assert!(read().balanced);

        // Ten come: two in a damaged frame that holds one, one too long, three that nobody wants.
        link.events.inc_by(10);
        assert_eq!(read().intake.unaccounted, 10);
        sessions.lost(LossReason::Malformed, intake.found(1, 2, true));
        sessions.lost(LossReason::Malformed, intake.found(8, 8, false));
        intake.unwanted.inc_by(3);
        sessions.lost(LossReason::Oversize, 1);
        let ledger = read();
        assert!(ledger.balanced, "{ledger:?}");
        assert_eq!((ledger.intake.subscribed, ledger.intake.malformed), (5, 1));

        // Five for two sessions each: one gets all, the other one, and loses three as too slow.
        sessions.events_owed.inc_by(10);
        sessions.delivered(6, 0);
        sessions.queue_events.set(1);
        assert_eq!(read().sessions.unaccounted, 3);
        sessions.lost(LossReason::SlowConsumer, 3);
        assert!(read().balanced);
        // Delivered twice.
        sessions.delivered(1, 0);
        assert_eq!((read().sessions.unaccounted, read().balanced), (-1, false));
    }

    #[test]
    fn a_count_by_key_that_was_wrong_is_set_right_and_is_no_loss() {
        let intake = IntakeMetrics::default();
        assert_eq!(intake.found(1, 2, false), 0);
        assert_eq!(intake.recounted.get(), -1);
        assert_eq!(intake.found(5, 2, true), 0);
        assert_eq!((intake.recounted.get(), intake.routed.get()), (2, 6));
    }
}
