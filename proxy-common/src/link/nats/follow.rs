//! Makes of the messages of a market's stream what a session with the firehose itself would read:
//! its frames, what it says about positions, and a `gap` wherever something is missing. Pure.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::Deserialize;

use crate::{
    nats::Head,
    protocol::{Gone, MarkKind, Notice, Outage, Position, PositionMark, TierName, demux},
    websocket::{Frame, frames},
};

/// The times of old messages are exact to this many milliseconds.
const TIME_STEP: u64 = 50;
/// How each status of a tier begins. No frame of events does.
const STATUS: &[u8] = br#"[{"ev":"status""#;

/// A message of the stream.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// Its number in the stream.
    pub(super) seq: u64,
    pub(super) head: Head,
    /// Whether it is a state.
    pub(super) is_state: bool,
    pub(super) payload: Bytes,
}

/// How far the feed has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) position: Position,
    /// The events before it in its epoch, those that the firehose lost among them, if known.
    pub(super) events: Option<u64>,
}

/// What was seen so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// Messages of an epoch that was over.
    pub(super) of_old_epochs: u64,
    /// Holes in the stream, as far as they held events.
    pub(super) holes: u64,
    /// The events in them, as far as is known.
    pub(super) lost_events: u64,
}

/// Another run of a firehose has begun. What is wanted has to be asked of it anew, as after a lost
/// connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NewEpoch;

/// Follows a market's stream.
#[derive(Debug)]
pub(super) struct Follower {
    /// Whether to say where the feed stands.
    marks: bool,
    /// Where it began.
    begin: Reached,
    /// The last message taken.
    last: Option<Message>,
    /// Where the feed stands behind all that was taken.
    at: Position,
    /// The number of the next message.
    next: u64,
    /// Whether numbers were missing before the next message.
    hole: bool,
    /// What came up to here is passed over: it was received before.
    passing: Option<Position>,
    /// Messages before this one are old.
    live_from: Option<u64>,
    /// The time that was said last.
    said_time: u64,
    /// The coverage that was passed on last.
    coverage: Bytes,
    /// The outage of the firehose that was passed on and has not ended.
    outage: Option<Outage>,
    out: VecDeque<Frame>,
    pub(super) seen: Seen,
}

/// Where to begin.
#[derive(Debug)]
pub(super) struct Begin {
    /// Whether to say where the feed stands.
    pub(super) marks: bool,
    pub(super) reached: Reached,
    /// Messages behind `reached` that cannot be given any more.
    pub(super) gone: Option<(Gone, Position)>,
    /// When the first message was received.
    pub(super) time: u64,
    /// The number of the first message.
    pub(super) next: u64,
    /// Whether the first message may hold what came before `reached`.
    pub(super) passes: bool,
    /// The newest state.
    pub(super) state: Message,
}

impl Follower {
    /// Begins: yields the state, and where the feed begins.
    pub(super) fn new(begin: Begin) -> Self {
        let Begin { marks, reached, gone, time, next, passes, state } = begin;
        let position = reached.position;
        let mut follower = Self {
            marks,
            begin: reached,
            last: None,
            at: position,
            next,
            hole: false,
            passing: passes.then_some(position),
            live_from: Some(state.seq),
            said_time: time,
            coverage: Bytes::new(),
            outage: None,
            out: VecDeque::new(),
            seen: Seen::default(),
        };
        follower.take_state(&state);
        if marks {
            let gap = gone
                .map(|(why, after)| Notice::gone(TierName::Firehose, why, Some(after), position));
            let resumed = Notice::resumed(TierName::Firehose, position, time, "nothing repeats");
            follower.out.extend(gap.into_iter().chain([resumed]).map(|notice| notice.frame()));
        }
        if next > state.seq {
            follower.say_live(position);
        }
        follower
    }

    /// The next frame of the session.
    pub(super) fn pop(&mut self) -> Option<Frame> {
        self.out.pop_front()
    }

    /// The number of the next message.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// The last message taken.
    pub(super) fn last(&self) -> Option<&Message> {
        self.last.as_ref()
    }

    /// How far the feed has come. Counts what the last message holds.
    pub(super) fn reached(&self) -> Reached {
        let reached = self.last.as_ref().map_or(self.begin, reached_behind);
        match self.passing {
            Some(position) if position > reached.position => {
                Reached { position, events: self.begin.events }
            }
            _ => reached,
        }
    }

