//! The WebSocket decoder, in whatever portions the bytes come, against a reading of RFC 6455 and
//! the WebSocket library.

use std::io::{self, Read, Write};

use bytes::BytesMut;
use proxy_common::websocket::decoder::{Decoded, Decoder, Violation};
use tungstenite::{
    Error, Message, WebSocket,
    error::ProtocolError,
    protocol::{Role, WebSocketConfig},
};

/// Short, so that what passes it is short too.
const MAX_BYTES: usize = 300;

/// The first byte tells who speaks and in which portions it comes; the rest is what is said. Text,
/// pings and closes are those that the library reads, and neither portions nor what comes later
/// change what was said before.
///
/// # Panics
///
/// They are not, or they do.
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
                // Whoever takes a message looks whether it is text.
                (Err(_), Err(Error::Utf8(_))) => return,
                (text, theirs) => panic!("{n}: {text:?}, {theirs:?}"),
            },
            (Ok(Heard::Binary(payload)), Ok(Message::Binary(theirs))) => {
                assert_eq!(payload, &theirs);
            }
            (Ok(Heard::Ping(payload)), Ok(Message::Ping(theirs))) => assert_eq!(payload, &theirs),
            (Ok(Heard::Pong), Ok(Message::Pong(_))) => {}
            // Nothing counts after it.
            (Ok(Heard::Close(ours)), Ok(Message::Close(theirs))) => {
                let theirs = theirs.map(|close| (close.code.into(), close.reason.to_string()));
                assert_eq!(ours, &theirs);
                return;
            }
            // A text in pieces is looked at piece by piece there.
            (_, Err(Error::Utf8(_))) => return,
            // It answers a close code that nobody may send with a code of its own.
            (Err(Violation::Protocol(_)), Ok(Message::Close(_))) => return,
            // Where a frame breaks two rules, which of them is told differs. It wants the whole
            // frame before it tells.
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

/// What is heard, without what only the sender's framing tells.
#[derive(Debug, PartialEq)]
enum Heard {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<(u16, String)>),
}

/// What is heard of bytes that come in portions around this size; the last may be how it ended.
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
                Ok(Decoded::Pong) => Heard::Pong,
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

/// What the library hears, and where its answers go.
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
