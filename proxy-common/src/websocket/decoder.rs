//! Decodes WebSocket frames from a buffer (RFC 6455), for both ends. Pure: it knows no socket.
//!
//! The WebSocket library does not serve two needs. An upstream's flood is passed on frame by frame,
//! in the bytes received. Ten thousand quiet clients should not keep a buffer each.

use bytes::{Buf, BytesMut};
use thiserror::Error;
use tungstenite::protocol::{
    CloseFrame,
    frame::{
        FrameHeader,
        coding::{CloseCode, Control, Data, OpCode},
    },
};

use crate::websocket::frame::MAX_HEADER_BYTES;

/// The longest payload of a control frame.
const MAX_CONTROL_BYTES: usize = 125;

/// Decodes the messages of one peer.
#[derive(Debug)]
pub struct Decoder {
    /// Whether the peer masks its frames: clients must, servers must not.
    masked: bool,
    max_bytes: usize,
    /// The part received so far of a message in several frames.
    fragments: Option<Fragments>,
}

#[derive(Debug)]
struct Fragments {
    text: bool,
    payload: BytesMut,
}

/// The beginning of a buffer, decoded.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A text message, not yet checked to be UTF-8. It keeps its header if it is one frame. A
    /// message in several frames has no header any more: `head` is 0.
    Text {
        /// Header and payload.
        bytes: BytesMut,
        /// Length of the header in bytes.
        head: usize,
    },
    /// A binary message.
    Binary(BytesMut),
    /// A ping. The answer must hold the same payload.
    Ping(BytesMut),
    /// The answer to a ping, with the same payload.
    Pong(BytesMut),
    /// The peer closes. `None` if it gives no code.
    Close(Option<CloseFrame>),
    /// No whole frame yet. Make room for this many bytes: the rest of the frame, or the longest
    /// header if the header is not complete.
    Missing(usize),
}

/// How a peer broke the protocol. Nothing that it sends afterwards can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Violation {
    /// A rule is broken; the text names it.
    #[error("WebSocket protocol broken: {0}")]
    Protocol(&'static str),
    /// Its message is longer than this many bytes.
    #[error("a message of more than {0} bytes")]
    TooBig(usize),
}

impl Violation {
    /// The close code that answers it (RFC 6455, section 7.4.1).
    pub const fn close_code(self) -> u16 {
        match self {
            Self::Protocol(_) => 1002,
            Self::TooBig(_) => 1009,
        }
    }
}

impl Decoder {
    /// A decoder for the frames of a server, whose messages have at most `max_bytes`.
    pub fn of_server(max_bytes: usize) -> Self {
        Self { masked: false, max_bytes, fragments: None }
    }

    /// A decoder for the frames of a client, whose messages have at most `max_bytes`.
    pub fn of_client(max_bytes: usize) -> Self {
        Self { masked: true, max_bytes, fragments: None }
    }

