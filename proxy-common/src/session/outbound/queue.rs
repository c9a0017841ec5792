//! What waits to be written for one session, framed and not: pure data, no socket.

use std::{cell::OnceCell, collections::VecDeque};

use bytes::{Buf, Bytes};
use tokio::time::Instant;
use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Data, OpCode},
};

use crate::{protocol::messages::MAX_MESSAGE_BYTES, session::close::CloseReason};

/// The longest header of a frame that a server sends, and the bracket after it.
pub(super) const MAX_HEAD: usize = 11;

/// Chunks share a message up to this size. A pong waits for the message before it to be read, so it is not the most that a
/// message may hold.
const MAX_SHARED_BYTES: usize = 128 * 1024;

/// Some events as text: objects separated by commas, without the brackets of an array.
///
/// Borrowed from the caller's buffer; copied once, however many sessions have to queue it.
#[derive(Debug)]
pub struct Chunk<'a> {
    pub(super) text: &'a [u8],
    pub(super) events: u32,
    /// The same as a whole frame, if there is one.
    pub(super) framed: Option<&'a [u8]>,
    shared: OnceCell<Bytes>,
}

impl<'a> Chunk<'a> {
    /// A chunk whose text is shared, never copied.
    pub fn shared(text: &'a Bytes, events: u32) -> Self {
        Self { text, events, framed: None, shared: OnceCell::from(text.clone()) }
    }

    /// The events.
    pub fn text(&self) -> &[u8] {
        self.text
    }

    /// How many they are.
    pub fn events(&self) -> u32 {
        self.events
    }

    pub(super) fn share(&self) -> Bytes {
        self.shared.get_or_init(|| Bytes::copy_from_slice(self.text)).clone()
    }
}

/// Puts chunks together, one at a time, in the shape in which they are sent.
#[derive(Debug)]
pub struct ChunkBuffer {
    /// Room for a header and a bracket, then the events.
    bytes: Vec<u8>,
    events: u32,
}

impl Default for ChunkBuffer {
    fn default() -> Self {
        Self { bytes: vec![0; MAX_HEAD], events: 0 }
    }
}

impl ChunkBuffer {
    /// Empties it.
    pub fn clear(&mut self) {
        self.bytes.truncate(MAX_HEAD);
        self.events = 0;
    }

    /// Empties it and gives back the memory that a rare long chunk took.
    pub fn shrink(&mut self) {
        self.clear();
        self.bytes.shrink_to(MAX_MESSAGE_BYTES);
    }

    /// Bytes of the events and the commas between them.
    pub fn len(&self) -> usize {
        self.bytes.len() - MAX_HEAD
    }

    /// Whether it holds no events.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds events: objects, separated by commas where there are several.
    pub fn push(&mut self, text: &[u8], events: u32) {
        if !self.is_empty() {
            self.bytes.push(b',');
        }
        self.bytes.extend_from_slice(text);
        self.events += events;
    }

    /// What it holds, framed. To be cleared afterwards.
    pub fn chunk(&mut self) -> Chunk<'_> {
        let length = self.len();
        let mut head = [0; MAX_HEAD];
        let head = message_head(&mut head, length + 2);
        let start = MAX_HEAD - head.len();
        self.bytes[start..MAX_HEAD].copy_from_slice(head);
        self.bytes.push(b']');
        Chunk {
            text: &self.bytes[MAX_HEAD..MAX_HEAD + length],
            events: self.events,
            framed: Some(&self.bytes[start..]),
            shared: OnceCell::new(),
        }
    }
}

/// The order in which things leave: what is on the wire, then control frames, then the queue.
#[derive(Debug)]
pub(super) struct Lane {
    /// Bytes committed to the socket: the rest of a message half written.
    pub(super) wire: VecDeque<Bytes>,
    pub(super) wire_bytes: usize,
    pub(super) wire_events: u32,
    pub(super) wire_since: Instant,
    /// Framed control frames; they go out at the next frame border, ahead of the queue.
    pub(super) control: Vec<u8>,
    pub(super) control_since: Instant,
    pub(super) queue: VecDeque<Item>,
    pub(super) queue_bytes: usize,
    pub(super) queue_events: u64,
    /// What the gauge of queued bytes holds for this session.
    pub(super) reported: usize,
    /// What the gauge of queued events holds for this session.
    pub(super) reported_events: u64,
    pub(super) state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// The policy ended the session; its task has yet to say so to the peer.
    Condemned(CloseReason),
    /// Only what is queued goes out, then nothing.
    Closing,
    /// The socket failed.
    Broken,
}

