//! The WebSocket decoder, with its input in portions of any size, compared with RFC 6455 and the
//! WebSocket library.

use std::io::{self, Read, Write};

use bytes::BytesMut;
use proxy_common::websocket::{Decoded, Decoder, Violation};
use tungstenite::{
    Error, Message, WebSocket,
    error::ProtocolError,
    protocol::{Role, WebSocketConfig},
};

/// Short, so that inputs past the limit are short too.
const MAX_BYTES: usize = 300;

/// The first byte selects the sender and the portions; the rest is the input. The decoder must read
/// the same texts, pings and closes as the library. Neither portions nor later bytes may change
/// what it has read.
///
/// # Panics
///
/// If one of these does not hold.
pub fn in_any_portions(input: &[u8]) {
    let Some((&how, said)) = input.split_first() else { return };
    let masked = how & 1 == 1;
    let whole = decoded(masked, said, said.len().max(1), 0);
    for step in [1, 2 + usize::from(how >> 1)] {
        assert_eq!(decoded(masked, said, step, how), whole, "in portions of {step}");
    }
    let mut library = library(masked, said);
    for (n, message) in whole.iter().enumerate() {
        match (message, library.read()) {
            (Ok(Heard::Text(text)), theirs) => match (str::from_utf8(text), theirs) {
                (Ok(text), Ok(Message::Text(theirs))) => assert_eq!(text, theirs.as_str()),
                // The caller of the decoder checks whether a message is text.
                (Err(_), Err(Error::Utf8(_))) => return,
                (text, theirs) => panic!("{n}: {text:?}, {theirs:?}"),
            },
            (Ok(Heard::Binary(payload)), Ok(Message::Binary(theirs))) => {
                assert_eq!(payload, &theirs);
            }
            (Ok(Heard::Ping(payload)), Ok(Message::Ping(theirs))) => assert_eq!(payload, &theirs),
            (Ok(Heard::Pong(payload)), Ok(Message::Pong(theirs))) => assert_eq!(payload, &theirs),
            // Nothing after a close counts.
            (Ok(Heard::Close(ours)), Ok(Message::Close(theirs))) => {
                let theirs = theirs.map(|close| (close.code.into(), close.reason.to_string()));
                assert_eq!(ours, &theirs);
                return;
            }
            // The library checks a fragmented text piece by piece.
            (_, Err(Error::Utf8(_))) => return,
            // The library answers a close code that must not be sent with a code of its own.
            (Err(Violation::Protocol(_)), Ok(Message::Close(_))) => return,
            // If a frame breaks two rules, each side may report either. The library reports only
            // after the whole frame.
            (Err(_), Err(Error::Protocol(_) | Error::Capacity(_))) => return,
            (ours, theirs) => panic!("{n}: {ours:?}, {theirs:?}"),
        }
    }
    if whole.last().is_some_and(Result::is_ok) || whole.is_empty() {
        let end = library.read();
        let ended = ProtocolError::ResetWithoutClosingHandshake;
        assert!(
            matches!(&end, Err(Error::Utf8(_)))
                || matches!(&end, Err(Error::Protocol(e)) if *e == ended),
            "{end:?}"
        );
    }
}

/// What was read, without the details of the sender's framing.
#[derive(Debug, PartialEq)]
enum Heard {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

/// Decodes bytes in portions of about this size. The last item may be an error.
fn decoded(masked: bool, said: &[u8], size: usize, how: u8) -> Vec<Result<Heard, Violation>> {
    let mut decoder =
        if masked { Decoder::of_client(MAX_BYTES) } else { Decoder::of_server(MAX_BYTES) };
    let mut buffer = BytesMut::new();
    let mut heard = Vec::new();
    let mut rest = said;
    while !rest.is_empty() {
        let portion = (size + usize::from(how & rest[0]) % size).min(rest.len());
        buffer.extend_from_slice(&rest[..portion]);
        rest = &rest[portion..];
        loop {
            heard.push(Ok(match decoder.decode(&mut buffer) {
                Ok(Decoded::Text { bytes, head }) => {
                    assert!(bytes.len() - head <= MAX_BYTES);
                    Heard::Text(bytes[head..].to_vec())
                }
                Ok(Decoded::Binary(payload)) => Heard::Binary(payload.to_vec()),
                Ok(Decoded::Ping(payload)) => Heard::Ping(payload.to_vec()),
                Ok(Decoded::Pong(payload)) => Heard::Pong(payload.to_vec()),
                Ok(Decoded::Close(frame)) => {
                    heard.push(Ok(Heard::Close(
                        frame.map(|frame| (frame.code.into(), frame.reason.to_string())),
                    )));
                    return heard;
                }
                Ok(Decoded::Missing(bytes)) => {
                    assert!(bytes > 0, "something is missing");
                    break;
                }
                Err(violation) => {
                    heard.push(Err(violation));
                    return heard;
                }
            }));
        }
    }
    heard
}

/// The input of the library. Its answers are dropped.
struct Peer<'a>(&'a [u8]);

impl Read for Peer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Peer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn library(masked: bool, said: &[u8]) -> WebSocket<Peer<'_>> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_BYTES))
        .max_frame_size(Some(MAX_BYTES));
    let role = if masked { Role::Server } else { Role::Client };
    WebSocket::from_raw_socket(Peer(said), role, Some(config))
}