    /// Takes a message. Its number is at least [`next`](Self::next).
    ///
    /// # Errors
    ///
    /// A new epoch begins while messages are live. That message is not taken.
    pub(super) fn take(&mut self, message: Message) -> Result<(), NewEpoch> {
        let (seq, head) = (message.seq, message.head);
        self.hole |= seq > self.next;
        self.next = seq + 1;
        if head.position.epoch < self.at.epoch {
            self.seen.of_old_epochs += 1;
            return Ok(());
        }
        let new_epoch = head.position.epoch > self.at.epoch;
        if new_epoch && self.live_from.is_none() {
            return Err(NewEpoch);
        }
        if !new_epoch && self.passing.is_none() && head.position < self.at {
            // A firehose that was disturbed wrote again what is there.
            self.begin = self.reached();
            self.passing = Some(self.at);
        }
        let hole = std::mem::take(&mut self.hole);
        if new_epoch || hole || self.passing.is_some() {
            self.cross(&head, new_epoch);
        }
        if self.live_from.is_some_and(|live_from| seq > live_from) {
            let position = match self.passing {
                Some(position) => position.max(head.position),
                None => head.position,
            };
            self.say_live(position);
        }
        match self.passing {
            Some(_) => self.pass_over(&message),
            None if message.is_state && self.live_from.is_none_or(|live_from| seq == live_from) => {
                self.take_state(&message);
            }
            None if message.is_state => {}
            None => self.take_data(&message),
        }
        if self.live_from == Some(seq) {
            self.say_live(self.passing.unwrap_or(head.position));
        }
        if message.is_state {
            self.at = self.at.max(head.position);
        }
        self.last = Some(message);
        Ok(())
    }

    /// Says what is missing before a message, if anything is.
    fn cross(&mut self, head: &Head, new_epoch: bool) {
        let reached = self.reached();
        let position = head.position;
        if position <= reached.position {
            return;
        }
        self.passing = None;
        let (why, events) = match new_epoch {
            true => (Gone::OtherEpoch, None),
            false => {
                let sum = head.events + head.lost;
                let events = reached.events.map(|events| sum.saturating_sub(events));
                (Gone::TooOld(Some(position.seq - reached.position.seq)), events)
            }
        };
        self.seen.holes += u64::from(!new_epoch);
        self.seen.lost_events += events.unwrap_or(0);
        let gap = Notice::gone(TierName::Firehose, why, Some(reached.position), position);
        let gap = match events {
            Some(events) => gap.counting(events),
            None => gap,
        };
        self.out.push_back(gap.frame());
    }

    fn say_live(&mut self, position: Position) {
        self.live_from = None;
        if self.marks {
            // Without a time: that of the firehose is not known now.
            let live = Notice::live(TierName::Firehose, position, std::time::UNIX_EPOCH);
            self.out.push_back(live.untimed().frame());
        }
    }

    /// Says where the feed stands.
    fn say_position(&mut self, head: &Head) {
        if self.marks && head.time > 0 {
            self.said_time = head.time;
            let mark = Notice::position(TierName::Firehose, head.position, head.time);
            self.out.push_back(mark.frame());
        }
    }

    /// Passes on what has changed since the last state.
    fn take_state(&mut self, state: &Message) {
        let mut outage = None;
        for frame in frames(state.payload.clone()).map_while(Result::ok) {
            match Said::read(frame.text()).first() {
                Some(said) if said.status == "carried" && self.coverage != frame.text() => {
                    self.coverage = frame.shared_text();
                    self.out.push_back(frame);
                }
                Some(said) if said.status == "upstream_down" => {
                    outage = Some(said.outage());
                    if self.outage.is_none() {
                        self.out.push_back(frame);
                    }
                }
                _ => {}
            }
        }
        // No notice ends the first outage of a firehose.
        if let (Some(ended), None) = (&self.outage, &outage) {
            let now = std::time::UNIX_EPOCH + std::time::Duration::from_millis(state.head.time);
            let up = Notice::upstream_up(TierName::Firehose, ended, now.max(ended.from));
            self.out.push_back(up.at(Some(state.head.position)).frame());
        }
        self.outage = outage;
        if self.live_from.is_none() && self.passing.is_none() {
            self.say_position(&state.head);
        }
    }

    fn take_data(&mut self, data: &Message) {
        if self.live_from.is_some() && data.head.time >= self.said_time + TIME_STEP {
            self.say_position(&data.head);
        }
        self.at = data.head.position;
        for frame in frames(data.payload.clone()).map_while(Result::ok) {
            if frame.text().starts_with(STATUS) {
                self.note_outages(frame.text());
                self.at = behind(self.at, &frame).position;
            } else {
                self.at = self.at.next();
            }
            self.out.push_back(frame);
        }
    }

