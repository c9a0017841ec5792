//! The client's side of a WebSocket. Takes whole frames out of one buffer without copying them, and
//! sends few and small ones.

use std::{
    collections::VecDeque,
    future, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, BytesMut};
use thiserror::Error;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};
use tokio_tungstenite::MaybeTlsStream;
use tokio_util::io::poll_read_buf;
use tungstenite::protocol::{
    CloseFrame,
    frame::{
        FrameHeader,
        coding::{CloseCode, Control, Data, OpCode},
    },
};

use super::dial_right::Guarded;
use crate::websocket::{Decoded, Decoder, Frame, Violation, apply_mask};

/// A connection to an upstream, encrypted or not.
pub type Stream = MaybeTlsStream<TcpStream>;

/// The longest message accepted. The vendor names no limit, and sends larger messages to a consumer
/// that lags.
const MAX_RECEIVED_BYTES: usize = 64 << 20;
/// The size of a new buffer. Frames in use keep their buffer, and reading goes on in another one.
const BUFFER_BYTES: usize = 256 << 10;
/// The least room for a read. With less, it would bring too little.
const MIN_ROOM: usize = 32 << 10;
/// The most buffers kept for use after their frames, beside those of frames that the owner keeps.
/// The system must clear new memory, which costs time.
const MAX_SPARE_BUFFERS: usize = 4;
/// A buffer that grew beyond this size for one long frame is not kept.
const MAX_KEPT_BYTES: usize = 4 * BUFFER_BYTES;
/// With this many bytes unsent, pongs are dropped: the upstream does not read them.
const MAX_UNSENT_BYTES: usize = 64 << 10;

/// A WebSocket to an upstream. It makes progress only while it is polled.
pub struct UpstreamSocket {
    stream: Stream,
    decoder: Decoder,
    /// Bytes read, but not yet decoded.
    incoming: BytesMut,
    /// Whether `incoming` is small enough to be kept.
    keeps: bool,
    /// Earlier buffers, the oldest first. Their frames may still be in use.
    spare_buffers: VecDeque<BytesMut>,
    max_spare_buffers: usize,
    /// Frames to be written, already masked.
    outgoing: BytesMut,
    /// Whether our close frame is among them, or written.
    closing: bool,
    read_at: Instant,
    /// Ends the connection with the right to have it, if that can end.
    guarded: Option<Guarded>,
}

/// A message from an upstream.
#[derive(Debug)]
pub enum UpstreamMessage {
    /// A text message, not yet checked to be UTF-8.
    Text(Frame),
    /// A binary message.
    Binary(BytesMut),
    /// The upstream closes. Holds its code and reason, if it gave any.
    Close(Option<CloseFrame>),
    /// A ping or a pong. The pong to a ping is already queued.
    Control,
}

/// Why nothing more can be read or written.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The socket failed.
    #[error("{0}")]
    Socket(io::Error),
    /// The stream ended without a close frame.
    #[error("end of stream without a close frame")]
    Ended,
    /// The upstream broke the WebSocket protocol.
    #[error("{0}")]
    Violation(Violation),
}

impl UpstreamSocket {
    /// A WebSocket over an upgraded stream. `early` holds the bytes that arrived with the upgrade.
    pub fn new(stream: Stream, early: &[u8]) -> Self {
        let mut incoming = BytesMut::with_capacity(BUFFER_BYTES.max(early.len()));
        incoming.extend_from_slice(early);
        let decoder = Decoder::of_server(MAX_RECEIVED_BYTES);
        Self {
            stream,
            decoder,
            incoming,
            keeps: true,
            spare_buffers: VecDeque::new(),
            max_spare_buffers: MAX_SPARE_BUFFERS,
            outgoing: BytesMut::new(),
            closing: false,
            read_at: Instant::now(),
            guarded: None,
        }
    }

    /// The connection ends with the right to have it.
    pub(super) fn guarded_by(&mut self, guarded: Guarded) {
        self.guarded = Some(guarded);
    }

    /// The owner keeps the newest frames, so many bytes of them. Their buffers are used again, in
    /// the order in which the owner drops their frames.
    pub fn frames_are_kept(&mut self, bytes: usize) {
        self.max_spare_buffers = MAX_SPARE_BUFFERS + bytes / BUFFER_BYTES;
    }

