//! Decides which outage notices a session needs, from the outages that it knows of. Pure.

use std::time::SystemTime;

use proxy_common::protocol::{Notice, Outage, TierName};

/// The outages that one session knows of.
#[derive(Debug, Default)]
pub struct OutageNotices {
    /// The outage that has not ended for the session, and the first position in the ring where its
    /// end may be.
    outage: Option<(Outage, u64)>,
}

impl OutageNotices {
    /// Records an outage that begins at this position in the ring, or that the session finds there
    /// when it subscribes. Returns the notice of it.
    pub fn down(&mut self, outage: Outage, position: u64) -> Notice {
        let outage = match self.outage.take() {
            // One pair of notices covers both outages: from the earlier start to the later end,
            // with the newer reason.
            Some((known, first)) => {
                let from = known.from.min(outage.from);
                (Outage { from, ..outage }, first.max(position))
            }
            None => (outage, position),
        };
        let (outage, _) = self.outage.insert(outage);
        Notice::upstream_down(TierName::Firehose, outage)
    }

    /// Records that everything wanted arrives since `since`, as the control message at `position`
    /// says. Returns the notice of it; `None` if the session knows of no outage, or of one that
    /// began later in the ring.
    pub fn up(&mut self, since: SystemTime, position: u64) -> Option<Notice> {
        let (outage, _) = self.outage.take_if(|(_, first)| *first <= position)?;
        Some(Notice::upstream_up(TierName::Firehose, &outage, since))
    }

    /// Whether the session knows of an outage that has not ended for it.
    pub fn is_open(&self) -> bool {
        self.outage.is_some()
    }

    /// Ends the outage for a session that reads the ring no more. Returns the notice of it.
    pub fn end(&mut self, since: SystemTime) -> Option<Notice> {
        self.up(since, u64::MAX)
    }

    /// Catches up after a gap, in which control messages may have been lost. The next message, at
    /// `position`, was published during `outage`, if any. The last outage before it ended at
    /// `last_complete`. Later control messages carry the rest.
    pub fn catch_up(
        &mut self,
        outage: Option<Outage>,
        last_complete: Option<u64>,
        position: u64,
        now: SystemTime,
    ) -> Option<Notice> {
        match (outage, &self.outage) {
            (Some(outage), None) => Some(self.down(outage, position)),
            (None, Some(_)) => self.up(now, last_complete?),
            (Some(_), Some(_)) | (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outage(reason: &str) -> Outage {
        Outage { from: SystemTime::UNIX_EPOCH, reason: reason.to_owned() }
    }

    #[track_caller]
    fn check(notice: Option<Notice>, status: &str, reason: &str) {
        let frame = notice.expect("a notice").frame();
        let text = str::from_utf8(frame.text()).unwrap();
        assert!(text.contains(&format!(r#""status":"{status}""#)), "{text}");
        assert!(text.contains(&format!(r#""reason":"{reason}""#)), "{text}");
    }

    #[test]
    fn an_outage_ends_once_and_not_before_it_began() {
        let mut notices = OutageNotices::default();
        assert!(notices.up(SystemTime::now(), 7).is_none(), "it knew of no outage");
        check(Some(notices.down(outage("subscribing"), 10)), "upstream_down", "subscribing");
        assert!(notices.up(SystemTime::now(), 9).is_none(), "the end of an earlier outage");
        check(Some(notices.down(outage("lost"), 12)), "upstream_down", "lost");
        assert!(notices.up(SystemTime::now(), 11).is_none(), "the end of the first outage");
        check(notices.up(SystemTime::now(), 13), "upstream_up", "lost");
        assert!(notices.up(SystemTime::now(), 14).is_none());
        assert!(!notices.is_open());
        notices.down(outage("lost"), 20);
        assert!(notices.is_open());
        check(notices.end(SystemTime::now()), "upstream_up", "lost");
        assert!(!notices.is_open() && notices.end(SystemTime::now()).is_none());
    }

    #[test]
    fn lost_control_messages_are_caught_up_with() {
        let (mut notices, now) = (OutageNotices::default(), SystemTime::now());
        assert!(notices.catch_up(None, None, 3, now).is_none());
        assert!(notices.catch_up(None, Some(2), 3, now).is_none());
        check(notices.catch_up(Some(outage("lost")), Some(2), 5, now), "upstream_down", "lost");
        assert!(notices.catch_up(Some(outage("lost")), Some(2), 6, now).is_none());
        assert!(notices.catch_up(None, Some(2), 7, now).is_none(), "an end before the outage");
        assert!(notices.up(now, 4).is_none(), "the end of another outage");
        check(notices.catch_up(None, Some(8), 9, now), "upstream_up", "lost");
        // A session whose subscription waits for the vendor gets its notice from the control
        // message, even after a gap.
        notices.down(outage("subscribing"), 20);
        assert!(notices.catch_up(None, Some(8), 25, now).is_none());
        check(notices.up(now, 30), "upstream_up", "subscribing");
    }
}
