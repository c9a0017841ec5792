//! The ring: gives the same frame to every session, with a cursor for each reader.
//!
//! The ring is a tokio broadcast channel, which bounds messages. To bound bytes as well, a long
//! message takes more than one slot: empty slots follow it and push out older messages.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use proxy_common::{
    history::{History, ReceiptTime},
    metrics::Level,
    protocol::{Channel, Gone, Notice, Outage, Position, TierName},
    websocket::Frame,
};
use tokio::{
    sync::{
        Notify,
        broadcast::{self, error::RecvError, error::TryRecvError},
    },
    time::Instant,
};

/// A message in the ring.
#[derive(Debug, Clone)]
pub struct Published {
    /// The frame; empty for a control message.
    pub frame: Frame,
    /// How many events it holds.
    pub events: u32,
    /// The kind of message.
    pub content: Content,
    /// When its last bytes were read from upstream, or when it was published.
    pub read_at: Instant,
    /// How much was published before it since the start. A reader derives from it how much it
    /// missed.
    before: Total,
    /// When the last message of events was received, itself included.
    received: u64,
}

/// The content of a message.
#[derive(Debug, Clone)]
pub enum Content {
    /// Events of the upstream.
    Data,
    /// A notice of a tier.
    Notice,
    /// Control message: events may be missing from now on.
    Down(Outage),
    /// Control message: since this time, the upstream delivers every channel wanted before it.
    Complete(SystemTime),
    /// Control message: the vendor's refusals have changed, or are complete.
    EntitlementsChanged,
    /// Control message: the vendor has answered for these contracts.
    Contracts(Arc<[Channel]>),
    /// A new epoch begins. The message's frame is the notice of it.
    Epoch(u64),
}

impl Published {
    /// How many messages were published before it since the start.
    pub fn position(&self) -> u64 {
        self.before.messages
    }

    /// Where the feed stands before it.
    pub fn feed_position(&self) -> Position {
        self.before.position()
    }

    /// Whether it was published during an outage, according to the control messages before it.
    pub fn is_in_outage(&self) -> bool {
        self.before.down > self.before.complete
    }

    /// The position of the last [`Content::Complete`] before it, if there was any.
    pub fn last_complete(&self) -> Option<u64> {
        self.before.complete.checked_sub(1)
    }
}

/// How much was published.
#[derive(Debug, Default, Clone, Copy)]
struct Total {
    messages: u64,
    events: u64,
    /// The current epoch.
    epoch: u64,
    /// Messages of events in this epoch.
    frames: u64,
    /// The number of the first entry of the history that belongs to this epoch.
    epoch_entry: u64,
    /// Entries of the history.
    entries: u64,
    /// When the last message of events was received, in milliseconds since 1970.
    received: u64,
    /// How many messages there were with the last [`Content::Down`], itself included.
    down: u64,
    /// The same for [`Content::Complete`].
    complete: u64,
}

impl Total {
    fn position(&self) -> Position {
        Position { epoch: self.epoch, seq: self.frames }
    }
}

/// One slot of the ring.
#[derive(Debug, Clone)]
enum Slot {
    Message(Published),
    /// Belongs to the long message before it.
    Empty,
}

/// The writing side. Publishing never waits for a reader.
#[derive(Debug)]
pub struct Ring {
    readers: Readers,
    /// A longer message takes more than one slot.
    slot_bytes: usize,
    received: ReceiptTime,
    /// Whom to wake with each message, if anybody.
    wake: Option<Arc<Wake>>,
}

/// Wakes the one who reads the history as it grows.
#[derive(Debug, Default)]
pub struct Wake {
    /// Notified of each message.
    pub published: Notify,
    /// How many messages were no data.
    pub others: AtomicU64,
}

/// Creates readers for sessions. Can be cloned.
#[derive(Debug, Clone)]
pub struct Readers {
    ring: broadcast::Sender<Slot>,
    slots: usize,
    /// Locked while the ring or its readers change, so that each reader knows exactly which
    /// messages it is owed.
    published: Arc<Mutex<Total>>,
    unread: Level,
    history: History,
}

/// One session's cursor.
#[derive(Debug)]
pub struct Reader {
    ring: broadcast::Receiver<Slot>,
    published: Arc<Mutex<Total>>,
    /// The reader has read or missed everything published up to here.
    seen: Total,
    /// How many of the events seen the gauge of unread events still counts.
    unreported: u64,
    unread: Level,
}

/// Events that a reader had yet to read when it left. They count as unread until they are taken.
#[derive(Debug)]
pub struct Unread {
    events: u64,
    gauge: Level,
}

