//! A session that sends back what comes. What reads, answers pings, writes and ends is what does so in every session, and can so
//! be put to the test of the Autobahn cases; no tier has sessions of this kind.

use tokio::{task::coop::consume_budget, time::Instant};
use tungstenite::protocol::frame::coding::{Data, OpCode};

use super::{Ground, Inbound, MAX_COMMAND_BYTES, Message, Session, Tier, Visitor};
use crate::{
    session::close::CloseReason,
    transport::socket::Socket,
    websocket::frame::{Frame, MAX_HEADER_BYTES, append_header},
};

/// As [`serve`](super::serve), without greeting, key and commands: each message is sent back. Messages may have `max_bytes`, and
/// without that as many as commands.
pub fn echo<'a, T: Tier>(
    ground: &Ground<'a, T>,
    socket: Socket,
    early: &[u8],
    visitor: Visitor<'a>,
    max_bytes: Option<usize>,
) -> impl Future<Output = CloseReason> + Send + use<'a, T> {
    let inbound = Inbound::new(early, max_bytes.unwrap_or(MAX_COMMAND_BYTES));
    let mut session = Session::new(ground, socket, inbound, visitor);
    async move {
        let reason = loop {
            let step = tokio::select! {
                biased;
                written = session.outbound.run_writer() => written,
                message = session.inbound.next(&session.outbound) => {
                    consume_budget().await;
                    message.and_then(|message| session.echo(&message))
                }
            };
            if let Err(reason) = step {
                break reason;
            }
        };
        session.end(reason, false).await;
        reason
    }
}

impl<T: Tier> Session<'_, T> {
    fn echo(&self, message: &Message) -> Result<(), CloseReason> {
        let frame = match message {
            Message::Text(text) => Frame::new(text.as_bytes()),
            Message::Binary(payload) => binary(payload),
            Message::Control | Message::Part => return Ok(()),
            Message::Close => return Err(CloseReason::ClientGone),
        };
        self.outbound.send_frame(&frame, Instant::now());
        Ok(())
    }
}

/// Never sent by a tier.
fn binary(payload: &[u8]) -> Frame {
    let mut bytes = Vec::with_capacity(MAX_HEADER_BYTES + payload.len());
    append_header(&mut bytes, OpCode::Data(Data::Binary), payload.len());
    let head = bytes.len();
    bytes.extend_from_slice(payload);
    Frame::received(bytes.into(), head)
}