    /// Takes the next message, or the next control frame between the frames of one.
    ///
    /// # Errors
    ///
    /// The peer broke the protocol or sent a message that is too long.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, Violation> {
        loop {
            let Some((header, head, length)) = parse(buffer)? else {
                return Ok(Decoded::Missing(MAX_HEADER_BYTES));
            };
            if header.mask.is_some() != self.masked {
                return Err(Violation::Protocol("wrong masking: clients mask, servers do not"));
            }
            if let OpCode::Control(_) = header.opcode
                && (length > MAX_CONTROL_BYTES as u64 || !header.is_final)
            {
                return Err(Violation::Protocol("a control frame is too long or fragmented"));
            }
            let held = match (header.opcode, &self.fragments) {
                (OpCode::Data(_), Some(fragments)) => fragments.payload.len(),
                _ => 0,
            };
            let length = usize::try_from(length)
                .ok()
                .filter(|length| *length <= self.max_bytes.saturating_sub(held))
                .ok_or(Violation::TooBig(self.max_bytes))?;
            if buffer.len() < head + length {
                return Ok(Decoded::Missing(head + length - buffer.len()));
            }
            let mut bytes = buffer.split_to(head + length);
            if let Some(mask) = header.mask {
                apply_mask(mask, &mut bytes[head..]);
            }
            match header.opcode {
                OpCode::Control(control) => {
                    bytes.advance(head);
                    return on_control(control, bytes);
                }
                OpCode::Data(data) => {
                    if let Some(message) = self.on_data(data, header.is_final, bytes, head)? {
                        return Ok(message);
                    }
                }
            }
        }
    }

    fn on_data(
        &mut self,
        data: Data,
        is_final: bool,
        mut bytes: BytesMut,
        head: usize,
    ) -> Result<Option<Decoded>, Violation> {
        match (data, &mut self.fragments) {
            (Data::Text, None) if is_final => Ok(Some(Decoded::Text { bytes, head })),
            (Data::Binary, None) if is_final => {
                bytes.advance(head);
                Ok(Some(Decoded::Binary(bytes)))
            }
            (Data::Text | Data::Binary, None) => {
                bytes.advance(head);
                self.fragments = Some(Fragments { text: data == Data::Text, payload: bytes });
                Ok(None)
            }
            (Data::Continue, Some(fragments)) => {
                fragments.payload.extend_from_slice(&bytes[head..]);
                if !is_final {
                    return Ok(None);
                }
                let Some(Fragments { text, payload }) = self.fragments.take() else {
                    return Ok(None);
                };
                Ok(Some(match text {
                    true => Decoded::Text { bytes: payload, head: 0 },
                    false => Decoded::Binary(payload),
                }))
            }
            (Data::Continue, None) | (Data::Text | Data::Binary, Some(_)) => {
                Err(Violation::Protocol("fragments are out of order"))
            }
            (Data::Reserved(_), _) => Err(Violation::Protocol("a frame has an unknown opcode")),
        }
    }
}

/// The header at the beginning, its length, and the length of the payload. `None` if the header is
/// not complete.
fn parse(buffer: &BytesMut) -> Result<Option<(FrameHeader, usize, u64)>, Violation> {
    let mut cursor = std::io::Cursor::new(&buffer[..]);
    let parsed = FrameHeader::parse(&mut cursor)
        .map_err(|_| Violation::Protocol("a frame has an unknown opcode"))?;
    let Some((header, length)) = parsed else { return Ok(None) };
    if header.rsv1 || header.rsv2 || header.rsv3 {
        return Err(Violation::Protocol("an extension is used that was not negotiated"));
    }
    Ok(Some((header, cursor.position() as usize, length)))
}

fn on_control(control: Control, payload: BytesMut) -> Result<Decoded, Violation> {
    match control {
        Control::Ping => Ok(Decoded::Ping(payload)),
        Control::Pong => Ok(Decoded::Pong(payload)),
        Control::Close => close_frame(&payload).map(Decoded::Close),
        Control::Reserved(_) => Err(Violation::Protocol("a frame has an unknown opcode")),
    }
}

fn close_frame(payload: &[u8]) -> Result<Option<CloseFrame>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => Ok(None),
            _ => Err(Violation::Protocol("a close code has one byte")),
        };
    };
    let code = CloseCode::from(u16::from_be_bytes(*code));
    let reason =
        str::from_utf8(reason).map_err(|_| Violation::Protocol("a close reason is not UTF-8"))?;
    if !code.is_allowed() {
        return Err(Violation::Protocol("a close code is not allowed"));
    }
    Ok(Some(CloseFrame { code, reason: reason.into() }))
}