impl Unread {
    /// Takes this many of them, or all if there are fewer. Returns how many.
    pub fn take(&mut self, events: u64) -> u64 {
        let taken = events.min(self.events);
        self.events -= taken;
        self.gauge.dec_by(taken as i64);
        taken
    }
}

/// The next item of a reader.
#[derive(Debug)]
pub enum Next {
    /// The next message.
    Message(Published),
    /// The next message, after others that the ring has overwritten.
    Gap {
        /// How many messages are lost.
        frames: u64,
        /// How many events they held.
        events: u64,
        /// Where the feed stood before them.
        after: Position,
        /// The message after them.
        then: Published,
    },
}

/// How a published message was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// How many events it holds, by the ring's own total.
    pub events: u64,
    /// How many readers get it.
    pub readers: u64,
}

impl Ring {
    /// Creates a ring for this many messages, rounded up to a power of two, and this many bytes in
    /// all. It always holds one message, whatever its size. A reader that lags further loses the
    /// oldest messages. Only the ring and its readers write `unread`, the gauge of unread events.
    ///
    /// What is published also goes into the history. The first epoch is the time of this call, in
    /// microseconds since 1970.
    pub fn new(messages: usize, bytes: usize, unread: Level, history: History) -> Self {
        let slots = messages.next_power_of_two();
        let (ring, _) = broadcast::channel(slots);
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let epoch = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        history.begin(Position { epoch, seq: 0 }, epoch / 1_000);
        let published = Arc::new(Mutex::new(Total { epoch, ..Total::default() }));
        let readers = Readers { ring, slots, published, unread, history };
        Self {
            readers,
            slot_bytes: (bytes / slots).max(1),
            received: ReceiptTime::default(),
            wake: None,
        }
    }

    /// Creates readers.
    pub fn readers(&self) -> Readers {
        self.readers.clone()
    }

    /// Wakes somebody with each message from now on.
    pub fn wake_with(&mut self, wake: Arc<Wake>) {
        self.wake = Some(wake);
    }

    /// Publishes events to every current reader.
    pub fn publish(&mut self, frame: Frame, events: u32, read_at: Instant) -> Receipt {
        self.send(frame, events, Content::Data, read_at, None)
    }

    /// Publishes a notice to every current reader.
    pub fn notify(&mut self, notice: Notice) {
        self.signal(Content::Notice, Some(notice));
    }

    /// Publishes a notice of the upstream to every current reader.
    pub fn forward(&mut self, notice: Frame) {
        self.send(notice, 0, Content::Notice, Instant::now(), None);
    }

    /// Publishes a control message to every current reader.
    pub fn control(&mut self, content: Content) {
        self.signal(content, None);
    }

    /// Publishes that events may be missing from now on.
    pub fn down(&mut self, outage: Outage) {
        let notice = Notice::upstream_down(TierName::Firehose, &outage);
        self.signal(Content::Down(outage), Some(notice));
    }

    /// Publishes that, from now on, the upstream delivers every channel wanted. `outage` is the one
    /// that ends.
    pub fn complete(&mut self, outage: Option<Outage>) {
        let now = SystemTime::now();
        let total = *lock(&self.readers.published);
        // The first outage began before the ring, and nobody was here then.
        let ended = outage.filter(|_| total.down > total.complete);
        let notice = ended.map(|outage| Notice::upstream_up(TierName::Firehose, &outage, now));
        self.signal(Content::Complete(now), notice);
    }

    /// Begins this epoch, unless the current one is as late: positions grow. Readers get a notice
    /// that everything from here on belongs to another epoch, and so do replays. Returns the epoch
    /// in force.
    pub fn begin_anew(&mut self, epoch: u64) -> u64 {
        let current = lock(&self.readers.published).epoch;
        if epoch > current {
            self.control(Content::Epoch(epoch));
        }
        epoch.max(current)
    }

    /// How much a reader has read once it has read the next message to be published.
    pub fn after_next(&self) -> u64 {
        lock(&self.readers.published).messages + 1
    }

    /// Publishes a message without events, now.
    fn signal(&mut self, content: Content, notice: Option<Notice>) {
        self.send(Frame::new(b""), 0, content, Instant::now(), notice);
    }

