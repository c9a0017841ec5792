//! The write queue of one session: holds the data to be written, in order, and no socket.

use std::{collections::VecDeque, time::Duration};

use bytes::{Buf, Bytes};
use tokio::time::Instant;

use super::chunk::{Chunk, MAX_HEAD, message_head};
use crate::session::close::CloseReason;

/// Chunks share a message up to this size. It is less than a message may hold, because a pong waits
/// until the client has read the message before it.
const MAX_SHARED_BYTES: usize = 128 * 1024;

/// Data leaves in this order: bytes in flight, control frames, queued items.
#[derive(Debug)]
pub(super) struct WriteQueue {
    /// Bytes that must leave next: the rest of a frame half written, and frames framed ahead.
    pub(super) in_flight: VecDeque<Bytes>,
    pub(super) in_flight_bytes: usize,
    pub(super) in_flight_events: u32,
    pub(super) in_flight_since: Instant,
    /// When the oldest of the events in flight was read from upstream.
    pub(super) in_flight_read_at: Instant,
    /// Control frames, with headers. They leave at the next frame border, ahead of the items.
    pub(super) control: Vec<u8>,
    pub(super) control_since: Instant,
    pub(super) items: VecDeque<Item>,
    pub(super) item_bytes: usize,
    pub(super) item_events: u64,
    /// This session's share of the gauge of queued bytes.
    pub(super) reported: usize,
    /// This session's share of the gauge of queued events.
    pub(super) reported_events: u64,
    /// Events written to the socket since the start of the session.
    pub(super) delivered_events: u64,
    /// Bytes written to the socket since then.
    pub(super) written_bytes: u64,
    /// Whether events were dropped that the session was to get.
    pub(super) has_dropped: bool,
    /// How old the data was that waited when the session began to end.
    pub(super) lag_at_end: Option<Duration>,
    /// The delay of the first events is measured that are read then or later.
    pub(super) next_measured: Instant,
    pub(super) state: State,
}

/// The times of data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// Since when it waits for the session.
    pub(super) since: Instant,
    /// When it was read from upstream; `since` for data of our own.
    pub(super) read_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// The session is over its limits. Its task has yet to close it.
    Evicted(CloseReason),
    /// What is queued still leaves. Nothing new is accepted.
    Closing,
    /// Nothing more is written: the socket failed, or the session is over.
    Over,
}

#[derive(Debug)]
pub(super) struct Item {
    bytes: Bytes,
    events: u32,
    times: Times,
    /// Whether this is a whole frame with its header, or a chunk of events that may share a frame.
    framed: bool,
}

impl WriteQueue {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            in_flight_events: 0,
            in_flight_since: now,
            in_flight_read_at: now,
            control: Vec::new(),
            control_since: now,
            items: VecDeque::new(),
            item_bytes: 0,
            item_events: 0,
            reported: 0,
            reported_events: 0,
            delivered_events: 0,
            written_bytes: 0,
            has_dropped: false,
            lag_at_end: None,
            next_measured: now,
            state: State::Open,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_flight.is_empty() && self.items.is_empty() && self.control.is_empty()
    }

    /// Bytes of events and replies that wait to be written.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.item_bytes + self.in_flight_bytes
    }

    pub(super) fn put(&mut self, bytes: Bytes) {
        self.in_flight_bytes += bytes.len();
        self.in_flight.push_back(bytes);
    }

    /// Drops everything that is not in flight.
    pub(super) fn clear_queue(&mut self) {
        self.has_dropped |= self.item_events > 0;
        self.items = VecDeque::new();
        self.item_bytes = 0;
        self.item_events = 0;
        self.control = Vec::new();
    }

    /// Frees the memory of an empty queue.
    pub(super) fn release(&mut self) {
        self.in_flight = VecDeque::new();
        self.items = VecDeque::new();
    }

    pub(super) fn clear_in_flight(&mut self) {
        self.in_flight = VecDeque::new();
        self.in_flight_bytes = 0;
    }

    /// Since when the oldest data has been waiting. `None` if nothing waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        if !self.in_flight.is_empty() {
            return Some(self.in_flight_since);
        }
        let queued = self.items.front().map(|item| item.times.since);
        queued.or_else(|| (!self.control.is_empty()).then_some(self.control_since))
    }

    /// When the oldest data that waits was read from upstream. `None` if nothing waits but control
    /// frames.
    pub(super) fn oldest_read_at(&self) -> Option<Instant> {
        match self.in_flight_events {
            0 => self.items.front().map(|item| item.times.read_at),
            _ => Some(self.in_flight_read_at),
        }
    }

    /// Notes how old the data is that waits, unless that was noted before: the session begins to
    /// end.
    pub(super) fn note_lag(&mut self) {
        let read_at = self.oldest_read_at();
        self.lag_at_end
            .get_or_insert_with(|| read_at.map_or(Duration::ZERO, |read_at| read_at.elapsed()));
    }

    pub(super) fn push(&mut self, bytes: Bytes, events: u32, times: Times, framed: bool) {
        self.item_bytes += bytes.len();
        self.item_events += u64::from(events);
        self.items.push_back(Item { bytes, events, times, framed });
    }

    /// Puts the unwritten rest of one message of chunks in flight.
    pub(super) fn commit(&mut self, head: &[u8], chunks: &[Chunk<'_>], written: usize) {
        self.put(Bytes::copy_from_slice(head));
        for (i, chunk) in chunks.iter().enumerate() {
            if i > 0 {
                self.put(Bytes::from_static(b","));
            }
            self.put(chunk.share());
        }
        self.put(Bytes::from_static(b"]"));
        self.advance(written);
    }

    /// Puts the next data in flight: control frames, then one whole frame or all chunks that fit
    /// one message. False if there is nothing.
    pub(super) fn frame_next(&mut self, since: Instant) -> bool {
        let control = std::mem::take(&mut self.control);
        let any_control = !control.is_empty();
        if any_control {
            self.put(control.into());
        }
        self.in_flight_since = since;
        let Some(first) = self.items.front() else { return any_control };
        if first.framed {
            let item = self.take_item();
            self.put(item.bytes);
            return true;
        }
        let mut inner = 0;
        let mut n = 0;
        for item in self.items.iter().take_while(|item| !item.framed) {
            // Count brackets and commas too. A chunk that is too long by itself goes alone.
            if n > 0 && inner + item.bytes.len() + 2 > MAX_SHARED_BYTES {
                break;
            }
            inner += item.bytes.len() + 1;
            n += 1;
        }
        let mut head = [0; MAX_HEAD];
        self.put(Bytes::copy_from_slice(message_head(&mut head, inner + 1)));
        for i in 0..n {
            if i > 0 {
                self.put(Bytes::from_static(b","));
            }
            let item = self.take_item();
            self.put(item.bytes);
        }
        self.put(Bytes::from_static(b"]"));
        true
    }

    fn take_item(&mut self) -> Item {
        let item = self.items.pop_front().expect("the caller has seen the item");
        self.item_bytes -= item.bytes.len();
        self.item_events -= u64::from(item.events);
        if self.in_flight_events == 0 {
            self.in_flight_read_at = item.times.read_at;
        }
        self.in_flight_events += item.events;
        item
    }

    pub(super) fn advance(&mut self, mut written: usize) {
        self.in_flight_bytes -= written;
        while written > 0 {
            let Some(front) = self.in_flight.front_mut() else { return };
            if written < front.len() {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.in_flight.pop_front();
        }
    }
}
