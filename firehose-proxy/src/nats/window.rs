//! What the writer has sent and NATS has not acknowledged, and how it goes on after a disturbance.
//! Pure.
//!
//! A message that is sent again goes with the same bytes to the same place in the stream. So it
//! does not matter how often, or how late, an earlier copy of it arrives: the server refuses it,
//! or it is the message that belongs there.
//!
//! That holds while nobody else writes. A message of somebody else moves the stream's sequence, and
//! then copies under way may fit a place that is not theirs. So whoever begins writes more messages
//! without expectation than a window holds ([`OPENING`]): after these no copy under way fits
//! any more, neither one's own nor that of another firehose.
//!
//! A single message of a stranger, which only a user with the rights of a firehose can store, may
//! still cost the beginning of a burst under way. The heads then say exactly how many events are
//! missing.

use std::collections::VecDeque;

use bytes::Bytes;
use proxy_common::{nats::Head, protocol::Position};

/// Most messages that wait for an acknowledgement. What cannot be sent meanwhile is joined later.
pub(super) const MAX_MESSAGES: usize = 256;
/// The same in bytes. The last message may exceed it.
pub(super) const MAX_BYTES: usize = 8 << 20;
/// How many messages open an epoch.
pub(super) const OPENING: usize = MAX_MESSAGES + 1;

/// The subject of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Data,
    State,
}

/// Where a writer stands.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// The number of the next entry of the history.
    pub(super) entry: u64,
    /// Where the feed stands before it.
    pub(super) position: Position,
    /// Events of the epoch that were written.
    pub(super) events: u64,
    /// Events of the epoch that the history dropped before they could be written.
    pub(super) lost: u64,
    /// When the last message of events was received, in milliseconds since 1970.
    pub(super) time: u64,
}

impl Progress {
    /// The head of a message of which `last` is the time.
    pub(super) fn head(&self, last: u64) -> Head {
        Head { position: self.position, events: self.events, lost: self.lost, time: last }
    }
}

/// A message that was sent.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    /// Its place in the stream.
    pub(super) seq: u64,
    pub(super) subject: Subject,
    pub(super) head: Head,
    pub(super) payload: Bytes,
    /// Where the writer stands behind it.
    pub(super) after: Progress,
}

/// The messages without an acknowledgement, and the last one with.
#[derive(Debug)]
pub(super) struct Window {
    /// The place of the last message acknowledged.
    stored: u64,
    stored_head: Head,
    stored_after: Progress,
    sent: VecDeque<Sent>,
    bytes: usize,
}

/// The last message of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) seq: u64,
    /// `None` if it has none that can be read.
    pub(super) head: Option<Head>,
}

/// The end of the stream.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    /// The last sequence, of whatever message. It was read before the two.
    pub(super) seq: u64,
    pub(super) data: Option<Last>,
    pub(super) state: Option<Last>,
}

impl Tail {
    /// The last sequence that is known of.
    pub(super) fn end(&self) -> u64 {
        let lasts = [self.data, self.state].into_iter().flatten().map(|last| last.seq);
        lasts.fold(self.seq, u64::max)
    }
}

/// How a writer goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// A later epoch is there: it never writes again in its own.
    Fenced(u64),
    /// Its message is the last. What follows it in the window is sent again.
    GoOn(u64),
    /// It opens its epoch, from here.
    Open(From),
}

/// Where an opening leads on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// Where the epoch begins: nothing of it is in the stream.
    Beginning,
    /// Here.
    Progress(Progress),
    /// Behind the message of data at this place, whose head this is.
    Message(u64, Head),
    /// Behind the last of its own messages that is still there. Messages of others may follow it,
    /// and the end of the stream may be lost.
    OwnLast,
}

/// Decides how a writer of this epoch goes on at this tail. `window` is `None` before it has opened
/// its epoch.
pub(super) fn decide(epoch: u64, tail: &Tail, window: Option<&Window>) -> Decision {
    let lasts = || [tail.data, tail.state].into_iter().flatten();
    let epochs = lasts().filter_map(|last| Some(last.head?.position.epoch));
    if let Some(later) = epochs.max().filter(|highest| *highest > epoch) {
        return Decision::Fenced(later);
    }
    let ours = |last: &Last| last.head.filter(|head| head.position.epoch == epoch);
    let Some(window) = window else {
        return match tail.data.and_then(|last| Some((last.seq, ours(&last)?))) {
            Some((seq, head)) => Decision::Open(From::Message(seq, head)),
            None => Decision::Open(From::Beginning),
        };
    };
    // Messages of ours may be stored while the end is read: those of a connection that was lost
    // before the server had read all of it.
    let is_in_window = |last: &Last| ours(last).is_some_and(|head| window.is_at(last.seq, &head));
    let since = || lasts().filter(|last| last.seq >= window.stored().0);
    let end = since().map(|last| last.seq).max().filter(|end| *end >= tail.seq);
    if let Some(end) = end.filter(|_| since().all(|last| is_in_window(&last))) {
        return Decision::GoOn(end);
    }
    let newest = lasts().filter_map(|last| Some((last.seq, ours(&last)?))).max_by_key(|own| own.0);
    Decision::Open(match newest.and_then(|(seq, head)| window.after(seq, &head)) {
        Some(progress) => From::Progress(progress),
        None => From::OwnLast,
    })
}

