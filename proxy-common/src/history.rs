//! The history of a market's feed: its last messages, for whoever comes back.
//!
//! Data never flows through it. Each tier writes into it beside its own way of delivery, and
//! replays read it at their own pace. Frames are shared with that delivery, and never copied.

mod receipt_time;

pub use self::receipt_time::ReceiptTime;

use std::{
    collections::VecDeque,
    mem::size_of,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

use crate::{
    metrics::{Level, Metrics},
    protocol::{Gone, Position, Start},
    websocket::Frame,
};

/// How exact the times of replayed messages are, in milliseconds: a replay says the time anew when
/// it has gone on by so much.
pub const TIME_STEP: u64 = 50;

/// Most entries that one call of [`History::read`] returns: it holds the lock meanwhile.
const MAX_READ: usize = 256;

/// A message of the feed, or a notice between two messages.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The frame.
    pub frame: Frame,
    /// Where the feed stands behind it.
    pub position: Position,
    /// When the firehose received it, in milliseconds since 1970. Never less than that of the entry
    /// before.
    pub time: u64,
    /// How many events it holds.
    pub events: u32,
    /// Whether it is a notice. A notice does not move the position.
    pub notice: bool,
}

/// The result of looking for a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// It is before this entry.
    At(u64),
    /// The feed has not come so far, as far as is known here.
    Ahead,
    /// What follows it cannot be given. This entry is the first that there is.
    Gone(u64, Gone),
}

/// What a history holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of memory, about.
    pub bytes: usize,
    /// Messages and notices.
    pub entries: usize,
    /// The place before the first entry.
    pub from: Position,
    /// The place behind the last entry.
    pub to: Position,
    /// When the first entry was received, in milliseconds since 1970. Zero if there is none.
    pub oldest: u64,
}

/// The history, as `/health` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct HistoryHealth {
    /// Bytes of memory that it takes, about.
    pub bytes: usize,
    /// Messages and notices in it.
    pub entries: usize,
    /// Whoever stands here or later can go on from there.
    pub from: Position,
    /// Where the feed stands.
    pub to: Position,
    /// How far it reaches back.
    pub seconds: u64,
}

impl Extent {
    /// The same for `/health`, at this time in milliseconds since 1970.
    pub fn health(&self, now: u64) -> HistoryHealth {
        let age = if self.oldest == 0 { 0 } else { now.saturating_sub(self.oldest) };
        HistoryHealth {
            bytes: self.bytes,
            entries: self.entries,
            from: self.from,
            to: self.to,
            seconds: age / 1_000,
        }
    }
}

/// The gauges of a history.
#[derive(Debug, Clone)]
pub struct HistoryMetrics {
    bytes: Level,
    seconds: Level,
}

impl HistoryMetrics {
    /// Registers all of them.
    pub fn register(metrics: &mut Metrics) -> Self {
        let help = "Bytes of messages kept for whoever comes back";
        let bytes = metrics.register("history_bytes", help);
        let help = "How far back the messages kept reach, in seconds";
        Self { bytes, seconds: metrics.register("history_seconds", help) }
    }

    /// Shows this extent, at this time in milliseconds since 1970.
    pub fn show(&self, extent: &Extent, now: u64) {
        self.bytes.set(i64::try_from(extent.bytes).unwrap_or(i64::MAX));
        self.seconds.set(i64::try_from(extent.health(now).seconds).unwrap_or(i64::MAX));
    }
}

/// The last messages of a feed. Clones are handles to the same history.
///
/// An entry has a number that stays its own: those of a running program count up from zero.
#[derive(Debug, Clone)]
pub struct History {
    /// Locked for a moment: to add an entry, to find a place, or to copy some handles of frames.
    kept: Arc<Mutex<Kept>>,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Kept {
    entries: VecDeque<Entry>,
    /// The number of the first entry.
    first: u64,
    bytes: usize,
    from: Position,
    to: Position,
    /// Since when nothing is missing, in milliseconds since 1970.
    complete_since: u64,
    last_time: u64,
    /// How many events of the epoch of `to` were dropped already.
    events_before: u64,
}

impl History {
    /// A history of at most so many bytes. Zero keeps nothing.
    pub fn new(max_bytes: usize) -> Self {
        let history = Self { kept: Arc::default(), max_bytes };
        history.forget();
        history
    }

