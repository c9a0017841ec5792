//! One client: its login, and the walk through the bytes that it receives.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{
    event::{EVENT_BYTES, mark},
    feed::{Feed, STRIDE},
    latency::Latency,
    secure::Stream,
    verify::Verifier,
    wire::{KEY, client_frame, command_frame, find, header, subscribe_from, upgrade_request},
};

/// What a client asks for, and how it behaves.
#[derive(Debug, Clone)]
pub struct ClientPlan {
    /// Channels separated by commas.
    pub channels: String,
    /// The events that it must get.
    pub verifier: Verifier,
    /// Stops reading once it is subscribed.
    pub stalled: bool,
    /// Asks for positions, so that it can leave and come back.
    pub returns: bool,
    /// Looks at one event of each frame, and only counts the others.
    pub counts: bool,
}

/// How far the login of a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waits for the answer to the upgrade.
    Upgrading,
    /// Waits for the greeting, the verdict and this many acknowledgements.
    LoggingIn {
        /// Acknowledgements that have not come yet.
        acks: usize,
    },
    /// Subscribed.
    Ready,
    /// It has left.
    Away,
    /// The server ended the connection.
    Ended,
}

/// How a client came back.
#[derive(Debug, Default, Clone)]
pub struct Return {
    /// When it subscribed.
    pub asked_ns: u64,
    /// When `live` came.
    pub live_ns: Option<u64>,
    /// Events between `resumed` and `live`.
    pub replayed: u64,
    /// The client's events among those that a `gap` said it does not get.
    pub told: u64,
    /// How many of the client's events come before the end of the last `gap`.
    told_through: u64,
    /// The events that it had received when `resumed` came.
    received_before: u64,
}

/// The fields of a status that a client that comes back reads.
#[derive(Debug, Deserialize)]
struct Status {
    status: String,
    position: Option<String>,
}

/// One client of the proxy.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    plan: ClientPlan,
    phase: Phase,
    /// The beginning of a frame or answer whose rest has not come yet.
    tail: Vec<u8>,
    /// Bytes of the current frame of events that have not come yet.
    open: usize,
    /// Bytes that have not come yet of a frame of events that are only counted.
    uncounted: usize,
    /// Statuses that the proxy sent after the login.
    pub notices: Vec<String>,
    /// The last `position`, and how many events had been received before it.
    position: Option<(String, u64)>,
    /// Where its subscription begins, if it has come back.
    from: Option<String>,
    /// How it came back.
    pub back: Return,
}

impl Client {
    /// Asks for the upgrade on a connected socket.
    pub fn start(mut stream: Stream, plan: ClientPlan) -> Result<Self> {
        ask(&mut stream, &plan)?;
        Ok(Self {
            stream,
            plan,
            phase: Phase::Upgrading,
            tail: Vec::new(),
            open: 0,
            uncounted: 0,
            notices: Vec::new(),
            position: None,
            from: None,
            back: Return::default(),
        })
    }

    /// Breaks the connection off. What has come and is not read yet is lost.
    pub fn leave(&mut self) -> Result<()> {
        self.stream.socket().shutdown(std::net::Shutdown::Both)?;
        self.phase = Phase::Away;
        Ok(())
    }

    /// Asks for the upgrade on another socket. Will go on from where it stood.
    pub fn come_back(&mut self, mut stream: Stream) -> Result<()> {
        let (position, at) = self.position.as_ref().context("no position came")?;
        self.from = Some(format!("{position}-{}", self.verifier().received() - at));
        ask(&mut stream, &self.plan)?;
        (self.stream, self.phase, self.open) = (stream, Phase::Upgrading, 0);
        self.tail.clear();
        Ok(())
    }

    /// Whether it leaves and comes back.
    pub fn returns(&self) -> bool {
        self.plan.returns
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        self.stream.socket()
    }

    /// How far its login is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether it has stopped reading.
    pub fn is_stalled(&self) -> bool {
        self.plan.stalled
    }