#[derive(Debug)]
pub(super) struct Item {
    bytes: Bytes,
    events: u32,
    since: Instant,
    /// Whether this is a whole frame, header and all, or a chunk of events that may share one.
    framed: bool,
}

impl Lane {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            wire: VecDeque::new(),
            wire_bytes: 0,
            wire_events: 0,
            wire_since: now,
            control: Vec::new(),
            control_since: now,
            queue: VecDeque::new(),
            queue_bytes: 0,
            queue_events: 0,
            reported: 0,
            reported_events: 0,
            state: State::Open,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wire.is_empty() && self.queue.is_empty() && self.control.is_empty()
    }

    pub(super) fn put(&mut self, bytes: Bytes) {
        self.wire_bytes += bytes.len();
        self.wire.push_back(bytes);
    }

    /// Forgets what is not framed yet.
    pub(super) fn clear_queue(&mut self) {
        self.queue = VecDeque::new();
        self.queue_bytes = 0;
        self.queue_events = 0;
        self.control = Vec::new();
    }

    /// Gives back the memory of a lane that is empty.
    pub(super) fn release(&mut self) {
        self.wire = VecDeque::new();
        self.queue = VecDeque::new();
    }

    pub(super) fn clear_wire(&mut self) {
        self.wire = VecDeque::new();
        self.wire_bytes = 0;
    }

    /// Since when something has been waiting, if anything is.
    pub(super) fn oldest(&self) -> Option<Instant> {
        if !self.wire.is_empty() {
            return Some(self.wire_since);
        }
        let queued = self.queue.front().map(|item| item.since);
        queued.or_else(|| (!self.control.is_empty()).then_some(self.control_since))
    }

    pub(super) fn push(&mut self, bytes: Bytes, events: u32, since: Instant, framed: bool) {
        self.queue_bytes += bytes.len();
        self.queue_events += u64::from(events);
        self.queue.push_back(Item { bytes, events, since, framed });
    }

    /// Puts the unwritten rest of one message of chunks on the wire.
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

    /// Puts on the wire what goes next: control frames, and a whole frame or all chunks that fit one message. False if there is nothing.
    pub(super) fn frame_next(&mut self, since: Instant) -> bool {
        let control = std::mem::take(&mut self.control);
        let any_control = !control.is_empty();
        if any_control {
            self.put(control.into());
        }
        self.wire_since = since;
        let Some(first) = self.queue.front() else { return any_control };
        if first.framed {
            let item = self.take_item();
            self.put(item.bytes);
            return true;
        }
        let mut inner = 0;
        let mut n = 0;
        for item in self.queue.iter().take_while(|item| !item.framed) {
            // Brackets and commas included; a chunk that alone is too long goes alone.
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
        let item = self.queue.pop_front().expect("the caller has seen the item");
        self.queue_bytes -= item.bytes.len();
        self.queue_events -= u64::from(item.events);
        self.wire_events += item.events;
        item
    }

    pub(super) fn advance(&mut self, mut written: usize) {
        self.wire_bytes -= written;
        while written > 0 {
            let Some(front) = self.wire.front_mut() else { return };
            if written < front.len() {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.wire.pop_front();
        }
    }
}

/// The header of a text frame of `len` bytes and the opening bracket.
pub(super) fn message_head(buffer: &mut [u8; MAX_HEAD], len: usize) -> &[u8] {
    let mut head = &mut buffer[..];
    FrameHeader { opcode: OpCode::Data(Data::Text), ..FrameHeader::default() }
        .format(len as u64, &mut head)
        .expect("a header fits ten bytes");
    let used = MAX_HEAD - head.len();
    buffer[used] = b'[';
    &buffer[..=used]
}
