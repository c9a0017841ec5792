//! The few parts of WebSocket that the load needs on both sides, written by hand.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::feed::append_header;

/// The key that all processes of a run share.
pub const KEY: &str = "bench-key";
/// The longest upgrade request or answer accepted.
const MAX_HTTP_BYTES: usize = 8 * 1024;

/// A command of a client.
#[derive(Debug, Deserialize)]
pub struct Command {
    /// `auth`, `subscribe` or `unsubscribe`.
    pub action: String,
    /// A key, or channels separated by commas.
    pub params: String,
}

/// The header of a frame: first byte, bytes of header (mask included), bytes of payload. `None` if
/// it is not complete.
#[inline]
pub fn header(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    match second & 0x7f {
        126 => {
            let length = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
            Some((first, 4 + mask, length.into()))
        }
        127 => {
            let length = u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?);
            Some((first, 10 + mask, length as usize))
        }
        length => Some((first, 2 + mask, length.into())),
    }
}

/// The upgrade request of a client, with a query or none: `?positions=1s`.
pub fn upgrade_request(query: &str) -> Vec<u8> {
    let request = format!(
        "GET /stocks{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\n\r\n"
    );
    request.into_bytes()
}

/// A frame as a client sends it, masked with zeros.
pub fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(payload.len() + 14);
    append_header(&mut framed, payload.len());
    framed[0] = first;
    framed[1] |= 0x80;
    framed.extend_from_slice(&[0; 4]);
    framed.extend_from_slice(payload);
    framed
}

/// A command of a client as a frame.
pub fn command_frame(action: &str, params: &str) -> Vec<u8> {
    client_frame(0x81, format!(r#"{{"action":"{action}","params":"{params}"}}"#).as_bytes())
}

/// A subscription that begins behind a position.
pub fn subscribe_from(params: &str, from: &str) -> Vec<u8> {
    let command = format!(r#"{{"action":"subscribe","params":"{params}","from":"{from}"}}"#);
    client_frame(0x81, command.as_bytes())
}

/// The server's side of one connection, with blocking reads.
#[derive(Debug)]
pub struct ServerSide {
    socket: TcpStream,
    read: Vec<u8>,
}

impl ServerSide {
    /// Answers the upgrade request on this socket, and greets.
    pub fn accept(mut socket: TcpStream) -> Result<Self> {
        socket.set_nodelay(true)?;
        let mut read = Vec::new();
        let end = loop {
            if let Some(end) = find(&read, b"\r\n\r\n") {
                break end + 4;
            }
            if read.len() > MAX_HTTP_BYTES {
                bail!("the upgrade request is too long");
            }
            fill(&mut socket, &mut read)?;
        };
        let request = String::from_utf8_lossy(&read[..end]).into_owned();
        let key = request
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"))
            .map(|(_, value)| value.trim())
            .context("no Sec-WebSocket-Key in the upgrade request")?;
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            derive_accept_key(key.as_bytes())
        );
        socket.write_all(answer.as_bytes())?;
        socket.write_all(&statuses([("connected", "Connected Successfully")]))?;
        read.drain(..end);
        Ok(Self { socket, read })
    }

    /// Waits for the next command or ping. Fails when the peer closes.
    pub fn receive(&mut self) -> Result<Incoming> {
        loop {
            if let Some((first, head, length)) = header(&self.read)
                && self.read.len() >= head + length
            {
                let mask: [u8; 4] = self.read[head - 4..head].try_into()?;
                let payload: Vec<u8> = self.read[head..head + length]
                    .iter()
                    .zip(mask.iter().cycle())
                    .map(|(byte, mask)| byte ^ mask)
                    .collect();
                self.read.drain(..head + length);
                return Ok(match first & 0x0f {
                    1 => Incoming::Command(serde_json::from_slice(&payload)?),
                    9 => Incoming::Ping(payload),
                    8 => bail!("closed by the peer"),
                    _ => continue,
                });
            }
            fill(&mut self.socket, &mut self.read)?;
        }
    }

    /// The socket, for writing.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

/// A message of a client.
#[derive(Debug)]
pub enum Incoming {
    /// A command.
    Command(Command),
    /// A ping to be answered.
    Ping(Vec<u8>),
}

impl Incoming {
    /// The frame that answers it as the vendor does, and the channels that it subscribes to.
    pub fn answer(&self) -> (Vec<u8>, Vec<&str>) {
        match self {
            Self::Ping(payload) => {
                let mut framed = Vec::new();
                append_header(&mut framed, payload.len());
                framed[0] = 0x8a;
                framed.extend_from_slice(payload);
                (framed, Vec::new())
            }
            Self::Command(command) if command.action == "auth" => {
                (statuses([("auth_success", "authenticated")]), Vec::new())
            }
            Self::Command(command) => {
                let subscribe = command.action == "subscribe";
                let verb = if subscribe { "subscribed" } else { "unsubscribed" };
                let items: Vec<&str> = command.params.split(',').map(str::trim).collect();
                let messages: Vec<String> =
                    items.iter().map(|item| format!("{verb} to: {item}")).collect();
                let framed = statuses(messages.iter().map(|text| ("success", text.as_str())));
                (framed, if subscribe { items } else { Vec::new() })
            }
        }
    }
}

/// Status objects in one frame.
fn statuses<'a>(statuses: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let objects: Vec<String> = statuses
        .into_iter()
        .map(|(status, message)| {
            format!(r#"{{"ev":"status","status":"{status}","message":"{message}"}}"#)
        })
        .collect();
    let text = format!("[{}]", objects.join(","));
    let mut framed = Vec::new();
    append_header(&mut framed, text.len());
    framed.extend_from_slice(text.as_bytes());
    framed
}

fn fill(socket: &mut TcpStream, read: &mut Vec<u8>) -> io::Result<()> {
    let mut part = [0; 16 * 1024];
    match socket.read(&mut part)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        n => {
            read.extend_from_slice(&part[..n]);
            Ok(())
        }
    }
}

/// The position of one text in another.
pub fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_written() {
        for length in [0, 125, 126, 0xffff, 0x1_0000] {
            let framed = client_frame(0x81, &vec![b'x'; length]);
            let head = framed.len() - length;
            assert_eq!(header(&framed), Some((0x81, head, length)));
            assert_eq!(header(&framed[..1]), None);
        }
    }
}
