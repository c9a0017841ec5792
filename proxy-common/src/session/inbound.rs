//! The read half of a session: reads messages from the socket, and answers pings and close frames.

use std::{future, io};

use bytes::{Buf, BytesMut};
use tokio::task::yield_now;
use tungstenite::protocol::frame::{Utf8Bytes, coding::Control};

use super::{close::CloseReason, outbound::Outbound};
use crate::{
    transport::Socket,
    websocket::{Decoded, Decoder},
};

/// The longest command accepted, in bytes: enough for 50,000 subscriptions.
const MAX_COMMAND_BYTES: usize = 1 << 20;
/// Bytes read at a time. It is small because clients send little.
const READ_BYTES: usize = 4 << 10;
/// Bytes read of one message before the session checks its timers again.
const SLICE_BYTES: usize = 16 << 10;

/// A message of a client, or a part of one.
pub enum ClientMessage {
    /// A text message.
    Text(Utf8Bytes),
    /// A binary message.
    Binary(BytesMut),
    /// A ping. It is answered already.
    Ping,
    /// The answer to a ping, with its payload.
    Pong(BytesMut),
    /// A part of a long message. The session should let others run.
    Part,
    /// A close frame. It is answered already.
    Close,
}

/// The read half of a session. It holds no buffer while no message is half read.
pub struct Inbound {
    decoder: Decoder,
    buffer: BytesMut,
    /// Bytes read that the caller has not charged yet.
    pub uncharged: usize,
}

impl Inbound {
    /// Accepts commands of up to 1 MiB. `early` holds bytes that arrived before the session began.
    pub fn new(early: &[u8]) -> Self {
        Self::with_limit(early, MAX_COMMAND_BYTES)
    }

    /// Accepts messages of up to `max_bytes`.
    pub fn with_limit(early: &[u8], max_bytes: usize) -> Self {
        let decoder = Decoder::of_client(max_bytes);
        Self { decoder, buffer: BytesMut::from(early), uncharged: 0 }
    }

    /// Reads the next message, and answers pings and close frames.
    ///
    /// Cancel-safe: bytes already read are kept.
    ///
    /// # Errors
    ///
    /// The client has left or broke the protocol.
    pub async fn next(&mut self, outbound: &Outbound) -> Result<ClientMessage, CloseReason> {
        let mut left = SLICE_BYTES;
        loop {
            let decoded = self.decoder.decode(&mut self.buffer)?;
            if self.buffer.is_empty() {
                self.buffer = BytesMut::new();
            }
            match decoded {
                Decoded::Text { mut bytes, head } => {
                    bytes.advance(head);
                    let text = Utf8Bytes::try_from(bytes.freeze());
                    return text.map(ClientMessage::Text).map_err(|_| CloseReason::NotText);
                }
                Decoded::Binary(payload) => return Ok(ClientMessage::Binary(payload)),
                Decoded::Ping(payload) => {
                    outbound.send_control(Control::Pong, &payload);
                    return Ok(ClientMessage::Ping);
                }
                Decoded::Pong(payload) => return Ok(ClientMessage::Pong(payload)),
                Decoded::Close(frame) => {
                    let code = frame.map(|frame| u16::from(frame.code).to_be_bytes());
                    let payload = code.as_ref().map_or(&[][..], |code| &code[..]);
                    outbound.send_control(Control::Close, payload);
                    return Ok(ClientMessage::Close);
                }
                Decoded::Missing(_) if left == 0 => return Ok(ClientMessage::Part),
                Decoded::Missing(_) => {}
            }
            let socket = outbound.socket();
            future::poll_fn(|cx| socket.poll_read_ready(cx))
                .await
                .map_err(|_| CloseReason::ClientGone)?;
            let cost = self.read(socket)?;
            self.uncharged += cost;
            left = left.saturating_sub(cost);
        }
    }

    /// Reads what has arrived, through a buffer on the stack, so that idle sessions need none.
    /// Returns how many bytes this took from the wire.
    fn read(&mut self, socket: &Socket) -> Result<usize, CloseReason> {
        let (mut bytes, mut cost) = ([0; READ_BYTES], 0);
        match socket.try_read(&mut bytes, &mut cost) {
            Ok(0) => return Err(CloseReason::ClientGone),
            Ok(n) => self.buffer.extend_from_slice(&bytes[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(CloseReason::Protocol);
            }
            Err(_) => return Err(CloseReason::ClientGone),
        }
        Ok(cost)
    }
}

/// Reads and drops input that can no longer be decoded, until the peer closes.
pub(super) async fn discard(outbound: &Outbound) {
    let socket = outbound.socket();
    while future::poll_fn(|cx| socket.poll_read_ready(cx)).await.is_ok() {
        match read_and_drop(socket) {
            Ok(0) => return,
            Ok(_) => yield_now().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => yield_now().await,
            Err(_) => return,
        }
    }
}

fn read_and_drop(socket: &Socket) -> io::Result<usize> {
    socket.try_read(&mut [0; READ_BYTES], &mut 0)
}
