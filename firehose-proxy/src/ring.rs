//! Fan-out: the same frame to every session, over one ring with a cursor for each reader.
//!
//! The ring is a tokio broadcast channel, which bounds messages. Bytes are bounded by giving long messages more than one place
//! in it: a message is followed by as many empty places as it takes beyond the first, and pushes out what stood there.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use proxy_common::{link::Outage, websocket::frame::Frame};
use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};

/// What goes round the ring.
#[derive(Debug, Clone)]
pub struct Published {
    /// One whole message.
    pub frame: Frame,
    /// How many events it holds.
    pub events: u32,
    /// What it is.
    pub content: Content,
    /// What was published before this one, since the start: what tells a reader how much it missed.
    before: Total,
}

/// What a message is.
#[derive(Debug, Clone)]
pub enum Content {
    /// Events of the upstream.
    Data,
    /// A notice of a tier.
    Notice,
    /// A sign without a text: not everything comes from now on.
    Down(Outage),
    /// A sign without a text: since then, everything comes that was asked for before.
    Complete(SystemTime),
    /// A sign without a text: what can be had of the upstream has changed.
    OfferChanged,
}

impl Published {
    /// How many messages were published before it, since the start.
    pub fn place(&self) -> u64 {
        self.before.messages
    }

    /// Whether an outage lasted when it was published, as the signs before it say.
    pub fn is_amid_outage(&self) -> bool {
        self.before.down > self.before.complete
    }

    /// The place of the last [`Content::Complete`] before it, if there was any.
    pub fn last_complete(&self) -> Option<u64> {
        self.before.complete.checked_sub(1)
    }
}

/// How much was published.
#[derive(Debug, Default, Clone, Copy)]
struct Total {
    messages: u64,
    events: u64,
    /// How many messages there were with the last [`Content::Down`], that included.
    down: u64,
    /// The same for [`Content::Complete`].
    complete: u64,
}

/// One place in the ring.
#[derive(Debug, Clone)]
enum Place {
    Message(Published),
    /// Belongs to the long message before it.
    Empty,
}

/// The writing end. Publishing never waits for a reader.
#[derive(Debug)]
pub struct Fanout {
    handle: FanoutHandle,
    places: usize,
    /// A message of more bytes takes more than one place.
    place_bytes: usize,
}

/// Makes readers, from wherever sessions are.
#[derive(Debug, Clone)]
pub struct FanoutHandle {
    ring: broadcast::Sender<Place>,
    /// Held while the ring or its readers change, so that each reader knows exactly what it is owed.
    published: Arc<Mutex<Total>>,
}

/// One session's cursor.
#[derive(Debug)]
pub struct Reader {
    ring: broadcast::Receiver<Place>,
    published: Arc<Mutex<Total>>,
    /// What was published up to here is read or missed.
    seen: Total,
}

/// What a reader finds.
#[derive(Debug)]
pub enum Next {
    /// The next message.
    Message(Published),
    /// Messages that the ring has overwritten stood here, then this one.
    Gap {
        /// How many messages.
        frames: u64,
        /// How many events they held.
        events: u64,
        /// The message after them.
        then: Published,
    },
}

/// A ring for this many messages, rounded up to a power of two, that hold this many bytes together; one message it holds in
/// any case. A reader that lags further loses the oldest.
pub fn ring(frames: usize, bytes: usize) -> (Fanout, FanoutHandle) {
    let places = frames.next_power_of_two();
    let (ring, _) = broadcast::channel(places);
    let handle = FanoutHandle { ring, published: Arc::default() };
    let place_bytes = (bytes / places).max(1);
    (Fanout { handle: handle.clone(), places, place_bytes }, handle)
}

impl Fanout {
    /// Gives a message of data to every reader there is, and tells how many they are.
    pub fn publish(&mut self, frame: Frame, events: u32) -> usize {
        self.send(frame, events, Content::Data)
    }

    /// Gives a notice to every reader there is.
    pub fn notify(&mut self, frame: Frame) {
        self.send(frame, 0, Content::Notice);
    }

    /// Gives a sign without a text to every reader there is.
    pub fn signal(&mut self, sign: Content) {
        self.send(Frame::new(b""), 0, sign);
    }

    fn send(&mut self, frame: Frame, events: u32, content: Content) -> usize {
        let bytes = frame.bytes().len();
        let mut published = lock(&self.handle.published);
        let before = *published;
        published.messages += 1;
        match content {
            Content::Down(_) => published.down = published.messages,
            Content::Complete(_) => published.complete = published.messages,
            Content::Data | Content::Notice | Content::OfferChanged => {}
        }
        let message = Published { frame, events, content, before };
        published.events += u64::from(events);
        // No reader is no error: nobody is there to miss anything.
        let readers = self.handle.ring.send(Place::Message(message)).unwrap_or(0);
        if bytes > self.place_bytes && readers > 0 {
            for _ in 1..bytes.div_ceil(self.place_bytes).min(self.places) {
                let _ = self.handle.ring.send(Place::Empty);
            }
        }
        readers
    }
}

impl FanoutHandle {
    /// A reader of everything published from now on.
    pub fn reader(&self) -> Reader {
        let published = lock(&self.published);
        let ring = self.ring.subscribe();
        Reader { ring, published: Arc::clone(&self.published), seen: *published }
    }
}

