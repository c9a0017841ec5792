//! Fan-out: the same frame to every session, over one ring with a cursor for each reader.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proxy_common::frame::Frame;
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
    /// Events published before this one, since the start: what tells a reader how many it missed.
    before: u64,
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Events of the upstream.
    Data,
    /// A notice of a tier.
    Notice,
    /// A sign without a text: what can be had of the upstream has changed.
    OfferChanged,
}

/// The writing end. Publishing never waits for a reader.
#[derive(Debug)]
pub struct Fanout(FanoutHandle);

/// Makes readers, from wherever sessions are.
#[derive(Debug, Clone)]
pub struct FanoutHandle {
    ring: broadcast::Sender<Published>,
    /// Events published since the start. Held while the ring or its readers change, so that each reader knows exactly what
    /// it is owed.
    published: Arc<Mutex<u64>>,
}

/// One session's cursor.
#[derive(Debug)]
pub struct Reader {
    ring: broadcast::Receiver<Published>,
    published: Arc<Mutex<u64>>,
    /// Events up to here are read.
    seen: u64,
    lagged: u64,
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

/// A ring for this many messages, rounded up to a power of two. A reader that lags further loses the oldest.
pub fn ring(frames: usize) -> (Fanout, FanoutHandle) {
    let (ring, _) = broadcast::channel(frames);
    let handle = FanoutHandle { ring, published: Arc::default() };
    (Fanout(handle.clone()), handle)
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

    /// Tells every reader there is that the offer has changed.
    pub fn offer_changed(&mut self) {
        self.send(Frame::new(b""), 0, Content::OfferChanged);
    }

    fn send(&mut self, frame: Frame, events: u32, content: Content) -> usize {
        let mut published = lock(&self.0.published);
        let message = Published { frame, events, content, before: *published };
        *published += u64::from(events);
        // No reader is no error: nobody is there to miss anything.
        self.0.ring.send(message).unwrap_or(0)
    }
}

impl FanoutHandle {
    /// A reader of everything published from now on.
    pub fn reader(&self) -> Reader {
        let published = lock(&self.published);
        let ring = self.ring.subscribe();
        Reader { ring, published: Arc::clone(&self.published), seen: *published, lagged: 0 }
    }
}

fn lock(published: &Mutex<u64>) -> MutexGuard<'_, u64> {
    published.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reader {
    /// Waits for the next message. `None` once the writing end is gone.
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Next> {
        loop {
            match self.ring.recv().await {
                Ok(message) => return Some(self.take(message)),
                Err(RecvError::Lagged(n)) => self.lagged += n,
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// The next message if it is there.
    pub fn try_next(&mut self) -> Option<Next> {
        loop {
            match self.ring.try_recv() {
                Ok(message) => return Some(self.take(message)),
                Err(TryRecvError::Lagged(n)) => self.lagged += n,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
            }
        }
    }

    /// How many of the events published are behind it: taken or missed.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Gives the place up, and tells how many events published meanwhile are left unread.
    pub fn leave(self) -> u64 {
        let published = lock(&self.published);
        drop(self.ring);
        *published - self.seen
    }

    fn take(&mut self, message: Published) -> Next {
        let events = message.before - self.seen;
        self.seen = message.before + u64::from(message.events);
        match std::mem::take(&mut self.lagged) {
            0 => Next::Message(message),
            frames => Next::Gap { frames, events, then: message },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_lags_learns_exactly_what_it_missed() {
        let (mut fanout, handle) = ring(4);
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
    fn a_reader_is_owed_what_comes_after_it_came() {
        let (mut fanout, handle) = ring(2);
        fanout.publish(Frame::new(b"before"), 100);
        let mut reader = handle.reader();
        for n in 0..5 {
            fanout.publish(Frame::new(n.to_string().as_bytes()), 1);
        }
        assert!(matches!(reader.try_next(), Some(Next::Gap { frames: 3, events: 3, .. })));
    }
}
