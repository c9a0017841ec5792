//! Chunks: events rendered once for all sessions that get the same ones.

use std::cell::OnceCell;

use bytes::Bytes;
use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Data, OpCode},
};

use crate::protocol::MAX_MESSAGE_BYTES;

/// The longest header of a frame that a server sends, and the bracket after it.
pub(super) const MAX_HEAD: usize = 11;

/// Some events as text: objects separated by commas, without the brackets of an array.
///
/// A chunk borrows the caller's buffer. It is copied at most once, however many sessions queue it.
#[derive(Debug)]
pub struct Chunk<'a> {
    pub(super) text: &'a [u8],
    pub(super) events: u32,
    /// The same events as a whole frame, if they are framed already.
    pub(super) framed: Option<&'a [u8]>,
    shared: OnceCell<Bytes>,
}

impl<'a> Chunk<'a> {
    /// A chunk whose text is shared, never copied.
    pub fn shared(text: &'a Bytes, events: u32) -> Self {
        Self { text, events, framed: None, shared: OnceCell::from(text.clone()) }
    }

    /// The text of the events.
    pub fn text(&self) -> &[u8] {
        self.text
    }

    /// The number of events.
    pub fn events(&self) -> u32 {
        self.events
    }

    pub(super) fn share(&self) -> Bytes {
        self.shared.get_or_init(|| Bytes::copy_from_slice(self.text)).clone()
    }
}

/// Builds chunks, one at a time, in the form in which they are sent.
#[derive(Debug)]
pub struct ChunkBuffer {
    /// Space for a header and a bracket, then the events.
    bytes: Vec<u8>,
    events: u32,
}

impl Default for ChunkBuffer {
    fn default() -> Self {
        Self { bytes: vec![0; MAX_HEAD], events: 0 }
    }
}

impl ChunkBuffer {
    /// Removes the events.
    pub fn clear(&mut self) {
        self.bytes.truncate(MAX_HEAD);
        self.events = 0;
    }

    /// Removes the events and frees the memory that a rare long chunk has taken.
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

    /// Adds `events` events: objects separated by commas.
    pub fn push(&mut self, text: &[u8], events: u32) {
        if !self.is_empty() {
            self.bytes.push(b',');
        }
        self.bytes.extend_from_slice(text);
        self.events += events;
    }

    /// The chunk of all events added, framed. Call [`clear`](Self::clear) afterwards.
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