    /// Takes a message of which a part was received before.
    fn pass_over(&mut self, message: &Message) {
        let Some(until) = self.passing else { return };
        let mut position = message.head.position;
        let all = frames(message.payload.clone()).map_while(Result::ok);
        for frame in all.filter(|_| !message.is_state) {
            let is_status = frame.text().starts_with(STATUS);
            position = behind(position, &frame).position;
            if position > until || is_status && position == until {
                self.out.push_back(frame);
            }
        }
        if position >= until {
            self.passing = None;
            self.at = position;
        }
    }

    fn note_outages(&mut self, text: &[u8]) {
        for said in Said::read(text) {
            match &*said.status {
                "upstream_down" => self.outage = Some(said.outage()),
                "upstream_up" => self.outage = None,
                _ => {}
            }
        }
    }
}

/// How far the feed has come with the last frame of a message.
pub(super) fn reached_behind(message: &Message) -> Reached {
    let head = &message.head;
    let (mut position, mut events) = (head.position, head.events + head.lost);
    if !message.is_state {
        for frame in frames(message.payload.clone()).map_while(Result::ok) {
            let reached = behind(position, &frame);
            position = reached.position;
            events += reached.events.unwrap_or(0);
        }
    }
    Reached { position, events: Some(events) }
}

/// How far the feed has come with a frame, and how many events it brings, or says to be lost.
fn behind(before: Position, frame: &Frame) -> Reached {
    let text = frame.text();
    if text.starts_with(STATUS) {
        let gap = Said::read(text).into_iter().find(|said| said.status == "gap");
        let object = std::str::from_utf8(text).unwrap_or_default();
        let mark = PositionMark::read("gap", object.trim_matches(['[', ']']));
        let position = mark.filter(|mark| {
            gap.is_some() && mark.kind == MarkKind::Gap && mark.position.epoch == before.epoch
        });
        let position = position.map_or(before, |mark| mark.position);
        return Reached { position, events: gap.and_then(|gap| gap.events) };
    }
    match demux(frame.clone()) {
        Ok(demuxed) if demuxed.data.is_some() => {
            let events = Some(demuxed.events + demuxed.malformed);
            Reached { position: before.next(), events }
        }
        _ => Reached { position: before, events: None },
    }
}

/// A status of the firehose.
#[derive(Debug, Default, Deserialize)]
struct Said {
    #[serde(default)]
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    from: u64,
    events: Option<u64>,
}

impl Said {
    fn read(text: &[u8]) -> Vec<Self> {
        serde_json::from_slice(text).unwrap_or_default()
    }