fn lock(published: &Mutex<Total>) -> MutexGuard<'_, Total> {
    published.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reader {
    /// Waits for the next message. `None` once the writing end is gone.
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Next> {
        loop {
            match self.ring.recv().await {
                Ok(Place::Message(message)) => return Some(self.take(message)),
                // What was overwritten shows by the counts of the next message.
                Ok(Place::Empty) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// The next message if it is there.
    pub fn try_next(&mut self) -> Option<Next> {
        loop {
            match self.ring.try_recv() {
                Ok(Place::Message(message)) => return Some(self.take(message)),
                Ok(Place::Empty) | Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
            }
        }
    }

    /// How many of the events published are behind it: taken or missed.
    pub fn seen(&self) -> u64 {
        self.seen.events
    }

    /// The place that the next message to be published will have.
    pub fn end(&self) -> u64 {
        lock(&self.published).messages
    }

    /// Gives the place up, and tells how many events published meanwhile are left unread.
    pub fn leave(self) -> u64 {
        let published = lock(&self.published);
        drop(self.ring);
        published.events - self.seen.events
    }

    fn take(&mut self, message: Published) -> Next {
        let Total { messages, events, .. } = message.before;
        let missed = (messages - self.seen.messages, events - self.seen.events);
        self.seen.messages = messages + 1;
        self.seen.events = events + u64::from(message.events);
        match missed {
            (0, _) => Next::Message(message),
            (frames, events) => Next::Gap { frames, events, then: message },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_lags_learns_exactly_what_it_missed() {
        let (mut fanout, handle) = ring(4, 1_000);
        let mut reader = handle.reader();
        let mut quick = handle.reader();
        fanout.publish(Frame::new(b"a"), 1);
        assert!(matches!(reader.try_next(), Some(Next::Message(m)) if m.frame.text() == b"a"));
        for n in 0..10 {
            fanout.publish(Frame::new(n.to_string().as_bytes()), 5);
            assert!(matches!(quick.try_next(), Some(Next::Message(_))));
        }
        match reader.try_next() {
            Some(Next::Gap { frames: 6, events: 30, then }) => assert_eq!(then.frame.text(), b"6"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(reader.try_next(), Some(Next::Message(m)) if m.frame.text() == b"7"));
        assert_eq!((reader.seen(), reader.leave()), (41, 10));
        assert_eq!(quick.leave(), 5);
        assert_eq!(fanout.publish(Frame::new(b"nobody"), 1), 0);
    }

    #[test]
    fn a_message_knows_of_the_signs_before_it() {
        let (mut fanout, handle) = ring(8, 1_000);
        let mut reader = handle.reader();
        let outage = Outage { from: SystemTime::UNIX_EPOCH, reason: "lost".to_owned() };
        fanout.publish(Frame::new(b"a"), 1);
        fanout.signal(Content::Down(outage));
        fanout.publish(Frame::new(b"b"), 1);
        fanout.signal(Content::Complete(SystemTime::UNIX_EPOCH));
        fanout.publish(Frame::new(b"c"), 1);
        let mut known = Vec::new();
        while let Some(Next::Message(message)) = reader.try_next() {
            known.push((message.is_amid_outage(), message.last_complete()));
        }
        let none = (false, None);
        assert_eq!(known, [none, none, (true, None), (true, None), (false, Some(3))]);
    }

    #[test]
    fn a_reader_is_owed_what_comes_after_it_came() {
        let (mut fanout, handle) = ring(2, 1_000);
        fanout.publish(Frame::new(b"before"), 100);
        let mut reader = handle.reader();
        for n in 0..5 {
            fanout.publish(Frame::new(n.to_string().as_bytes()), 1);
        }
        assert!(matches!(reader.try_next(), Some(Next::Gap { frames: 3, events: 3, .. })));
    }

    /// A frame of this many bytes in all.
    fn long(bytes: usize) -> Frame {
        let head = Frame::new(&vec![b'x'; bytes]).bytes().len() - bytes;
        Frame::new(&vec![b'x'; bytes - head])
    }

    /// What a reader that reads nothing keeps in a ring of 8 messages and 800 bytes, after frames of these sizes.
    fn kept(sizes: &[usize]) -> (u64, Vec<usize>) {
        let (mut fanout, handle) = ring(8, 800);
        let mut reader = handle.reader();
        for &size in sizes {
            fanout.publish(long(size), 1);
        }
        let (mut missed, mut kept) = (0, Vec::new());
        while let Some(next) = reader.try_next() {
            let message = match next {
                Next::Message(message) => message,
                Next::Gap { frames, events, then } => {
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
    fn what_nobody_reads_any_more_is_not_kept() {
        let (mut fanout, handle) = ring(8, 800);
        let (mut one, mut two) = (handle.reader(), handle.reader());
        let held = long(300);
        fanout.publish(held.clone(), 1);
        assert!(
            one.try_next().is_some() && !held.bytes().is_unique(),
            "the other has yet to read it"
        );
        assert!(two.try_next().is_some() && held.bytes().is_unique());
        fanout.publish(held.clone(), 1);
        drop((one, two));
        assert!(held.bytes().is_unique());
    }
}
