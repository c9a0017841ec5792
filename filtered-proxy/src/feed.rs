//! The feed of a market as it comes from the firehose: where it stands, which of its messages are
//! old, and its history. Pure.

use std::time::Duration;

use proxy_common::{
    history::History,
    protocol::{MarkKind, Position, PositionMark},
    websocket::Frame,
};

/// What a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// For the sessions.
    Sessions,
    /// For the history alone: it is older than this program.
    HistoryOnly,
}

/// How far the feed has come since the connection began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Messages are live.
    Live,
    /// No message has come, and the firehose has yet to say where it begins.
    Waiting,
    /// Messages are from before this program began.
    Filling,
    /// Messages are those that were missed while there was no connection.
    CatchingUp,
}

/// The end of old messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaughtUp {
    /// Whether everything that was missed has come.
    pub missed_nothing: bool,
}

/// The state of the history, for whoever wants to read it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum HistoryState {
    /// It is being filled for the first time.
    #[default]
    Filling,
    /// There is no connection, or it brings what was missed.
    Behind,
    /// It ends with the newest message.
    Current,
}

/// The feed of a market.
#[derive(Debug)]
pub struct Feed {
    history: History,
    /// Whether the link asks for what it missed.
    resumes: bool,
    phase: Phase,
    /// Whether the history has once been filled.
    filled: bool,
    /// Where it stands; the default if that is not known.
    head: Position,
    /// Whether something was lost since messages were last live.
    lost: bool,
    /// Where the firehose said that lost messages end.
    gap_ends: Option<Position>,
    /// Whether a connection has been lost.
    was_down: bool,
    /// How far the firehose's clock is ahead of ours, in milliseconds, as of this connection. The
    /// most that was seen, because each message was under way for a while.
    ahead: Option<i64>,
    /// When the last live message came, by our clock.
    last_came: u64,
    last_time: u64,
    /// When the firehose received the next old message, by its clock.
    old_time: u64,
}

impl Feed {
    /// A feed that has not begun. Without `resumes`, the link names no places, and all messages are
    /// live.
    pub fn new(history: History, resumes: bool) -> Self {
        Self {
            history,
            resumes,
            phase: if resumes { Phase::Waiting } else { Phase::Live },
            filled: !resumes,
            head: Position::default(),
            lost: false,
            gap_ends: None,
            was_down: false,
            ahead: None,
            last_came: 0,
            last_time: 0,
            old_time: 0,
        }
    }

    /// Its history.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Where it stands. `None` if that is not known.
    pub fn head(&self) -> Option<Position> {
        (self.head != Position::default()).then_some(self.head)
    }

    /// Whether messages may come that are older than a subscription made now.
    pub fn is_behind(&self) -> bool {
        match self.phase {
            Phase::Live | Phase::Filling => false,
            Phase::Waiting => self.filled && self.head().is_some(),
            Phase::CatchingUp => true,
        }
    }

    /// Whether the firehose has yet to say where the feed begins.
    pub fn is_waiting(&self) -> bool {
        self.phase == Phase::Waiting
    }

    /// When the firehose received the last message, by its clock in milliseconds since 1970.
    pub fn last_time(&self) -> u64 {
        self.last_time
    }

    /// Whether a connection has been lost. The first outage began before this program, and nobody
    /// was here then.
    pub fn was_down(&self) -> bool {
        self.was_down
    }

    /// Whether messages are for the history alone.
    pub fn is_filling(&self) -> bool {
        self.phase == Phase::Filling
    }

    /// How long before `came` the firehose received the last message, if that is an old one.
    pub fn age(&self, came: u64) -> Option<Duration> {
        match self.phase {
            Phase::Live | Phase::Waiting => None,
            Phase::Filling | Phase::CatchingUp => {
                Some(Duration::from_millis(came.saturating_sub(self.last_time)))
            }
        }
    }

    /// Whether messages are old.
    pub fn is_catching_up(&self) -> bool {
        matches!(self.phase, Phase::CatchingUp)
    }

    /// The state of the history.
    pub fn history_state(&self) -> HistoryState {
        match self.phase {
            _ if !self.filled => HistoryState::Filling,
            Phase::Filling => HistoryState::Filling,
            Phase::Live => HistoryState::Current,
            Phase::Waiting | Phase::CatchingUp => HistoryState::Behind,
        }
    }

