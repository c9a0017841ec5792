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

/// Bytes that are no whole text frames of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no whole text frames")]
pub struct NoFrames;

/// The text frames in these bytes, which hold one or several, whole and unmasked. Ends with an
/// error at anything else. The frames share the memory of the bytes.
pub fn frames(mut bytes: Bytes) -> impl Iterator<Item = Result<Frame, NoFrames>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let Some((head, length)) = text_header(&bytes) else {
            bytes.clear();
            return Some(Err(NoFrames));
        };
        match head.checked_add(length).filter(|end| *end <= bytes.len()) {
            Some(end) => Some(Ok(Frame { bytes: bytes.split_to(end), head })),
            None => {
                bytes.clear();
                Some(Err(NoFrames))
            }
        }
    })
}

/// The length of the header of a text frame, and of its payload.
fn text_header(bytes: &[u8]) -> Option<(usize, usize)> {
    let (&[0x81, length], rest) = bytes.split_first_chunk()? else { return None };
    match length {
        0..126 => Some((2, length.into())),
        126 => Some((4, u16::from_be_bytes(*rest.first_chunk()?).into())),
        127 => Some((10, usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).ok()?)),
        _ => None,
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

    #[test]
    fn frames_are_taken_out_of_bytes_one_by_one() {
        let all = [3, 125, 126, 70_000, 0].map(|length| Frame::new(&vec![b'x'; length]));
        let bytes: Vec<u8> = all.iter().flat_map(|frame| frame.bytes().to_vec()).collect();
        let found: Result<Vec<_>, _> = frames(bytes.clone().into()).collect();
        assert_eq!(found, Ok(all.to_vec()));
        for end in [1, 4, 130, bytes.len() - 3] {
            let cut = Bytes::copy_from_slice(&bytes[..end]);
            assert_eq!(frames(cut).last(), Some(Err(NoFrames)), "{end}");
        }
        for bad in [&b"\x82\x01x"[..], b"\x81\x81\0\0\0\0x", b"\x01\x01x"] {
            assert_eq!(frames(Bytes::from_static(bad)).next(), Some(Err(NoFrames)));
        }
    }
}