    /// Forgets everything. Where the feed stands is unknown from now on.
    pub fn forget(&self) {
        self.begin(Position::default(), u64::MAX);
        self.lock().last_time = 0;
    }

    /// Whether it keeps anything.
    pub fn is_on(&self) -> bool {
        self.max_bytes > 0
    }

    /// Most bytes that it keeps.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Forgets everything: the feed begins behind `position`, at this time in milliseconds since
    /// 1970.
    pub fn begin(&self, position: Position, time: u64) {
        let mut kept = self.lock();
        let next = kept.end();
        *kept = Kept {
            first: next,
            from: position,
            to: position,
            complete_since: time,
            last_time: time,
            ..Kept::default()
        };
    }

    /// Adds a message. It was received at this time in milliseconds since 1970.
    pub fn push(&self, frame: &Frame, events: u32, position: Position, time: u64) {
        self.add(frame, events, position, time, false);
    }

    /// Adds a notice, which stands behind this position. It has the time of the message before it:
    /// an outage may be noticed long after it began.
    pub fn push_notice(&self, frame: &Frame, position: Position) {
        self.add(frame, 0, position, 0, true);
    }

    fn add(&self, frame: &Frame, events: u32, position: Position, time: u64, notice: bool) {
        let mut kept = self.lock();
        if position.epoch != kept.to.epoch {
            kept.events_before = 0;
        }
        kept.to = position;
        if !self.is_on() {
            kept.from = position;
            return;
        }
        let time = time.max(kept.last_time);
        kept.last_time = time;
        kept.bytes += size(frame);
        kept.entries.push_back(Entry { frame: frame.clone(), position, time, events, notice });
        while kept.bytes > self.max_bytes
            && let Some(gone) = kept.entries.pop_front()
        {
            kept.bytes -= size(&gone.frame);
            kept.first += 1;
            kept.from = gone.position;
            if gone.position.epoch == kept.to.epoch {
                kept.events_before += u64::from(gone.events);
            }
            kept.complete_since = gone.time + 1;
        }
    }

    /// The place of the next entry.
    pub fn end(&self) -> u64 {
        self.lock().end()
    }

    /// Where the feed stands.
    pub fn head(&self) -> Position {
        self.lock().to
    }

    /// The entry with which a subscription begins.
    pub fn find_start(&self, start: Start) -> Lookup {
        match start {
            Start::Live => Lookup::At(self.end()),
            Start::From(position, _) => self.find(position),
            Start::Since(time) => self.since(time),
            Start::Newest(bytes) => {
                Lookup::At(self.newest(usize::try_from(bytes).unwrap_or(usize::MAX)))
            }
        }
    }

    /// The entry behind a position. Notices that stand at the position count as behind it: whoever
    /// names it may have them or not.
    pub fn find(&self, after: Position) -> Lookup {
        let kept = self.lock();
        if after == kept.to && kept.entries.back().is_none_or(|last| !last.notice) {
            return Lookup::At(kept.end());
        }
        if !self.is_on() {
            return Lookup::Gone(kept.end(), Gone::Off);
        }
        if after > kept.to {
            return Lookup::Ahead;
        }
        if after < kept.from {
            let same = after.epoch == kept.from.epoch;
            let why = match same {
                true => Gone::TooOld(Some(kept.from.seq - after.seq)),
                false => Gone::OtherEpoch,
            };
            return Lookup::Gone(kept.first, why);
        }
        let before = |entry: &Entry| (entry.position, entry.notice) <= (after, false);
        Lookup::At(kept.first + kept.entries.partition_point(before) as u64)
    }

    /// The first entry that was received at this time or later, in milliseconds since 1970.
    pub fn since(&self, time: u64) -> Lookup {
        let kept = self.lock();
        if !self.is_on() {
            return Lookup::Gone(kept.end(), Gone::Off);
        }
        if time < kept.complete_since {
            return Lookup::Gone(kept.first, Gone::TooOld(None));
        }
        Lookup::At(kept.first + kept.entries.partition_point(|entry| entry.time < time) as u64)
    }

    /// The first of the newest entries that fit this many bytes together.
    pub fn newest(&self, bytes: usize) -> u64 {
        let kept = self.lock();
        let mut room = bytes;
        let fit = kept.entries.iter().rev().take_while(|entry| {
            let left = room.checked_sub(size(&entry.frame));
            room = left.unwrap_or(0);
            left.is_some()
        });
        kept.end() - fit.count() as u64
    }