    /// Takes a message, which came at this time by our clock in milliseconds since 1970. Without a
    /// position it is no part of the history.
    pub fn message(
        &mut self,
        frame: &Frame,
        events: u64,
        position: Option<Position>,
        came: u64,
    ) -> Use {
        let Some(position) = position else { return Use::Sessions };
        self.head = position;
        let time = match self.phase {
            Phase::Live | Phase::Waiting => {
                self.last_came = came;
                came.saturating_add_signed(self.ahead.unwrap_or(0))
            }
            Phase::Filling | Phase::CatchingUp => self.old_time,
        };
        self.last_time = time;
        self.history.push(frame, u32::try_from(events).unwrap_or(u32::MAX), position, time);
        match self.phase {
            Phase::Filling => Use::HistoryOnly,
            Phase::Live | Phase::Waiting | Phase::CatchingUp => Use::Sessions,
        }
    }

    /// Takes a notice.
    pub fn notice(&mut self, frame: &Frame) -> Use {
        if let Some(head) = self.head() {
            self.history.push_notice(frame, head);
        }
        match self.phase {
            Phase::Filling => Use::HistoryOnly,
            Phase::Live | Phase::Waiting | Phase::CatchingUp => Use::Sessions,
        }
    }

    /// The connection is lost.
    pub fn on_down(&mut self) {
        self.phase = if self.resumes { Phase::Waiting } else { Phase::Live };
        (self.was_down, self.ahead) = (true, None);
    }

    /// The firehose names no places: it is older than this proxy.
    pub fn on_no_marks(&mut self) {
        if self.phase == Phase::Waiting {
            (self.phase, self.filled) = (Phase::Live, true);
            self.head = Position::default();
            self.history.forget();
        }
    }

    /// Takes what the firehose says about a place, at this time by our clock. Returns that old
    /// messages have ended, if they have.
    pub fn on_mark(&mut self, mark: PositionMark, came: u64) -> Option<CaughtUp> {
        let PositionMark { kind, position, time } = mark;
        match kind {
            MarkKind::Gap => {
                self.go_to(position, time);
                self.gap_ends = Some(position);
                self.lost |= self.phase != Phase::Live;
            }
            MarkKind::Resumed => {
                let gap_ends = self.gap_ends.take();
                self.old_time = time;
                if self.filled && (gap_ends == Some(position) || self.head == position) {
                    self.phase = Phase::CatchingUp;
                } else {
                    (self.phase, self.lost) = (Phase::Filling, true);
                    self.history.begin(position, time);
                }
                self.head = position;
            }
            MarkKind::At => match self.phase {
                Phase::Filling | Phase::CatchingUp => self.old_time = time,
                Phase::Live | Phase::Waiting if time > 0 && self.last_came > 0 => {
                    self.compare_clocks(time, self.last_came);
                }
                Phase::Live | Phase::Waiting => {}
            },
            MarkKind::Live => {
                let missed_nothing = self.phase == Phase::CatchingUp && !self.lost;
                self.lost = false;
                (self.phase, self.filled, self.head) = (Phase::Live, true, position);
                if time > 0 {
                    self.compare_clocks(time, came);
                }
                return Some(CaughtUp { missed_nothing });
            }
        }
        None
    }

    /// The feed goes on at this place. An earlier one is that of another feed: an epoch of a clock
    /// that went back.
    fn go_to(&mut self, position: Position, time: u64) {
        if position < self.head {
            self.history.begin(position, time);
        }
        self.head = position;
    }

