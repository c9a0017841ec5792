//! A session's way through the history, from where it stood to the live data.

use std::time::SystemTime;

use proxy_common::{
    history::{Entry, History, Lookup, TIME_STEP},
    protocol::{Gone, Notice, Position, Start, TierName, millis},
    websocket::Frame,
};

use crate::ring::{Readers, Unread};

/// Most bytes of frames that one step reads. A step runs while others wait for the processor.
const STEP_BYTES: usize = 1 << 20;

/// A session's way through the history.
#[derive(Debug)]
pub(crate) struct Replay {
    /// The number of the next entry.
    next: u64,
    /// Where the feed stands before it.
    position: Position,
    /// The time that the session was sent last.
    sent_time: u64,
    /// What to say first.
    opening: Vec<Frame>,
    /// Most bytes of a step.
    step_bytes: usize,
    /// Events that the session was owed before, and that come again.
    pub(crate) unread: Option<Unread>,
}

/// Where a session stands: the number of the next entry that it gets, the position before it, the
/// events that it is owed already, and the gaps that it has not been sent yet.
#[derive(Debug)]
pub(crate) struct Cursor {
    pub(crate) next: u64,
    pub(crate) position: Position,
    pub(crate) unread: Option<Unread>,
    pub(crate) gaps: Vec<Frame>,
}

impl Replay {
    /// The way from this start. A session that gets data already goes on where it stands if that is
    /// earlier, so that it misses nothing between.
    pub(crate) fn new(
        ring: &Readers,
        start: Start,
        queue_bytes: usize,
        mut cursor: Option<Cursor>,
    ) -> Self {
        let mut opening =
            cursor.as_mut().map(|cursor| std::mem::take(&mut cursor.gaps)).unwrap_or_default();
        let history = ring.history();
        let epoch_of = |next| history.place(next).1.epoch;
        let named = start.position().map(|position| position.epoch);
        let (next, gone) = match history.find_start(start) {
            // Another firehose published that epoch, between two of ours. The first entry of ours
            // is the notice that it begins, which names another place.
            Lookup::At(next) if named.is_some_and(|named| named != epoch_of(next)) => {
                (next + 1, Some(Gone::OtherEpoch))
            }
            Lookup::At(next) => (next, None),
            // Its epoch is not this one, whatever it is.
            Lookup::Ahead => (history.newest(usize::MAX), Some(Gone::OtherEpoch)),
            Lookup::Gone(next, why) => (next, Some(why)),
        };
        let (next, position, time) = history.place(next);
        let time = if time == 0 { millis(SystemTime::now()) } else { time };
        let gap = gone.map(|why| Notice::gone(TierName::Firehose, why, start.position(), position));
        let (next, position, time, unread) = match cursor {
            Some(Cursor { next: earlier, position, unread, .. }) if earlier < next => {
                (earlier, position, history.place(earlier).2, unread)
            }
            cursor => (next, position, time, cursor.and_then(|cursor| cursor.unread)),
        };
        let resumed = Notice::resumed(TierName::Firehose, position, time, "nothing repeats");
        opening.extend(gap.into_iter().chain([resumed]).map(|notice| notice.frame()));
        let step_bytes = STEP_BYTES.min(queue_bytes / 4);
        Self { next, position, sent_time: time, opening, step_bytes, unread }
    }

    /// Where the feed stands before the next entry.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// Where the session stands.
    pub(crate) fn cursor(mut self) -> Cursor {
        // Behind the gaps stands where this replay began, which matters no more.
        self.opening.pop();
        let Self { next, position, unread, opening: gaps, .. } = self;
        Cursor { next, position, unread, gaps }
    }

    /// Reads the next entries, those before number `end` if there is one, without notices unless
    /// the session gets them. Returns whether it has come to the end.
    pub(crate) fn read(
        &mut self,
        history: &History,
        end: Option<u64>,
        notices: bool,
        frames: &mut Vec<(Frame, u32)>,
    ) -> bool {
        frames.extend(self.opening.drain(..).filter(|_| notices).map(|frame| (frame, 0)));
        let mut entries = Vec::new();
        match history.read(self.next, self.step_bytes, &mut entries) {
            Ok(_) => {}
            Err((first, position)) => {
                // The feed was faster. Of one epoch, it is known how much is gone.
                let why = match position.epoch == self.position.epoch {
                    true => Gone::Overtaken(Some(position.seq - self.position.seq)),
                    false => Gone::OtherEpoch,
                };
                let notice = Notice::gone(TierName::Firehose, why, Some(self.position), position);
                frames.extend(notices.then(|| (notice.frame(), 0)));
                (self.next, self.position) = (first, position);
                return false;
            }
        }
        if entries.is_empty() {
            return true;
        }
        let before_end = |next: u64| end.is_none_or(|end| next < end);
        for Entry { frame, position, time, events, notice } in entries {
            if !before_end(self.next) {
                break;
            }
            if notices && !notice && time >= self.sent_time + TIME_STEP {
                let mark = Notice::position(TierName::Firehose, self.position, time);
                frames.push((mark.frame(), 0));
                self.sent_time = time;
            }
            if notices || !notice {
                frames.push((frame, events));
            }
            self.position = position;
            self.next += 1;
        }
        match end {
            Some(end) => self.next >= end,
            None => self.next >= history.end(),
        }
    }
}