    /// Publishes a message. First adds a notice to the history, where the feed stands; it is the
    /// frame of a message that is a notice.
    fn send(
        &mut self,
        mut frame: Frame,
        events: u32,
        content: Content,
        read_at: Instant,
        notice: Option<Notice>,
    ) -> Receipt {
        // Locked once, so that no reader begins between the history and the ring.
        let mut published = lock(&self.readers.published);
        if let Some(notice) = notice {
            let position = published.position();
            let notice = notice.at(Some(position)).frame();
            published.entries += 1;
            self.readers.history.push_notice(&notice, position);
            if matches!(content, Content::Notice) {
                frame = notice;
            }
        }
        let bytes = frame.bytes().len();
        let is_data = matches!(content, Content::Data);
        let before = *published;
        published.messages += 1;
        match content {
            Content::Down(_) => published.down = published.messages,
            Content::Complete(_) => published.complete = published.messages,
            Content::Data => {
                published.frames += 1;
                published.entries += 1;
                let position = published.position();
                let time = self.received.of(read_at);
                published.received = time;
                self.readers.history.push(&frame, events, position, time);
            }
            Content::Epoch(epoch) => {
                (published.epoch, published.frames) = (epoch, 0);
                let (after, position) = (before.position(), published.position());
                let notice =
                    Notice::gone(TierName::Firehose, Gone::OtherEpoch, Some(after), position);
                frame = notice.frame();
                self.readers.history.push_notice(&frame, position);
                published.entries += 1;
                published.epoch_entry = published.entries;
            }
            Content::Notice | Content::EntitlementsChanged | Content::Contracts(_) => {}
        }
        let received = published.received;
        let message = Published { frame, events, content, read_at, before, received };
        published.events += u64::from(events);
        let events = published.events - before.events;
        // The only error is that there are no readers, which does no harm.
        let readers = self.readers.ring.send(Slot::Message(message)).unwrap_or(0) as u64;
        self.readers.unread.inc_by((events * readers) as i64);
        if bytes > self.slot_bytes && readers > 0 {
            for _ in 1..bytes.div_ceil(self.slot_bytes).min(self.readers.slots) {
                let _ = self.readers.ring.send(Slot::Empty);
            }
        }
        if let Some(wake) = &self.wake {
            wake.others.fetch_add(u64::from(!is_data), Ordering::Relaxed);
            wake.published.notify_one();
        }
        Receipt { events, readers }
    }
}

impl Readers {
    /// How much of the ring the slowest reader has yet to read, from 0 to 1.
    pub fn used(&self) -> f64 {
        self.ring.len() as f64 / self.slots as f64
    }

    /// The history of everything published.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The position of the next message to be published.
    pub fn end(&self) -> u64 {
        lock(&self.published).messages
    }

    /// Where the feed stands.
    pub fn feed_position(&self) -> Position {
        lock(&self.published).position()
    }

    /// The current epoch, and the number of its first entry in the history. The notice that begins
    /// an epoch is not among its entries.
    pub fn epoch(&self) -> (u64, u64) {
        let published = lock(&self.published);
        (published.epoch, published.epoch_entry)
    }

    /// Creates a reader of everything published from now on.
    pub fn reader(&self) -> Reader {
        let published = lock(&self.published);
        Reader {
            ring: self.ring.subscribe(),
            published: Arc::clone(&self.published),
            seen: *published,
            unreported: 0,
            unread: self.unread.clone(),
        }
    }
}

