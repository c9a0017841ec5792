//! What a session has been told of outages, and so what is news to it. Pure.

use std::time::SystemTime;

use proxy_common::{link::Outage, protocol::notice::Notice};

use crate::TIER;

/// What a session has been told.
#[derive(Debug, Default)]
pub struct Told {
    /// The outage that it knows of, and the first place in the ring where its end may stand.
    outage: Option<(Outage, u64)>,
}

impl Told {
    /// Not everything comes since some message in the ring, or will, if the session subscribes at that place.
    pub fn down(&mut self, outage: Outage, place: u64) -> Notice {
        let outage = match self.outage.take() {
            // One pair of notices for both, from the earlier to the end of the later, for the reason that is news.
            Some((known, first)) => {
                (Outage { from: known.from.min(outage.from), ..outage }, first.max(place))
            }
            None => (outage, place),
        };
        let (outage, _) = self.outage.insert(outage);
        Notice::upstream_down(TIER, outage)
    }

    /// Everything comes since then, says the message at this place. No news to who knows of no outage, or of one that began
    /// further on in the ring.
    pub fn up(&mut self, since: SystemTime, place: u64) -> Option<Notice> {
        let (outage, _) = self.outage.take_if(|(_, first)| *first <= place)?;
        Some(Notice::upstream_up(TIER, &outage, since))
    }

    /// Messages were lost, and signs may have been among them. The one behind them, at this place, knows of the outage amid
    /// which it was published, and of the last place before it where one ended. What comes later signs will tell.
    pub fn catch_up(
        &mut self,
        amid: Option<Outage>,
        last_complete: Option<u64>,
        place: u64,
        now: SystemTime,
    ) -> Option<Notice> {
        match (amid, &self.outage) {
            (Some(outage), None) => Some(self.down(outage, place)),
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
    fn says(notice: Option<Notice>, status: &str, reason: &str) {
        let frame = notice.expect("a notice").frame();
        let text = str::from_utf8(frame.text()).unwrap();
        assert!(text.contains(&format!(r#""status":"{status}""#)), "{text}");
        assert!(text.contains(&format!(r#""reason":"{reason}""#)), "{text}");
    }

    #[test]
    fn an_outage_ends_once_and_not_before_it_began() {
        let mut told = Told::default();
        assert!(told.up(SystemTime::now(), 7).is_none(), "of which it knew nothing");
        says(Some(told.down(outage("subscribing"), 10)), "upstream_down", "subscribing");
        assert!(told.up(SystemTime::now(), 9).is_none(), "the end of an earlier one");
        says(Some(told.down(outage("lost"), 12)), "upstream_down", "lost");
        assert!(told.up(SystemTime::now(), 11).is_none(), "the end of the first");
        says(told.up(SystemTime::now(), 13), "upstream_up", "lost");
        assert!(told.up(SystemTime::now(), 14).is_none());
    }

    #[test]
    fn what_was_lost_on_the_way_is_made_up_for() {
        let (mut told, now) = (Told::default(), SystemTime::now());
        assert!(told.catch_up(None, None, 3, now).is_none());
        assert!(told.catch_up(None, Some(2), 3, now).is_none());
        says(told.catch_up(Some(outage("lost")), Some(2), 5, now), "upstream_down", "lost");
        assert!(told.catch_up(Some(outage("lost")), Some(2), 6, now).is_none());
        assert!(told.catch_up(None, Some(2), 7, now).is_none(), "an end that stood before");
        assert!(told.up(now, 4).is_none(), "another");
        says(told.catch_up(None, Some(8), 9, now), "upstream_up", "lost");
        // Who waits for its subscription is told by the sign, wherever the ring has been overrun meanwhile.
        told.down(outage("subscribing"), 20);
        assert!(told.catch_up(None, Some(8), 25, now).is_none());
        says(told.up(now, 30), "upstream_up", "subscribing");
    }
}