/// Masks a payload, or unmasks it.
pub(crate) fn apply_mask(mask: [u8; 4], payload: &mut [u8]) {
    for part in payload.chunks_mut(4) {
        for (byte, mask) in part.iter_mut().zip(mask) {
            *byte ^= mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use tungstenite::protocol::frame::Frame as ModelFrame;

    use super::*;

    /// Frames as the WebSocket library writes them.
    fn frame(opcode: OpCode, is_final: bool, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        let header = FrameHeader { opcode, is_final, mask, ..FrameHeader::default() };
        let frame = ModelFrame::from_payload(header, payload.to_vec().into());
        let mut bytes = Vec::new();
        frame.format(&mut bytes).unwrap();
        bytes
    }

    const TEXT: OpCode = OpCode::Data(Data::Text);
    const MORE: OpCode = OpCode::Data(Data::Continue);
    const MASK: [u8; 4] = [1, 2, 3, 200];

    /// Decodes the bytes of a peer, which arrive in portions of this size.
    fn decoded(
        decoder: &mut Decoder,
        bytes: &[u8],
        portion: usize,
    ) -> Vec<Result<Decoded, Violation>> {
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        for part in bytes.chunks(portion) {
            buffer.extend_from_slice(part);
            loop {
                match decoder.decode(&mut buffer) {
                    Ok(Decoded::Missing(missing)) => {
                        assert!(missing > 0);
                        break;
                    }
                    Err(violation) => {
                        found.push(Err(violation));
                        return found;
                    }
                    other => found.push(other),
                }
            }
        }
        found
    }

    fn text(text: &[u8], head: usize) -> Result<Decoded, Violation> {
        Ok(Decoded::Text { bytes: [&vec![0; head], text].concat().as_slice().into(), head })
    }

    #[test]
    fn messages_are_whole_however_the_stream_is_split() {
        let ping = OpCode::Control(Control::Ping);
        let pong = OpCode::Control(Control::Pong);
        let long = vec![b'x'; 70_000];
        for masks in [None, Some(MASK)] {
            let stream = [
                frame(TEXT, true, b"abc", masks),
                frame(TEXT, false, b"de", masks),
                frame(ping, true, b"!", masks),
                frame(MORE, false, b"", masks),
                frame(pong, true, b"1-2", masks),
                frame(MORE, true, b"f", masks),
                frame(OpCode::Data(Data::Binary), true, b"12345", masks),
                frame(pong, true, b"", masks),
                frame(TEXT, true, &long, masks),
                frame(OpCode::Control(Control::Close), true, b"\x03\xf4bye", masks),
            ]
            .concat();
            for portion in [1, 2, 7, 1_000, stream.len()] {
                let mut decoder = match masks {
                    Some(_) => Decoder::of_client(70_000),
                    None => Decoder::of_server(70_000),
                };
                let mut found = decoded(&mut decoder, &stream, portion);
                // The headers are not compared.
                for message in &mut found {
                    if let Ok(Decoded::Text { bytes, head }) = message {
                        bytes[..*head].fill(0);
                    }
                }
                let mask = masks.map_or(0, |mask| mask.len());
                let close = CloseFrame { code: CloseCode::Restart, reason: "bye".into() };
                let expected = vec![
                    text(b"abc", 2 + mask),
                    Ok(Decoded::Ping(BytesMut::from("!"))),
                    Ok(Decoded::Pong(BytesMut::from("1-2"))),
                    text(b"def", 0),
                    Ok(Decoded::Binary(BytesMut::from("12345"))),
                    Ok(Decoded::Pong(BytesMut::new())),
                    text(&long, 10 + mask),
                    Ok(Decoded::Close(Some(close))),
                ];
                assert_eq!(found, expected, "{portion}");
            }
        }
    }

    #[test]
    fn missing_bytes_are_counted_exactly() {
        let whole = frame(TEXT, true, &[b'x'; 300], Some(MASK));
        let (head, all) = (8, whole.len());
        for length in 0..all {
            let missing = if length < head { MAX_HEADER_BYTES } else { all - length };
            let decoded = Decoder::of_client(300).decode(&mut whole[..length].into());
            assert_eq!(decoded, Ok(Decoded::Missing(missing)), "{length}");
        }
    }

    #[test]
    fn a_message_may_be_as_long_as_the_limit() {
        let ping = OpCode::Control(Control::Ping);
        let longest = [b'!'; MAX_CONTROL_BYTES];
        let stream = [
            frame(TEXT, true, &[b'a'; 200], Some(MASK)),
            frame(TEXT, false, &[b'b'; 120], Some(MASK)),
            frame(ping, true, &longest, Some(MASK)),
            frame(MORE, true, &[b'c'; 80], Some(MASK)),
            frame(OpCode::Data(Data::Binary), false, &[1; 120], Some(MASK)),
            frame(MORE, true, &[2; 80], Some(MASK)),
        ]
        .concat();
        let found = decoded(&mut Decoder::of_client(200), &stream, stream.len());
        let [Ok(Decoded::Text { bytes, head }), rest @ ..] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(bytes[*head..], [b'a'; 200]);
        let expected = [
            Ok(Decoded::Ping(BytesMut::from(&longest[..]))),
            text(&[[b'b'; 120].as_slice(), &[b'c'; 80]].concat(), 0),
            Ok(Decoded::Binary(BytesMut::from(&[[1; 120].as_slice(), &[2; 80]].concat()[..]))),
        ];
        assert_eq!(rest, expected);
    }

    #[test]
    fn a_close_may_hold_a_code_or_nothing() {
        let close = |payload: &[u8]| {
            let bytes = frame(OpCode::Control(Control::Close), true, payload, None);
            Decoder::of_server(100).decode(&mut bytes[..].into())
        };
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        assert_eq!(close(b""), Ok(Decoded::Close(None)));
        assert_eq!(close(b"\x03\xe8"), Ok(Decoded::Close(Some(normal))));
    }

    #[test]
    fn a_violation_has_a_text() {
        let shown = |violation: Violation| violation.to_string();
        assert_eq!(shown(Violation::Protocol("so")), "WebSocket protocol broken: so");
        assert_eq!(shown(Violation::TooBig(7)), "a message of more than 7 bytes");
    }

    #[test]
    fn every_broken_rule_is_a_violation() {
        let close = OpCode::Control(Control::Close);
        let reserved = |bit: u8| {
            let mut bytes = frame(TEXT, true, b"a", Some(MASK));
            bytes[0] |= bit;
            bytes
        };
        for (rule, bytes) in [
            ("not masked", frame(TEXT, true, b"a", None)),
            ("an extension", reserved(0x40)),
            ("another", reserved(0x20)),
            ("a third", reserved(0x10)),
            ("an unknown opcode", vec![0x83, 0x80, 0, 0, 0, 0]),
            ("a control frame in pieces", frame(close, false, b"", Some(MASK))),
            ("a long ping", frame(OpCode::Control(Control::Ping), true, &[0; 126], Some(MASK))),
            ("a piece of nothing", frame(MORE, true, b"a", Some(MASK))),
            (
                "a message within another",
                [frame(TEXT, false, b"a", Some(MASK)), frame(TEXT, true, b"b", Some(MASK))]
                    .concat(),
            ),
            ("half a close code", frame(close, true, b"\x03", Some(MASK))),
            ("a forbidden close code", frame(close, true, b"\x03\xee", Some(MASK))),
            ("a close reason that is no text", frame(close, true, b"\x03\xe8\xff", Some(MASK))),
        ] {
            let mut decoder = Decoder::of_client(100);
            let found = decoded(&mut decoder, &bytes, bytes.len());
            assert!(matches!(found[..], [Err(Violation::Protocol(_))]), "{rule}: {found:?}");
        }
        let masked = frame(TEXT, true, b"a", Some(MASK));
        assert!(decoded(&mut Decoder::of_server(100), &masked, 99)[0].is_err());
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_before_it_has_arrived() {
        let whole = frame(TEXT, true, &[b'x'; 101], Some(MASK));
        assert_eq!(
            decoded(&mut Decoder::of_client(100), &whole[..8], 8),
            [Err(Violation::TooBig(100))]
        );
        let pieces = [
            frame(TEXT, false, &[b'x'; 60], Some(MASK)),
            frame(MORE, true, &[b'x'; 41], Some(MASK)),
        ]
        .concat();
        assert_eq!(
            decoded(&mut Decoder::of_client(100), &pieces, 10),
            [Err(Violation::TooBig(100))]
        );
        let huge = [0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4];
        assert!(decoded(&mut Decoder::of_client(100), &huge, 14)[0].is_err());
    }
}