    /// When bytes were last read. One clock reading for each read, not for each message.
    pub fn read_at(&self) -> Instant {
        self.read_at
    }

    /// Waits for the next message. Meanwhile writes the queued frames.
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> Result<UpstreamMessage, SocketError> {
        future::poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            self.poll_next(cx)
        })
        .await
    }

    /// The next message, if it has arrived. Otherwise the task is woken when more bytes arrive.
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<UpstreamMessage, SocketError>> {
        loop {
            let decoded = match self.decoder.decode(&mut self.incoming) {
                Ok(decoded) => decoded,
                Err(violation) => {
                    self.send_close(&violation.close_code().to_be_bytes(), cx);
                    return Poll::Ready(Err(SocketError::Violation(violation)));
                }
            };
            let missing = match decoded {
                Decoded::Text { bytes, head: 0 } => {
                    return Poll::Ready(Ok(UpstreamMessage::Text(Frame::new(&bytes))));
                }
                Decoded::Text { bytes, head } => {
                    let frame = Frame::received(bytes.freeze(), head);
                    return Poll::Ready(Ok(UpstreamMessage::Text(frame)));
                }
                Decoded::Binary(payload) => {
                    return Poll::Ready(Ok(UpstreamMessage::Binary(payload)));
                }
                Decoded::Ping(payload) => {
                    if self.outgoing.len() < MAX_UNSENT_BYTES {
                        self.send(OpCode::Control(Control::Pong), &payload);
                    }
                    return Poll::Ready(Ok(UpstreamMessage::Control));
                }
                Decoded::Pong(_) => return Poll::Ready(Ok(UpstreamMessage::Control)),
                Decoded::Close(frame) => return Poll::Ready(Ok(self.on_close(frame, cx))),
                Decoded::Missing(bytes) => bytes,
            };
            self.make_room(missing);
            match ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.incoming)) {
                Ok(0) => return Poll::Ready(Err(SocketError::Ended)),
                Ok(_) => self.read_at = Instant::now(),
                Err(error) => return Poll::Ready(Err(SocketError::Socket(error))),
            }
        }
    }

    /// Makes room for the missing bytes of the current frame, and more. Uses the same buffer if its
    /// frames are no longer in use, or an earlier buffer of which that is true, or else a new one.
    fn make_room(&mut self, missing: usize) {
        let room = self.incoming.capacity() - self.incoming.len();
        if room >= missing.max(MIN_ROOM) {
            return;
        }
        let wanted = missing.max(BUFFER_BYTES - self.incoming.len().min(BUFFER_BYTES / 2));
        if self.keeps && self.incoming.try_reclaim(wanted) {
            return;
        }
        let total = self.incoming.len() + wanted;
        let mut next = self.spare_buffers.pop_front().unwrap_or_default();
        if !next.try_reclaim(total) {
            if next.capacity() > 0 {
                // Newer ones are in use if this one is. Unless it is one of few that somebody holds
                // for long, it is the next to become free.
                match self.max_spare_buffers > MAX_SPARE_BUFFERS {
                    true => self.spare_buffers.push_front(next),
                    false => self.spare_buffers.push_back(next),
                }
            }
            next = BytesMut::with_capacity(total);
        }
        next.extend_from_slice(&self.incoming);
        let mut last = std::mem::replace(&mut self.incoming, next);
        if std::mem::replace(&mut self.keeps, total <= MAX_KEPT_BYTES)
            && self.spare_buffers.len() < self.max_spare_buffers
        {
            last.clear();
            self.spare_buffers.push_back(last);
        }
    }

    fn on_close(&mut self, frame: Option<CloseFrame>, cx: &mut Context<'_>) -> UpstreamMessage {
        match &frame {
            Some(CloseFrame { code, .. }) => self.send_close(&u16::from(*code).to_be_bytes(), cx),
            None => self.send_close(&[], cx),
        }
        UpstreamMessage::Close(frame)
    }

    /// Closes with code 1000: reads on until the upstream has answered, then ends the stream.
    ///
    /// # Errors
    ///
    /// The connection ends without an answer.
    pub async fn close(mut self) -> Result<(), SocketError> {
        self.queue_close(&u16::from(CloseCode::Normal).to_be_bytes());
        while !matches!(self.next().await?, UpstreamMessage::Close(_)) {}
        self.stream.shutdown().await.map_err(SocketError::Socket)
    }

    /// Queues a close frame, unless one was queued before.
    fn queue_close(&mut self, code: &[u8]) {
        if !std::mem::replace(&mut self.closing, true) {
            self.send(OpCode::Control(Control::Close), code);
        }
    }

    /// Writes a close frame, as far as the socket has room, unless one was written before.
    fn send_close(&mut self, code: &[u8], cx: &mut Context<'_>) {
        self.queue_close(code);
        // An error is ignored: the caller has a better reason for the end.
        let _ = self.poll_flush(cx);
    }

    /// Queues a text message.
    pub fn send_text(&mut self, text: &str) {
        self.send(OpCode::Data(Data::Text), text.as_bytes());
    }

    /// Queues a ping.
    pub fn send_ping(&mut self) {
        self.send(OpCode::Control(Control::Ping), b"");
    }

    /// Queues a frame. It leaves with the next [`poll_flush`](Self::poll_flush) or
    /// [`next`](Self::next).
    pub fn send(&mut self, opcode: OpCode, payload: &[u8]) {
        let mask = fastrand::u32(..).to_ne_bytes();
        let header = FrameHeader { opcode, mask: Some(mask), ..FrameHeader::default() };
        header
            .format(payload.len() as u64, &mut (&mut self.outgoing).writer())
            .expect("writing to memory does not fail");
        let start = self.outgoing.len();
        self.outgoing.extend_from_slice(payload);
        apply_mask(mask, &mut self.outgoing[start..]);
    }

    /// Writes the queued frames, as far as the socket has room. The task is woken when it has more.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SocketError>> {
        while !self.outgoing.is_empty() {
            let stream = Pin::new(&mut self.stream);
            match ready!(stream.poll_write(cx, &self.outgoing)).map_err(SocketError::Socket)? {
                0 => return Poll::Ready(Err(SocketError::Ended)),
                written => self.outgoing.advance(written),
            }
        }
        // TLS may still hold bytes that it has taken.
        Pin::new(&mut self.stream).poll_flush(cx).map_err(SocketError::Socket)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// Sends these bytes as an upstream. Returns the message or error that they yield, and the
    /// payload of the close frame that answers them.
    async fn answered(bytes: &[u8]) -> (Result<UpstreamMessage, SocketError>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut upstream, _) = listener.accept().await.unwrap();
        let mut socket = UpstreamSocket::new(Stream::Plain(stream), b"");
        upstream.write_all(bytes).await.unwrap();
        let end = socket.next().await;
        drop(socket);
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer).await.unwrap();
        let (head, payload) = answer.split_at_mut(6);
        assert_eq!(head[..2], [0x88, 0x80 | payload.len() as u8]);
        apply_mask(head[2..].try_into().unwrap(), payload);
        (end, payload.to_vec())
    }

    #[tokio::test]
    async fn a_close_is_answered_before_the_end_is_reported() {
        let (end, answer) = answered(b"\x88\x05\x03\xf4bye").await;
        assert!(
            matches!(end, Ok(UpstreamMessage::Close(Some(frame))) if u16::from(frame.code) == 1012 && frame.reason == "bye")
        );
        assert_eq!(answer, 1012_u16.to_be_bytes());
        let (end, answer) = answered(b"\x88\x00").await;
        assert!(matches!(end, Ok(UpstreamMessage::Close(None))));
        assert_eq!(answer, b"");
    }

    #[tokio::test]
    async fn an_upstream_that_breaks_the_protocol_gets_a_close_code() {
        let masked = b"\x81\x81\x01\x02\x03\x04a";
        let huge = b"\x81\x7f\x7f\xff\xff\xff\xff\xff\xff\xff";
        for (bytes, code) in [(&masked[..], 1002_u16), (huge, 1009)] {
            let (end, answer) = answered(bytes).await;
            assert!(matches!(end, Err(SocketError::Violation(_))));
            assert_eq!(answer, code.to_be_bytes());
        }
    }
}