fn lock(published: &Mutex<Total>) -> MutexGuard<'_, Total> {
    published.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reader {
    /// Waits for the next message. `None` once the writing side is gone.
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Next> {
        loop {
            match self.ring.recv().await {
                Ok(Slot::Message(message)) => return Some(self.take(message)),
                // The counts of the next message show how much was overwritten.
                Ok(Slot::Empty) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// The next message; `None` if none is ready.
    pub fn try_next(&mut self) -> Option<Next> {
        loop {
            match self.ring.try_recv() {
                Ok(Slot::Message(message)) => return Some(self.take(message)),
                Ok(Slot::Empty) | Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
            }
        }
    }

    /// Takes the events read or missed since the last call out of the gauge of unread events. Call
    /// it once for each batch, when the batch is queued for the client.
    pub fn report(&mut self) {
        self.unread.dec_by(std::mem::take(&mut self.unreported) as i64);
    }

    /// The number of the first entry of the history that this reader has yet to get.
    pub fn next_entry(&self) -> u64 {
        self.seen.entries
    }

    /// How many messages it has read or missed since the start of the ring.
    pub fn read(&self) -> u64 {
        self.seen.messages
    }

    /// Where the feed stands behind what it has read or missed, and when the last message of that
    /// was received, in milliseconds since 1970; zero if there was none.
    pub fn feed_position(&self) -> (Position, u64) {
        (self.seen.position(), self.seen.received)
    }

    /// Leaves the ring. Returns the events that were published for this reader and not read.
    pub fn leave(mut self) -> Unread {
        self.report();
        let published = lock(&self.published);
        drop(self.ring);
        Unread { events: published.events - self.seen.events, gauge: self.unread }
    }

    fn take(&mut self, message: Published) -> Next {
        let Total { messages, events, .. } = message.before;
        let missed = (messages - self.seen.messages, events - self.seen.events);
        let after = self.seen.position();
        self.seen.epoch = message.before.epoch;
        self.seen.frames = message.before.frames;
        self.seen.received = message.before.received;
        self.seen.entries = message.before.entries;
        match message.content {
            Content::Data => {
                self.seen.entries += 1;
                self.seen.frames += 1;
                self.seen.received = message.received;
            }
            Content::Epoch(epoch) => {
                self.seen.entries += 1;
                (self.seen.epoch, self.seen.frames) = (epoch, 0);
            }
            Content::Notice
            | Content::Down(_)
            | Content::Complete(_)
            | Content::EntitlementsChanged
            | Content::Contracts(_) => {}
        }
        self.seen.messages = messages + 1;
        self.seen.events = events + u64::from(message.events);
        self.unreported += missed.1 + u64::from(message.events);
        match missed {
            (0, _) => Next::Message(message),
            (frames, events) => Next::Gap { frames, events, after, then: message },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(messages: usize, bytes: usize) -> (Ring, Readers) {
        let ring = Ring::new(messages, bytes, Level::default(), History::new(0));
        let readers = ring.readers();
        (ring, readers)
    }

    fn publish(ring: &mut Ring, frame: Frame, events: u32) -> Receipt {
        ring.publish(frame, events, Instant::now())
    }

    #[test]
    fn a_lagging_reader_gets_the_exact_size_of_its_gap() {
        let (mut ring, readers) = ring(4, 1_000);
        let mut reader = readers.reader();
        let mut quick = readers.reader();
        publish(&mut ring, Frame::new(b"a"), 1);
        assert!(matches!(reader.try_next(), Some(Next::Message(m)) if m.frame.text() == b"a"));
        for n in 0..10 {
            publish(&mut ring, Frame::new(n.to_string().as_bytes()), 5);
            assert!(matches!(quick.try_next(), Some(Next::Message(_))));
        }
        match reader.try_next() {
            Some(Next::Gap { frames: 6, events: 30, then, .. }) => {
                assert_eq!(then.frame.text(), b"6");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(reader.try_next(), Some(Next::Message(m)) if m.frame.text() == b"7"));
        let unread = ring.readers.unread.clone();
        assert_eq!(unread.get(), 51 + 51, "nothing is reported yet");
        reader.report();
        quick.report();
        assert_eq!(unread.get(), 10 + 5);
        let (mut left, mut quick_left) = (reader.leave(), quick.leave());
        assert_eq!((left.take(4), unread.get()), (4, 11), "they count until they are taken");
        assert_eq!((left.take(u64::MAX), quick_left.take(u64::MAX)), (6, 5));
        assert_eq!(unread.get(), 0);
        let receipt = publish(&mut ring, Frame::new(b"unread"), 1);
        assert_eq!(receipt, Receipt { events: 1, readers: 0 });
    }

    #[test]
    fn a_message_knows_the_control_messages_before_it() {
        let (mut ring, readers) = ring(8, 1_000);
        let mut reader = readers.reader();
        let outage = Outage { from: SystemTime::UNIX_EPOCH, reason: "lost".to_owned() };
        publish(&mut ring, Frame::new(b"a"), 1);
        ring.control(Content::Down(outage));
        publish(&mut ring, Frame::new(b"b"), 1);
        ring.control(Content::Complete(SystemTime::UNIX_EPOCH));
        publish(&mut ring, Frame::new(b"c"), 1);
        let mut known = Vec::new();
        while let Some(Next::Message(message)) = reader.try_next() {
            known.push((message.is_in_outage(), message.last_complete()));
        }
        let none = (false, None);
        assert_eq!(known, [none, none, (true, None), (true, None), (false, Some(3))]);
    }

    #[test]
    fn a_reader_is_owed_only_later_messages() {
        let (mut ring, readers) = ring(2, 1_000);
        publish(&mut ring, Frame::new(b"before"), 100);
        let mut reader = readers.reader();
        for n in 0..5 {
            publish(&mut ring, Frame::new(n.to_string().as_bytes()), 1);
        }
        assert!(matches!(reader.try_next(), Some(Next::Gap { frames: 3, events: 3, .. })));
    }

    #[test]
    fn a_new_epoch_is_told_to_readers_and_in_the_history() {
        let mut ring = Ring::new(8, 8_000, Level::default(), History::new(100_000));
        let readers = ring.readers();
        let (mut reader, (first, _)) = (readers.reader(), readers.epoch());
        publish(&mut ring, Frame::new(b"a"), 1);
        assert_eq!(ring.begin_anew(first), first, "it is in force");
        assert_eq!(ring.begin_anew(first + 5), first + 5);
        assert_eq!(ring.begin_anew(first + 4), first + 5, "positions grow");
        publish(&mut ring, Frame::new(b"b"), 1);
        let (a, b) = (Position { epoch: first, seq: 1 }, Position { epoch: first + 5, seq: 1 });
        assert!(matches!(reader.try_next(), Some(Next::Message(_))));
        assert_eq!(reader.feed_position().0, a);
        let Some(Next::Message(told)) = reader.try_next() else { panic!() };
        let text = str::from_utf8(told.frame.text()).unwrap();
        for part in ["other_epoch".to_owned(), format!("\"after\":\"{a}\"")] {
            assert!(text.contains(&part), "{text}");
        }
        assert!(matches!(reader.try_next(), Some(Next::Message(_))));
        assert_eq!((reader.feed_position().0, readers.feed_position()), (b, b));
        assert_eq!((reader.next_entry(), readers.epoch()), (3, (first + 5, 2)));
        let mut entries = Vec::new();
        readers.history().read(0, usize::MAX, &mut entries).unwrap();
        let places: Vec<_> = entries.iter().map(|entry| (entry.position, entry.notice)).collect();
        assert_eq!(places, [(a, false), (Position { seq: 0, ..b }, true), (b, false)]);
    }

    #[test]
    fn a_gap_across_epochs_says_where_it_began() {
        let (mut ring, readers) = ring(2, 8_000);
        let (mut reader, (first, _)) = (readers.reader(), readers.epoch());
        ring.begin_anew(first + 1);
        for n in 0..5 {
            publish(&mut ring, Frame::new(n.to_string().as_bytes()), 1);
        }
        let Some(Next::Gap { after, then, .. }) = reader.try_next() else { panic!() };
        assert_eq!(after, Position { epoch: first, seq: 0 });
        assert_eq!(then.feed_position(), Position { epoch: first + 1, seq: 3 });
    }

    /// A frame of this many bytes in all.
    fn long(bytes: usize) -> Frame {
        let head = Frame::new(&vec![b'x'; bytes]).bytes().len() - bytes;
        Frame::new(&vec![b'x'; bytes - head])
    }

    /// Publishes frames of these sizes to a ring of 8 messages and 800 bytes before its reader
    /// reads. Returns how many frames the reader missed, and the sizes of those it still gets.
    fn kept(sizes: &[usize]) -> (u64, Vec<usize>) {
        let (mut ring, readers) = ring(8, 800);
        let mut reader = readers.reader();
        for &size in sizes {
            publish(&mut ring, long(size), 1);
        }
        let (mut missed, mut kept) = (0, Vec::new());
        while let Some(next) = reader.try_next() {
            let message = match next {
                Next::Message(message) => message,
                Next::Gap { frames, events, then, .. } => {
                    assert_eq!(frames, events);
                    missed += frames;
                    then
                }
            };
            kept.push(message.frame.bytes().len());
        }
        (missed, kept)
    }

    #[test]
    fn a_ring_is_bounded_in_bytes_as_well() {
        assert_eq!(kept(&[100; 20]), (12, vec![100; 8]));
        assert_eq!(kept(&[101; 20]), (16, vec![101; 4]));
        assert_eq!(kept(&[50, 400, 400]), (1, vec![400, 400]));
        assert_eq!(kept(&[50, 300, 400]), (0, vec![50, 300, 400]));
        assert_eq!(kept(&[50, 60, 800]), (2, vec![800]));
        assert_eq!(kept(&[50, 9_000]), (1, vec![9_000]), "one message in any case");
        assert_eq!(kept(&[9_000, 50]), (1, vec![50]));
    }

    #[test]
    fn a_frame_is_freed_once_no_reader_needs_it() {
        let (mut ring, readers) = ring(8, 800);
        let (mut one, mut two) = (readers.reader(), readers.reader());
        let held = long(300);
        publish(&mut ring, held.clone(), 1);
        assert!(
            one.try_next().is_some() && !held.bytes().is_unique(),
            "the other has yet to read it"
        );
        assert!(two.try_next().is_some() && held.bytes().is_unique());
        publish(&mut ring, held.clone(), 1);
        drop((one, two));
        assert!(held.bytes().is_unique());
    }
}
