//! The client's side of a WebSocket: whole frames out of one buffer, none of them copied, and a few small ones back.
//!
//! Made for an upstream that sends a flood of frames that go on as they are. The WebSocket library would take frames apart that
//! have to be put together again, and clear its buffer before each read.

use std::{
    fmt, future, io,
    io::Cursor,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::AsyncWrite;
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};
use tokio_util::io::poll_read_buf;

use super::login::Stream;
use crate::frame::{Frame, MAX_HEADER_BYTES};

/// The longest message taken. The vendor names no limit; a consumer that lags gets larger ones.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Bytes of a fresh buffer. Frames that are still in use keep theirs, and a new one is begun.
const BUFFER_BYTES: usize = 256 << 10;
/// With less room than this, a read would bring too little.
const MIN_ROOM: usize = 32 << 10;
/// A buffer that grew larger for one long frame is not kept.
const MAX_KEPT_BYTES: usize = 4 * BUFFER_BYTES;
/// Answers to pings beyond this wait for the upstream to read; what is dropped is only pongs to a peer that does not.
const MAX_UNSENT_BYTES: usize = 64 << 10;

/// A WebSocket to an upstream. Nothing happens on it but while it is polled.
pub(super) struct WebSocket {
    stream: Stream,
    /// What was read and is not taken yet.
    incoming: BytesMut,
    /// A message that comes in several frames, as far as it came.
    fragments: Option<Fragments>,
    /// Framed and masked, to be written.
    outgoing: BytesMut,
}

struct Fragments {
    opcode: OpCode,
    payload: Vec<u8>,
}

/// What an upstream sends.
#[derive(Debug)]
pub(super) enum Message {
    /// A text message, not yet known to be text.
    Text(Frame),
    /// A binary message of this many bytes.
    Binary(usize),
    /// The upstream closes, and what it says about it.
    Close(String),
    /// A sign of life. Pings are answered already.
    Control,
}

/// Why nothing more can be read or written.
#[derive(Debug)]
pub(super) enum Broken {
    /// The socket failed.
    Socket(io::Error),
    /// The upstream left without a word.
    Ended,
    /// The upstream broke the WebSocket protocol.
    Protocol(&'static str),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(error) => error.fmt(f),
            Self::Ended => f.write_str("end of stream without a close frame"),
            Self::Protocol(why) => write!(f, "WebSocket protocol broken: {why}"),
        }
    }
}

impl WebSocket {
    /// Over a stream that was upgraded; `early` came with the upgrade.
    pub(super) fn new(stream: Stream, early: &[u8]) -> Self {
        let mut incoming = BytesMut::with_capacity(BUFFER_BYTES.max(early.len()));
        incoming.extend_from_slice(early);
        Self { stream, incoming, fragments: None, outgoing: BytesMut::new() }
    }