    /// Copies the entries from number `at` on to `out`: those that fit about this many bytes, at
    /// least one if there is any. Returns the number of the next entry.
    ///
    /// # Errors
    ///
    /// The entry is gone. The first that there is, and the position before it.
    pub fn read(
        &self,
        at: u64,
        bytes: usize,
        out: &mut Vec<Entry>,
    ) -> Result<u64, (u64, Position)> {
        let kept = self.lock();
        let Some(skipped) = at.checked_sub(kept.first) else {
            return Err((kept.first, kept.from));
        };
        let (mut taken, mut next) = (0, at);
        for entry in kept.entries.range(kept.entries.len().min(skipped as usize)..).take(MAX_READ) {
            taken += entry.frame.bytes().len();
            out.push(entry.clone());
            next += 1;
            if taken >= bytes {
                break;
            }
        }
        Ok(next)
    }

    /// This entry, or the first that there is if it was dropped: its number, the position before
    /// it, and when it was received, in milliseconds since 1970. That is zero of the entry that is
    /// yet to come.
    pub fn place(&self, at: u64) -> (u64, Position, u64) {
        let kept = self.lock();
        let at = at.clamp(kept.first, kept.end());
        let index = (at - kept.first) as usize;
        let before = match index.checked_sub(1) {
            Some(before) => kept.entries[before].position,
            None => kept.from,
        };
        let before = if at == kept.end() { kept.to } else { before };
        (at, before, kept.entries.get(index).map_or(0, |entry| entry.time))
    }

    /// This entry, or the first that there is if it was dropped: its number, the position before
    /// it, and how many events the feed's current epoch has before it. Walks over what is held.
    pub fn count_before(&self, at: u64) -> (u64, Position, u64) {
        let kept = self.lock();
        let at = at.clamp(kept.first, kept.end());
        let index = (at - kept.first) as usize;
        let before = kept.entries.range(..index);
        let position = before.clone().next_back().map_or(kept.from, |entry| entry.position);
        let ours = before.filter(|entry| entry.position.epoch == kept.to.epoch);
        let events: u64 = ours.map(|entry| u64::from(entry.events)).sum();
        (at, position, kept.events_before + events)
    }

    /// What it holds.
    pub fn extent(&self) -> Extent {
        let kept = self.lock();
        Extent {
            bytes: kept.bytes,
            entries: kept.entries.len(),
            from: kept.from,
            to: kept.to,
            oldest: kept.entries.front().map_or(0, |entry| entry.time),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }
}

/// The memory that an entry takes, about.
fn size(frame: &Frame) -> usize {
    frame.bytes().len() + size_of::<Entry>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u64, seq: u64) -> Position {
        Position { epoch, seq }
    }

    fn frame(n: u64) -> Frame {
        Frame::new(n.to_string().as_bytes())
    }

    /// A history of `count` messages of one epoch, each of them `time` ms after the one before.
    fn history(max_entries: usize, count: u64) -> History {
        let history = History::new(max_entries * size(&frame(100)));
        history.begin(at(1, 100), 0);
        for n in 1..=count {
            history.push(&frame(100 + n), 1, at(1, 100 + n), n * 10);
        }
        history
    }

    fn texts(history: &History, from: u64) -> Vec<String> {
        let mut entries = Vec::new();
        history.read(from, usize::MAX, &mut entries).unwrap();
        entries.iter().map(|e| String::from_utf8_lossy(e.frame.text()).into_owned()).collect()
    }

    #[test]
    fn a_place_leads_to_what_came_behind_it() {
        let history = history(10, 4);
        let Lookup::At(from) = history.find(at(1, 102)) else { panic!() };
        assert_eq!(texts(&history, from), ["103", "104"]);
        assert_eq!(history.place(from), (from, at(1, 102), 30));
        assert_eq!(history.find(at(1, 104)), Lookup::At(history.end()));
        assert_eq!(history.find(at(1, 105)), Lookup::Ahead);
        assert_eq!(history.find(at(2, 0)), Lookup::Ahead);
        assert_eq!(history.since(21), history.find(at(1, 102)));
        assert_eq!(history.since(30), history.find(at(1, 102)));
        assert_eq!(history.since(41), Lookup::At(history.end()));
    }