    fn compare_clocks(&mut self, firehoses: u64, ours: u64) {
        let ahead = firehoses as i64 - ours as i64;
        self.ahead = Some(self.ahead.map_or(ahead, |known| known.max(ahead)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: u64) -> Position {
        Position { epoch: 1, seq }
    }

    fn mark(kind: MarkKind, seq: u64, time: u64) -> PositionMark {
        PositionMark { kind, position: at(seq), time }
    }

    fn feed() -> Feed {
        Feed::new(History::new(1_000_000), true)
    }

    /// A feed that is live behind message 5.
    fn live_at_5() -> Feed {
        let mut feed = feed();
        feed.on_mark(mark(MarkKind::Resumed, 5, 1_000), 0);
        feed.on_mark(mark(MarkKind::Live, 5, 0), 0);
        feed
    }

    fn take(feed: &mut Feed, seq: u64, came: u64) -> Use {
        feed.message(&Frame::new(b"[{}]"), 1, Some(at(seq)), came)
    }

    #[test]
    fn a_new_program_fills_its_history_and_gives_none_of_it_to_sessions() {
        let mut feed = feed();
        assert!(!feed.is_behind());
        assert_eq!(feed.history_state(), HistoryState::Filling);
        assert_eq!(feed.on_mark(mark(MarkKind::Resumed, 5, 1_000), 0), None);
        assert_eq!(take(&mut feed, 6, 9_000), Use::HistoryOnly);
        assert_eq!(feed.notice(&Frame::new(b"[]")), Use::HistoryOnly);
        assert_eq!(feed.history_state(), HistoryState::Filling);
        let end = feed.on_mark(mark(MarkKind::Live, 6, 0), 0);
        assert_eq!(end, Some(CaughtUp { missed_nothing: false }));
        assert_eq!(feed.history_state(), HistoryState::Current);
        assert_eq!(take(&mut feed, 7, 9_001), Use::Sessions);
        let extent = feed.history().extent();
        assert_eq!(
            (extent.entries, extent.from, extent.to, extent.oldest),
            (3, at(5), at(7), 1_000)
        );
    }

    #[test]
    fn what_was_missed_goes_to_the_sessions() {
        let mut feed = live_at_5();
        take(&mut feed, 6, 2_000);
        feed.on_down();
        assert!(feed.is_behind());
        assert_eq!(feed.history_state(), HistoryState::Behind);
        feed.on_mark(mark(MarkKind::Resumed, 6, 3_000), 0);
        assert!(feed.is_behind() && feed.is_catching_up());
        assert_eq!(take(&mut feed, 7, 4_000), Use::Sessions);
        let end = feed.on_mark(mark(MarkKind::Live, 7, 0), 0);
        assert_eq!(end, Some(CaughtUp { missed_nothing: true }));
        assert!(!feed.is_behind());
    }

    #[test]
    fn what_the_firehose_has_no_more_is_lost() {
        let mut feed = live_at_5();
        feed.on_down();
        let later = Position { epoch: 2, seq: 30 };
        feed.on_mark(PositionMark { kind: MarkKind::Gap, position: later, time: 0 }, 0);
        feed.on_mark(PositionMark { kind: MarkKind::Resumed, position: later, time: 7_000 }, 0);
        let next = Some(later.next());
        assert_eq!(feed.message(&Frame::new(b"[{}]"), 1, next, 9_000), Use::Sessions);
        let live = PositionMark { kind: MarkKind::Live, position: later.next(), time: 0 };
        assert_eq!(feed.on_mark(live, 0), Some(CaughtUp { missed_nothing: false }));
        assert_eq!(feed.history().extent().from, at(5), "both epochs are kept");
    }

    #[test]
    fn a_link_that_lost_its_place_begins_anew() {
        let mut feed = live_at_5();
        take(&mut feed, 6, 2_000);
        feed.on_down();
        feed.on_mark(mark(MarkKind::Resumed, 3, 500), 0);
        assert!(!feed.is_behind());
        assert_eq!(take(&mut feed, 4, 4_000), Use::HistoryOnly);
        assert_eq!(feed.history().extent().from, at(3));
    }

    #[test]
    fn times_are_those_of_the_firehose() {
        let mut feed = feed();
        feed.on_mark(mark(MarkKind::Resumed, 0, 1_000), 0);
        feed.on_mark(mark(MarkKind::At, 0, 1_050), 0);
        take(&mut feed, 1, 90_000);
        feed.on_mark(mark(MarkKind::Live, 1, 1_090), 90_000);
        take(&mut feed, 2, 90_010);
        feed.on_mark(mark(MarkKind::At, 2, 1_101), 90_015);
        take(&mut feed, 3, 90_110);
        feed.on_mark(mark(MarkKind::At, 3, 1_150), 90_200);
        take(&mut feed, 4, 90_111);
        let (history, end) = (feed.history(), feed.history().end());
        let times = (end - 4..end).map(|entry| history.place(entry).2);
        assert_eq!(times.collect::<Vec<_>>(), [1_050, 1_100, 1_201, 1_202]);
    }

    #[test]
    fn without_a_history_all_messages_are_live() {
        let mut feed = Feed::new(History::new(0), false);
        assert_eq!(feed.history_state(), HistoryState::Current);
        assert_eq!(feed.message(&Frame::new(b"[{}]"), 1, None, 7), Use::Sessions);
        feed.on_down();
        assert!(!feed.is_waiting() && !feed.is_behind());
    }

    #[test]
    fn a_firehose_without_places_gives_live_messages() {
        let mut feed = feed();
        feed.on_no_marks();
        assert_eq!(feed.message(&Frame::new(b"[{}]"), 1, None, 7), Use::Sessions);
        assert_eq!((feed.head(), feed.history().extent().entries), (None, 0));
        feed.on_down();
        assert!(!feed.is_behind());
    }
}