    /// Waits for the next message, writing meanwhile what is to be written.
    ///
    /// Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Message, Broken> {
        future::poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            self.poll_next(cx)
        })
        .await
    }

    /// The next message, if it is there; otherwise the task is woken when more comes.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, Broken>> {
        loop {
            let missing = match self.take()? {
                Taken::Message(message) => return Poll::Ready(Ok(message)),
                Taken::Fragment => continue,
                Taken::Missing(bytes) => bytes,
            };
            self.make_room(missing);
            match ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.incoming)) {
                Ok(0) => return Poll::Ready(Err(Broken::Ended)),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(Broken::Socket(error))),
            }
        }
    }

    fn make_room(&mut self, missing: usize) {
        let room = self.incoming.capacity() - self.incoming.len();
        if room >= missing.max(MIN_ROOM) {
            return;
        }
        if self.incoming.is_empty() && self.incoming.capacity() > MAX_KEPT_BYTES {
            self.incoming = BytesMut::new();
        }
        self.incoming
            .reserve(missing.max(BUFFER_BYTES - self.incoming.len().min(BUFFER_BYTES / 2)));
    }

    /// Takes one frame out of the buffer.
    fn take(&mut self) -> Result<Taken, Broken> {
        let mut cursor = Cursor::new(&self.incoming[..]);
        let header = FrameHeader::parse(&mut cursor);
        let head = cursor.position() as usize;
        let header = header.map_err(|_| Broken::Protocol("unknown kind of frame"))?;
        let Some((header, length)) = header else {
            return Ok(Taken::Missing(MAX_HEADER_BYTES));
        };
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(Broken::Protocol("an extension that was not agreed upon"));
        }
        if header.mask.is_some() {
            return Err(Broken::Protocol("a masked frame"));
        }
        let held = self.fragments.as_ref().map_or(0, |fragments| fragments.payload.len());
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= MAX_MESSAGE_BYTES - held)
            .ok_or(Broken::Protocol("a message longer than 64 MiB"))?;
        let whole = head + length;
        if self.incoming.len() < whole {
            return Ok(Taken::Missing(whole - self.incoming.len()));
        }
        let frame = self.incoming.split_to(whole).freeze();
        match (header.opcode, header.is_final, &mut self.fragments) {
            (OpCode::Control(_), false, _) => {
                Err(Broken::Protocol("a control frame in several pieces"))
            }
            (OpCode::Control(control), true, _) => {
                self.on_control(control, &frame[head..]).map(Taken::Message)
            }
            (OpCode::Data(Data::Text), true, None) => {
                Ok(Taken::Message(Message::Text(Frame::received(frame, head))))
            }
            (OpCode::Data(Data::Binary), true, None) => Ok(Taken::Message(Message::Binary(length))),
            (OpCode::Data(Data::Text | Data::Binary), false, None) => {
                let payload = frame[head..].to_vec();
                self.fragments = Some(Fragments { opcode: header.opcode, payload });
                Ok(Taken::Fragment)
            }
            (OpCode::Data(Data::Continue), is_final, Some(fragments)) => {
                fragments.payload.extend_from_slice(&frame[head..]);
                if !is_final {
                    return Ok(Taken::Fragment);
                }
                let whole = self.fragments.take().expect("seen a moment ago");
                Ok(Taken::Message(match whole.opcode {
                    OpCode::Data(Data::Text) => Message::Text(Frame::new(&whole.payload)),
                    _ => Message::Binary(whole.payload.len()),
                }))
            }
            (OpCode::Data(_), _, _) => Err(Broken::Protocol("pieces of messages out of order")),
        }
    }

    fn on_control(&mut self, control: Control, payload: &[u8]) -> Result<Message, Broken> {
        if payload.len() > 125 {
            return Err(Broken::Protocol("a control frame longer than 125 bytes"));
        }
        match control {
            Control::Ping => {
                if self.outgoing.len() < MAX_UNSENT_BYTES {
                    self.send(OpCode::Control(Control::Pong), payload);
                }
                Ok(Message::Control)
            }
            Control::Pong => Ok(Message::Control),
            Control::Close => {
                self.send(OpCode::Control(Control::Close), &payload[..payload.len().min(2)]);
                Ok(Message::Close(match payload {
                    [high, low, reason @ ..] => format!(
                        "closed with code {} {:?}",
                        u16::from_be_bytes([*high, *low]),
                        String::from_utf8_lossy(reason)
                    ),
                    _ => "closed without a code".to_owned(),
                }))
            }
            Control::Reserved(_) => Err(Broken::Protocol("unknown kind of frame")),
        }
    }

    /// Adds a text message to what is to be written.
    pub(super) fn send_text(&mut self, text: &str) {
        self.send(OpCode::Data(Data::Text), text.as_bytes());
    }

    /// Adds a ping to what is to be written.
    pub(super) fn send_ping(&mut self) {
        self.send(OpCode::Control(Control::Ping), b"");
    }

    fn send(&mut self, opcode: OpCode, payload: &[u8]) {
        let mask = fastrand::u32(..).to_ne_bytes();
        let header = FrameHeader { opcode, mask: Some(mask), ..FrameHeader::default() };
        header
            .format(payload.len() as u64, &mut (&mut self.outgoing).writer())
            .expect("writing to memory does not fail");
        let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        self.outgoing.extend(masked);
    }

    /// Writes what is to be written, as far as the socket takes it; the task is woken when it takes more.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.outgoing.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while !self.outgoing.is_empty() {
            let stream = Pin::new(&mut self.stream);
            match ready!(stream.poll_write(cx, &self.outgoing)).map_err(Broken::Socket)? {
                0 => return Poll::Ready(Err(Broken::Ended)),
                written => self.outgoing.advance(written),
            }
        }
        Pin::new(&mut self.stream).poll_flush(cx).map_err(Broken::Socket)
    }
}

enum Taken {
    Message(Message),
    /// A part of a message.
    Fragment,
    /// Nothing yet: at least this many bytes more are needed.
    Missing(usize),
}