    #[test]
    fn what_is_gone_is_counted() {
        let history = history(3, 10);
        assert_eq!(history.extent().entries, 3);
        let first = history.end() - 3;
        assert_eq!(history.find(at(1, 107)), Lookup::At(first));
        assert_eq!(history.find(at(1, 104)), Lookup::Gone(first, Gone::TooOld(Some(3))));
        assert_eq!(history.find(at(0, 9)), Lookup::Gone(first, Gone::OtherEpoch));
        assert_eq!(history.since(70), Lookup::Gone(first, Gone::TooOld(None)));
        assert_eq!(history.since(71), Lookup::At(first));
        assert_eq!(history.read(first - 1, 1, &mut Vec::new()), Err((first, at(1, 107))));
        assert_eq!(history.place(first - 1), (first, at(1, 107), 80));
        assert_eq!(history.place(history.end()), (history.end(), at(1, 110), 0));
    }

    #[test]
    fn events_of_an_epoch_are_counted_whether_they_are_held_or_not() {
        let history = history(3, 10);
        let first = history.end() - 3;
        assert_eq!(history.count_before(0), (first, at(1, 107), 7));
        assert_eq!(history.count_before(first + 2), (first + 2, at(1, 109), 9));
        assert_eq!(history.count_before(u64::MAX), (first + 3, at(1, 110), 10));
        history.push(&frame(1), 5, at(2, 1), 200);
        assert_eq!(history.count_before(u64::MAX), (first + 4, at(2, 1), 5));
        assert_eq!(history.count_before(0), (first + 1, at(1, 108), 0));
        for n in 2..=9 {
            history.push(&frame(n), 5, at(2, n), 200);
        }
        assert_eq!(history.count_before(0), (history.end() - 3, at(2, 6), 30));
    }

    #[test]
    fn notices_stand_between_messages() {
        let history = history(10, 2);
        history.push_notice(&Frame::new(b"notice"), at(1, 102));
        history.push(&frame(103), 1, at(1, 103), 30);
        let Lookup::At(from) = history.find(at(1, 102)) else { panic!() };
        assert_eq!(texts(&history, from), ["notice", "103"]);
        assert_eq!(history.place(from + 1), (from + 1, at(1, 102), 30));
        let Lookup::At(from) = history.find(at(1, 101)) else { panic!() };
        assert_eq!(texts(&history, from), ["102", "notice", "103"]);
    }

    #[test]
    fn a_later_epoch_follows_the_one_before() {
        let history = history(10, 2);
        history.push_notice(&Frame::new(b"restarted"), at(5, 0));
        history.push(&frame(1), 1, at(5, 1), 30);
        let Lookup::At(from) = history.find(at(1, 101)) else { panic!() };
        assert_eq!(texts(&history, from), ["102", "restarted", "1"]);
        // Another proxy had more of that epoch.
        let Lookup::At(from) = history.find(at(1, 200)) else { panic!() };
        assert_eq!(texts(&history, from), ["restarted", "1"]);
    }

    #[test]
    fn the_newest_bytes_are_whole_entries() {
        let history = history(10, 5);
        let one = size(&frame(100));
        for (bytes, entries) in [(0, 0), (one - 1, 0), (one, 1), (3 * one + 1, 3), (99 * one, 5)] {
            assert_eq!(history.end() - history.newest(bytes), entries);
        }
    }

    #[test]
    fn without_room_only_the_place_is_known() {
        let history = history(0, 5);
        assert_eq!((history.head(), history.extent().entries), (at(1, 105), 0));
        assert_eq!(history.find(at(1, 104)), Lookup::Gone(history.end(), Gone::Off));
        assert_eq!(history.find(at(1, 105)), Lookup::At(history.end()));
        assert_eq!(history.since(0), Lookup::Gone(history.end(), Gone::Off));
    }

    #[test]
    fn numbers_of_entries_go_on_after_a_new_beginning() {
        let history = history(10, 3);
        let end = history.end();
        history.begin(at(2, 7), 0);
        assert_eq!((history.end(), history.head()), (end, at(2, 7)));
        assert_eq!(history.find(at(1, 103)), Lookup::Gone(end, Gone::OtherEpoch));
        assert!(history.read(0, 1, &mut Vec::new()).is_err());
    }
}