impl Window {
    /// An empty one. The last message of the opening is stored at `seq`.
    pub(super) fn new(seq: u64, head: Head, progress: Progress) -> Self {
        Self {
            stored: seq,
            stored_head: head,
            stored_after: progress,
            sent: VecDeque::new(),
            bytes: 0,
        }
    }

    /// The place of the next message.
    pub(super) fn next_seq(&self) -> u64 {
        self.stored + self.sent.len() as u64 + 1
    }

    /// Where the writer stands behind the last message sent.
    pub(super) fn progress(&self) -> Progress {
        self.sent.back().map_or(self.stored_after, |last| last.after)
    }

    /// Where it stands behind the last message acknowledged, and the place of that.
    pub(super) fn stored(&self) -> (u64, Progress) {
        (self.stored, self.stored_after)
    }

    /// How many messages wait for an acknowledgement.
    pub(super) fn len(&self) -> usize {
        self.sent.len()
    }

    /// Whether one more message may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.sent.len() < MAX_MESSAGES && self.bytes < MAX_BYTES
    }

    /// The messages sent, in order.
    pub(super) fn sent(&self) -> impl DoubleEndedIterator<Item = &Sent> {
        self.sent.iter()
    }

    /// Adds a message that is sent.
    pub(super) fn push(&mut self, sent: Sent) {
        debug_assert_eq!(sent.seq, self.next_seq());
        self.bytes += sent.payload.len();
        self.sent.push_back(sent);
    }

    /// Everything up to this place is stored. Returns how many messages and bytes that concerns.
    pub(super) fn acknowledge(&mut self, seq: u64) -> (u64, u64) {
        let (mut messages, mut bytes) = (0, 0);
        while self.sent.front().is_some_and(|sent| sent.seq <= seq)
            && let Some(sent) = self.sent.pop_front()
        {
            self.bytes -= sent.payload.len();
            messages += 1;
            bytes += sent.payload.len() as u64;
            (self.stored, self.stored_head) = (sent.seq, sent.head);
            self.stored_after = sent.after;
        }
        (messages, bytes)
    }

    /// Whether the message with this head at this place is the last one acknowledged, or one that
    /// was sent since.
    pub(super) fn is_at(&self, seq: u64, head: &Head) -> bool {
        self.after(seq, head).is_some()
    }

    /// Where the writer stands behind that message, if it is.
    pub(super) fn after(&self, seq: u64, head: &Head) -> Option<Progress> {
        if seq == self.stored {
            return (self.stored_head == *head).then_some(self.stored_after);
        }
        let index = usize::try_from(seq.checked_sub(self.stored + 1)?).ok()?;
        let sent = self.sent.get(index)?;
        (sent.head == *head).then_some(sent.after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: u64 = 7;

    fn progress(seq: u64) -> Progress {
        let position = Position { epoch: EPOCH, seq };
        Progress { entry: 100 + seq, position, events: 10 * seq, ..Progress::default() }
    }

    fn head(epoch: u64, seq: u64) -> Head {
        Head { position: Position { epoch, seq }, events: 10 * seq, lost: 0, time: 5 }
    }

    /// A window whose opening is stored at 1,000: messages of one frame each follow it.
    fn window(messages: u64) -> Window {
        let mut window = Window::new(1_000, head(EPOCH, 0), progress(0));
        for n in 0..messages {
            window.push(Sent {
                seq: window.next_seq(),
                subject: Subject::Data,
                head: head(EPOCH, n),
                payload: Bytes::from_static(b"frame"),
                after: progress(n + 1),
            });
        }
        window
    }

    fn last(seq: u64, head: Head) -> Option<Last> {
        Some(Last { seq, head: Some(head) })
    }

    #[test]
    fn a_later_epoch_fences_whatever_else_is_there() {
        for tail in [
            Tail { seq: 9, data: last(9, head(8, 0)), state: None },
            Tail { seq: 9, data: last(9, head(EPOCH, 3)), state: last(8, head(9, 0)) },
            Tail { seq: 1_002, data: last(1_002, head(EPOCH, 1)), state: last(5, head(8, 0)) },
        ] {
            for window in [None, Some(&window(3))] {
                assert!(matches!(decide(EPOCH, &tail, window), Decision::Fenced(8 | 9)));
            }
        }
    }

    #[test]
    fn a_new_writer_opens_its_epoch() {
        let beginning = Decision::Open(From::Beginning);
        assert_eq!(decide(EPOCH, &Tail::default(), None), beginning);
        let earlier = last(50, head(6, 99));
        let tail = Tail { seq: 50, data: earlier, state: last(49, head(6, 98)) };
        assert_eq!(decide(EPOCH, &tail, None), beginning);
        let foreign = Some(Last { seq: 51, head: None });
        let tail = Tail { seq: 51, data: foreign, state: None };
        assert_eq!(decide(EPOCH, &tail, None), beginning);
    }

    #[test]
    fn a_writer_goes_on_behind_its_own_last_message() {
        let window = window(3);
        for (seq, data, state) in [
            (1_000, None, last(1_000, head(EPOCH, 0))),
            (1_002, last(1_002, head(EPOCH, 1)), last(1_000, head(EPOCH, 0))),
            (1_003, last(1_003, head(EPOCH, 2)), None),
        ] {
            let tail = Tail { seq, data, state };
            assert_eq!(decide(EPOCH, &tail, Some(&window)), Decision::GoOn(seq));
        }
    }

    #[test]
    fn a_writer_goes_on_while_its_own_messages_are_still_being_stored() {
        let window = window(3);
        for (data, state, end) in [
            (last(1_003, head(EPOCH, 2)), last(1_000, head(EPOCH, 0)), 1_003),
            (last(1_003, head(EPOCH, 2)), last(990, head(EPOCH, 0)), 1_003),
            (last(1_002, head(EPOCH, 1)), last(1_003, head(EPOCH, 2)), 1_003),
        ] {
            let tail = Tail { seq: 1_001, data, state };
            assert_eq!(tail.end(), end);
            assert_eq!(decide(EPOCH, &tail, Some(&window)), Decision::GoOn(end));
        }
        // A message of another firehose among them.
        let tail =
            Tail { seq: 1_001, data: last(1_003, head(EPOCH, 2)), state: last(1_001, head(6, 5)) };
        let open = Decision::Open(From::Progress(progress(3)));
        assert_eq!(decide(EPOCH, &tail, Some(&window)), open);
    }

    #[test]
    fn whatever_another_has_written_makes_it_open_again_from_where_it_stood() {
        let window = window(3);
        let ours = last(1_002, head(EPOCH, 1));
        let from = Decision::Open(From::Progress(progress(2)));
        // A firehose that was stopped in the middle of its opening, and a message without a head.
        let late = last(1_300, head(6, 5));
        let foreign = Some(Last { seq: 1_003, head: None });
        for (seq, state) in
            [(1_300, late), (1_003, foreign), (1_003, None), (1_003, last(990, head(EPOCH, 0)))]
        {
            let tail = Tail { seq, data: ours, state };
            assert_eq!(decide(EPOCH, &tail, Some(&window)), from);
        }
        let tail = Tail { seq: 1_003, data: last(1_003, head(6, 9)), state: None };
        assert_eq!(decide(EPOCH, &tail, Some(&window)), Decision::Open(From::OwnLast));
        assert_eq!(decide(EPOCH, &Tail::default(), Some(&window)), Decision::Open(From::OwnLast));
    }

    #[test]
    fn a_lost_end_of_the_stream_is_written_again() {
        let mut window = window(200);
        assert_eq!(window.acknowledge(1_150), (150, 750));
        let tail = Tail { seq: 1_100, data: last(1_100, head(EPOCH, 99)), state: None };
        assert_eq!(decide(EPOCH, &tail, Some(&window)), Decision::Open(From::OwnLast));
    }

    #[test]
    fn a_message_of_the_same_place_with_another_head_is_not_ours() {
        let window = window(3);
        let tail = Tail { seq: 1_002, data: last(1_002, head(EPOCH, 2)), state: None };
        assert_eq!(decide(EPOCH, &tail, Some(&window)), Decision::Open(From::OwnLast));
    }

    #[test]
    fn a_window_is_bounded_and_counts_what_is_stored() {
        let mut window = window(MAX_MESSAGES as u64);
        assert!(!window.has_room());
        assert_eq!(window.acknowledge(1_000), (0, 0));
        assert_eq!(window.acknowledge(1_010), (10, 50));
        assert_eq!((window.stored(), window.len()), ((1_010, progress(10)), MAX_MESSAGES - 10));
        assert!(window.has_room() && window.next_seq() == 1_001 + MAX_MESSAGES as u64);
        assert_eq!(window.sent().next().map(|sent| sent.seq), Some(1_011));
        assert_eq!(window.acknowledge(u64::MAX).0, MAX_MESSAGES as u64 - 10);
        assert_eq!(window.progress(), progress(MAX_MESSAGES as u64));
    }
}