    /// The record of the events that came and of those that did not.
    pub fn verifier(&self) -> &Verifier {
        &self.plan.verifier
    }

    /// Reads once, up to the room in `buffer`, and walks through the bytes. Returns the number of
    /// events that came.
    pub fn read(
        &mut self,
        buffer: &mut Vec<u8>,
        room: usize,
        now_ns: impl FnOnce() -> u64,
        feed: &Feed,
        latency: &mut Latency,
    ) -> Result<u64> {
        let kept = self.tail.len();
        if buffer.len() < kept + room {
            buffer.resize(kept + room, 0);
        }
        buffer[..kept].copy_from_slice(&self.tail);
        match self.stream.read(&mut buffer[kept..kept + room]) {
            Ok(0) => self.phase = Phase::Ended,
            Ok(n) => {
                let before = self.plan.verifier.received();
                let bytes = &buffer[..kept + n];
                let used = self.walk(bytes, now_ns(), feed, latency)?;
                self.tail.clear();
                self.tail.extend_from_slice(&bytes[used..]);
                return Ok(self.plan.verifier.received() - before);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => self.phase = Phase::Ended,
        }
        Ok(0)
    }

    /// Walks through bytes from the stream. Returns how many of them it has finished with.
    fn walk(
        &mut self,
        bytes: &[u8],
        now_ns: u64,
        feed: &Feed,
        latency: &mut Latency,
    ) -> Result<usize> {
        let mut at = 0;
        if self.phase == Phase::Upgrading {
            let Some(end) = find(bytes, b"\r\n\r\n") else { return Ok(0) };
            ensure!(bytes.starts_with(b"HTTP/1.1 101"), "upgrade refused: {}", show(&bytes[..end]));
            let acks = self.plan.channels.split(',').filter(|item| !item.is_empty()).count();
            self.phase = Phase::LoggingIn { acks };
            at = end + 4;
        }
        let mut sampled = false;
        loop {
            if self.uncounted > 0 {
                let came = self.uncounted.min(bytes.len() - at);
                (self.uncounted, at) = (self.uncounted - came, at + came);
                if self.uncounted > 0 {
                    return Ok(at);
                }
            }
            while self.open > 1 {
                let Some(event) = bytes.get(at + 1..).and_then(<[u8]>::first_chunk::<EVENT_BYTES>)
                else {
                    return Ok(at);
                };
                match mark(event) {
                    Some(mark) => {
                        if !sampled {
                            sampled = true;
                            if !feed.is_intact(event, mark.slot as usize) {
                                self.plan.verifier.take_corrupt();
                            }
                        }
                        latency.note(mark.stamp_ns, now_ns);
                        self.plan.verifier.take(mark);
                    }
                    None => self.plan.verifier.take_corrupt(),
                }
                at += STRIDE;
                self.open -= STRIDE;
            }
            if self.open == 1 {
                if at == bytes.len() {
                    return Ok(at);
                }
                self.open = 0;
                at += 1;
            }
            let rest = &bytes[at..];
            let Some((first, head, length)) = header(rest) else { return Ok(at) };
            if first == 0x81 && length % STRIDE == 1 && length > STRIDE {
                match rest.get(head..head + 12) {
                    None => return Ok(at),
                    Some(start) if start != br#"[{"ev":"stat"# && self.plan.counts => {
                        let event = rest.get(head + 1..).and_then(<[u8]>::first_chunk);
                        let Some(event) = event else { return Ok(at) };
                        match mark(event) {
                            Some(mark) => latency.note(mark.stamp_ns, now_ns),
                            None => self.plan.verifier.take_corrupt(),
                        }
                        self.plan.verifier.count((length / STRIDE) as u64);
                        (self.uncounted, at) = (length, at + head);
                        continue;
                    }
                    Some(start) if start != br#"[{"ev":"stat"# => {
                        self.open = length;
                        at += head;
                        continue;
                    }
                    Some(_) => {}
                }
            }
            let Some(payload) = rest.get(head..head + length) else { return Ok(at) };
            self.on_other(first, payload, now_ns, feed)?;
            at += head + length;
        }
    }

    /// Handles a frame that holds no events of the load.
    fn on_other(&mut self, first: u8, payload: &[u8], now_ns: u64, feed: &Feed) -> Result<()> {
        match first & 0x0f {
            9 => {
                let pong = client_frame(0x8a, payload);
                // A socket that cannot take a pong belongs to a session that the proxy is about to
                // end, and the end is noticed.
                let _ = self.stream.write(&pong);
            }
            8 => {
                let code = payload.first_chunk().map_or(0, |code| u16::from_be_bytes(*code));
                self.notices.push(format!("close {code}"));
                self.phase = Phase::Ended;
            }
            1 => self.on_status(payload, now_ns, feed)?,
            _ => {}
        }
        Ok(())
    }

    fn on_status(&mut self, payload: &[u8], now_ns: u64, feed: &Feed) -> Result<()> {
        if self.plan.returns && self.on_position(payload, now_ns, feed)? {
            return Ok(());
        }
        let has = |text: &str| find(payload, text.as_bytes()).is_some();
        let Phase::LoggingIn { acks } = &mut self.phase else {
            self.notices.push(show(payload));
            return Ok(());
        };
        if has(r#""status":"connected""#) {
            let mut commands = command_frame("auth", KEY);
            if !self.plan.channels.is_empty() {
                let channels = &self.plan.channels;
                self.back.asked_ns = now_ns;
                commands.extend(match &self.from {
                    Some(from) => subscribe_from(channels, from),
                    None => command_frame("subscribe", channels),
                });
            }
            self.stream.socket().set_nonblocking(false)?;
            self.stream.write_all(&commands).context("log in")?;
            self.stream.socket().set_nonblocking(true)?;
            return Ok(());
        }
        ensure!(
            !has(r#""status":"auth_failed""#) && !has(r#""status":"error""#),
            "{}",
            show(payload)
        );
        if !has(r#""status":"auth_success""#) {
            let items: Vec<serde_json::Value> = serde_json::from_slice(payload)?;
            *acks = acks.saturating_sub(items.len());
        }
        if *acks == 0 {
            self.phase = Phase::Ready;
        }
        Ok(())
    }

    /// Reads a status with a position. Returns `false` if it is another one.
    fn on_position(&mut self, payload: &[u8], now_ns: u64, feed: &Feed) -> Result<bool> {
        let statuses: [Status; 1] = match serde_json::from_slice(payload) {
            Ok(statuses) => statuses,
            // Acknowledgements come together.
            Err(_) => return Ok(false),
        };
        let [Status { status, position }] = statuses;
        let received = self.verifier().received();
        match (status.as_str(), position) {
            ("position", position) => self.position = position.map(|at| (at, received)),
            ("resumed", _) => self.back.received_before = received,
            ("live", _) => {
                self.back.live_ns = Some(now_ns);
                self.back.replayed = received - self.back.received_before;
            }
            ("gap", Some(position)) => {
                // The firehose counts frames as the load does, so this is exact.
                let frames: u64 = position.rsplit('-').next().unwrap_or_default().parse()?;
                let events = frames * feed.frame_events() as u64;
                let verifier = self.verifier();
                let (end, begin) = (
                    verifier.expected(events, feed.topics().len() as u64),
                    verifier.position().max(self.back.told_through),
                );
                self.back.told += end.saturating_sub(begin);
                self.back.told_through = end.max(begin);
                self.notices.push(show(payload));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Asks for the upgrade.
fn ask(stream: &mut Stream, plan: &ClientPlan) -> Result<()> {
    stream.write_all(&upgrade_request(if plan.returns { "?positions=1s" } else { "" }))?;
    stream.socket().set_nonblocking(true)?;
    Ok(())
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned()
}