    fn outage(&self) -> Outage {
        let from = std::time::UNIX_EPOCH + std::time::Duration::from_millis(self.from);
        Outage { from, reason: self.reason.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARRIED: &str = r#"{"ev":"status","status":"carried","message":"m","tier":"firehose"}"#;
    const DOWN: &str =
        r#"{"ev":"status","status":"upstream_down","message":"m","reason":"r","from":1000}"#;
    const UP: &str = r#"{"ev":"status","status":"upstream_up","message":"m"}"#;

    fn head(epoch: u64, seq: u64, events: u64) -> Head {
        Head { position: Position { epoch, seq }, events, lost: 0, time: 1_000 + seq }
    }

    fn payload(objects: &[&str]) -> Bytes {
        let frames = objects.iter().map(|object| Frame::of_object(object).bytes().to_vec());
        frames.flatten().collect::<Vec<_>>().into()
    }

    fn state(seq: u64, head: Head, objects: &[&str]) -> Message {
        Message { seq, head, is_state: true, payload: payload(objects) }
    }

    /// A message of frames of two events each.
    fn data(seq: u64, head: Head, frames: usize) -> Message {
        let payload = payload(&vec![r#"{"ev":"T"},{"ev":"Q"}"#; frames]);
        Message { seq, head, is_state: false, payload }
    }

    /// Begins behind the state 10 at position 1-5, after 10 events.
    fn live() -> Follower {
        let state = state(10, head(1, 5, 10), &[CARRIED]);
        let reached = Reached { position: state.head.position, events: Some(10) };
        let begin =
            Begin { marks: true, reached, gone: None, time: 7, next: 11, passes: false, state };
        let mut follower = Follower::new(begin);
        assert_eq!(said(&mut follower), ["carried", "resumed 1-5", "live 1-5"]);
        follower
    }

    /// What the follower yields: names of statuses with positions and counts, or `data`.
    fn said(follower: &mut Follower) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(frame) = follower.pop() {
            let values: Vec<serde_json::Value> = serde_json::from_slice(frame.text()).unwrap();
            let value = &values[0];
            let text = |name: &str| match &value[name] {
                serde_json::Value::Null => String::new(),
                serde_json::Value::String(text) => format!(" {text}"),
                other => format!(" {name}={other}"),
            };
            all.push(match value["ev"].as_str() {
                Some("status") => {
                    let position = text("position") + &text("frames") + &text("events");
                    format!("{}{position}", value["status"].as_str().unwrap())
                }
                _ => "data".to_owned(),
            });
        }
        all
    }

    #[test]
    fn messages_in_order_are_passed_on() {
        let mut follower = live();
        follower.take(data(11, head(1, 5, 10), 2)).unwrap();
        follower.take(state(12, head(1, 7, 14), &[CARRIED])).unwrap();
        assert_eq!(said(&mut follower), ["data", "data", "position 1-7"]);
        let reached = Reached { position: Position { epoch: 1, seq: 7 }, events: Some(14) };
        assert_eq!((follower.reached(), follower.next()), (reached, 13));
    }

    #[test]
    fn a_hole_says_exactly_what_it_held() {
        let mut follower = live();
        follower.take(data(11, head(1, 5, 10), 2)).unwrap();
        follower.take(data(20, head(1, 17, 40), 1)).unwrap();
        assert_eq!(said(&mut follower), ["data", "data", "gap 1-17 frames=10 events=26", "data"]);
        // Only states were in it.
        follower.take(state(30, head(1, 18, 42), &[CARRIED])).unwrap();
        assert_eq!(said(&mut follower), ["position 1-18"]);
        assert_eq!(follower.seen, Seen { of_old_epochs: 0, holes: 1, lost_events: 26 });
    }

    #[test]
    fn another_epoch_ends_a_live_session_before_it_is_taken() {
        let mut follower = live();
        follower.take(data(11, head(1, 5, 10), 1)).unwrap();
        let opening = state(12, head(2, 0, 0), &[CARRIED, DOWN]);
        assert_eq!(follower.take(opening), Err(NewEpoch));
        assert_eq!(said(&mut follower), ["data"]);
        let reached = Reached { position: Position { epoch: 1, seq: 6 }, events: Some(12) };
        assert_eq!((follower.reached(), follower.last().unwrap().seq), (reached, 11));
    }

    #[test]
    fn a_session_that_catches_up_crosses_into_another_epoch() {
        let state = state(13, head(2, 0, 0), &[CARRIED, DOWN]);
        let reached = Reached { position: Position { epoch: 1, seq: 5 }, events: Some(10) };
        let begin =
            Begin { marks: true, reached, gone: None, time: 7, next: 11, passes: false, state };
        let mut follower = Follower::new(begin);
        follower.take(data(11, head(1, 5, 10), 1)).unwrap();
        follower.take(self::state(12, head(2, 0, 0), &[CARRIED, DOWN])).unwrap();
        follower.take(self::state(13, head(2, 0, 0), &[CARRIED, DOWN])).unwrap();
        let begun = ["carried", "upstream_down", "resumed 1-5", "position 1-5"];
        let crossed = ["data", "gap 2-0", "live 2-0"];
        assert_eq!(said(&mut follower), [&begun[..], &crossed[..]].concat());
        follower.take(data(14, head(1, 6, 12), 1)).unwrap();
        assert_eq!((said(&mut follower), follower.seen.of_old_epochs), (vec![], 1));
        follower.take(data(15, head(2, 0, 0), 1)).unwrap();
        // No notice ended its first outage.
        follower.take(self::state(16, head(2, 1, 2), &[CARRIED])).unwrap();
        assert_eq!(said(&mut follower), ["data", "upstream_up 2-1", "position 2-1"]);
    }

    #[test]
    fn notices_in_the_data_change_the_outage() {
        let mut follower = live();
        let notices =
            Message { seq: 11, head: head(1, 5, 10), is_state: false, payload: payload(&[DOWN]) };
        follower.take(notices.clone()).unwrap();
        follower.take(state(12, head(1, 5, 10), &[CARRIED, DOWN])).unwrap();
        follower.take(Message { seq: 13, payload: payload(&[UP]), ..notices }).unwrap();
        follower.take(state(14, head(1, 5, 10), &[CARRIED])).unwrap();
        assert_eq!(
            said(&mut follower),
            ["upstream_down", "position 1-5", "upstream_up", "position 1-5"]
        );
    }

    #[test]
    fn a_session_that_resumes_passes_over_what_it_has() {
        let state = state(12, head(1, 9, 18), &[CARRIED]);
        let reached = Reached { position: Position { epoch: 1, seq: 6 }, events: None };
        let begin =
            Begin { marks: true, reached, gone: None, time: 7, next: 10, passes: true, state };
        let mut follower = Follower::new(begin);
        follower.take(data(10, head(1, 5, 10), 2)).unwrap();
        follower.take(data(11, head(1, 7, 14), 2)).unwrap();
        follower.take(self::state(12, head(1, 9, 18), &[CARRIED])).unwrap();
        let expected =
            ["carried", "resumed 1-6", "data", "position 1-7", "data", "data", "live 1-9"];
        assert_eq!(said(&mut follower), expected);
    }

    #[test]
    fn a_stream_that_lags_what_the_session_has_is_passed_over_until_then() {
        let state = state(2, head(1, 2, 4), &[CARRIED]);
        let reached = Reached { position: Position { epoch: 1, seq: 4 }, events: None };
        let begin =
            Begin { marks: true, reached, gone: None, time: 7, next: 2, passes: true, state };
        let mut follower = Follower::new(begin);
        follower.take(self::state(2, head(1, 2, 4), &[CARRIED])).unwrap();
        follower.take(data(3, head(1, 2, 4), 1)).unwrap();
        follower.take(self::state(4, head(1, 3, 6), &[CARRIED])).unwrap();
        follower.take(data(5, head(1, 3, 6), 2)).unwrap();
        follower.take(self::state(6, head(1, 5, 10), &[CARRIED])).unwrap();
        let expected = ["carried", "resumed 1-4", "live 1-4", "data", "position 1-5"];
        assert_eq!(said(&mut follower), expected);
    }

    #[test]
    fn what_is_missing_at_once_is_said_before_data_is_live() {
        let state = state(12, head(1, 9, 18), &[CARRIED]);
        let reached = Reached { position: Position { epoch: 1, seq: 6 }, events: Some(12) };
        let begin =
            Begin { marks: true, reached, gone: None, time: 7, next: 10, passes: false, state };
        let mut follower = Follower::new(begin);
        follower.take(data(15, head(1, 10, 20), 1)).unwrap();
        let expected =
            ["carried", "resumed 1-6", "gap 1-10 frames=4 events=8", "live 1-10", "data"];
        assert_eq!(said(&mut follower), expected);
    }

    #[test]
    fn what_is_written_again_is_passed_over() {
        let mut follower = live();
        follower.take(data(11, head(1, 5, 10), 3)).unwrap();
        // From where that message began, and from before it.
        follower.take(state(12, head(1, 5, 10), &[CARRIED])).unwrap();
        follower.take(data(13, head(1, 5, 10), 2)).unwrap();
        follower.take(state(14, head(1, 4, 8), &[CARRIED])).unwrap();
        follower.take(data(15, head(1, 4, 8), 2)).unwrap();
        assert_eq!(said(&mut follower), ["data", "data", "data"]);
        follower.take(data(16, head(1, 6, 12), 4)).unwrap();
        assert_eq!(said(&mut follower), ["data", "data"]);
        let reached = Reached { position: Position { epoch: 1, seq: 10 }, events: Some(20) };
        assert_eq!(follower.reached(), reached);
        follower.take(state(17, head(1, 10, 20), &[CARRIED])).unwrap();
        assert_eq!(said(&mut follower), ["position 1-10"]);
        assert_eq!(follower.seen, Seen::default());
    }

    #[test]
    fn without_marks_only_losses_are_said() {
        let state = state(10, head(1, 5, 10), &[CARRIED]);
        let reached = Reached { position: state.head.position, events: Some(10) };
        let begin =
            Begin { marks: false, reached, gone: None, time: 7, next: 11, passes: false, state };
        let mut follower = Follower::new(begin);
        follower.take(data(11, head(1, 5, 10), 1)).unwrap();
        follower.take(self::state(12, head(1, 6, 12), &[CARRIED])).unwrap();
        follower.take(data(14, head(1, 7, 14), 1)).unwrap();
        let expected = ["carried", "data", "gap 1-7 frames=1 events=2", "data"];
        assert_eq!(said(&mut follower), expected);
    }
}
