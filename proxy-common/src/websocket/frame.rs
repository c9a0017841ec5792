//! A text frame as it goes over a WebSocket: header and text in one piece.

use bytes::Bytes;
use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Data, OpCode},
};

/// The longest header of a frame.
pub(crate) const MAX_HEADER_BYTES: usize = 14;

/// One whole frame as a server sends it. It can be passed on unchanged.
///
/// Cloning shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    bytes: Bytes,
    head: usize,
}

impl Frame {
    /// A text frame.
    pub fn new(text: &[u8]) -> Self {
        Self::of_kind(Data::Text, text)
    }

    /// A frame of this kind: text or binary.
    pub fn of_kind(kind: Data, payload: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(MAX_HEADER_BYTES + payload.len());
        append_header(&mut bytes, OpCode::Data(kind), payload.len());
        let head = bytes.len();
        bytes.extend_from_slice(payload);
        Self { bytes: bytes.into(), head }
    }

    /// A text frame that holds an array of this object alone.
    pub fn of_object(object: &str) -> Self {
        Self::new(format!("[{object}]").as_bytes())
    }

    /// The frame in these received bytes. Its header is `head` bytes long.
    pub(crate) fn received(bytes: Bytes, head: usize) -> Self {
        Self { bytes, head }
    }

    /// The text.
    pub fn text(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    /// The text. Shares the frame's memory.
    pub fn shared_text(&self) -> Bytes {
        self.bytes.slice(self.head..)
    }

    /// Header and text.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// Appends the header of an unmasked frame whose payload has this many bytes.
pub(crate) fn append_header(out: &mut Vec<u8>, opcode: OpCode, len: usize) {
    FrameHeader { opcode, ..FrameHeader::default() }
        .format(len as u64, out)
        .expect("writing to memory does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_header_and_text_in_one_piece() {
        for (length, header) in [
            (3, &[0x81, 3][..]),
            (126, &[0x81, 126, 0, 126]),
            (70_000, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]),
        ] {
            let text = vec![b'x'; length];
            let frame = Frame::new(&text);
            assert_eq!(frame.bytes()[..], [header, &text].concat());
            assert_eq!(frame.text(), text);
            assert_eq!(frame.shared_text(), text);
            let again = Frame::received(frame.bytes().clone(), header.len());
            assert_eq!(again, frame);
        }
    }
}
