//! Floors: how fast the machine is for programs that only write. They run as processes of their
//! own, like the proxies, and take orders on their standard input.

use std::{
    io::{BufRead, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    str::FromStr,
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    clock::Clock,
    feed::{Feed, STRIDE, Sender, append_header},
    load::{Sent, Step, pace},
    wire::ServerSide,
};

/// Bytes that the relay copies at once.
const RELAY_BYTES: usize = 256 * 1024;
/// A write that waits longer than this ends the floor. Without the limit it would hang.
const WRITE_LIMIT: Duration = Duration::from_secs(20);
/// The longest header of a frame that a server sends.
const MAX_HEADER: usize = 10;
/// The most frames taken together when the group is "all that are due".
const MAX_DUE: usize = 1_024;

/// How a floor sends the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handing {
    /// Every frame unchanged to every client, this many frames per write.
    Whole(usize),
    /// To each client its events of this many frames, in one write. 0 means all frames that are
    /// due.
    Split(usize),
}

/// An order to a floor. It is passed as one line.
#[derive(Debug, Clone, Copy)]
pub struct FloorStep {
    /// How fast and how long.
    pub step: Step,
    /// How the floor sends the frames.
    pub handing: Handing,
}

impl std::fmt::Display for FloorStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (word, group) = match self.handing {
            Handing::Whole(group) => ("whole", group),
            Handing::Split(group) => ("split", group),
        };
        let rate = self.step.rate.unwrap_or(0.0);
        write!(f, "{word} {group} {rate} {}", self.step.duration.as_secs_f64())
    }
}

impl FromStr for FloorStep {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [word, group, rate, seconds] = words[..] else { bail!("expected four words: {line}") };
        let group = group.parse()?;
        let handing = match word {
            "whole" => Handing::Whole(group),
            "split" => Handing::Split(group),
            _ => bail!("unknown way to send: {word}"),
        };
        let rate: f64 = rate.parse()?;
        let duration = Duration::from_secs_f64(seconds.parse()?);
        Ok(Self { step: Step { rate: (rate > 0.0).then_some(rate), duration }, handing })
    }
}

/// What a floor has sent, as one line.
pub fn sent_line(sent: &Sent) -> String {
    format!("{} {} {} {}", sent.events, sent.through, sent.start_ns, sent.end_ns)
}

/// Reads a line of [`sent_line`].
pub fn parse_sent(line: &str) -> Result<Sent> {
    let numbers: Vec<u64> = line
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .context("the answer of a floor")?;
    let [events, through, start_ns, end_ns] = numbers[..] else {
        bail!("unexpected answer of a floor: {line}")
    };
    Ok(Sent { events, through, start_ns, end_ns })
}

/// Copies bytes between one client and the upstream until one of them leaves.
pub fn relay(upstream: SocketAddr) -> Result<()> {
    let listener = listen()?;
    let (client, _) = listener.accept()?;
    let upstream = TcpStream::connect(upstream)?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    std::thread::scope(|scope| {
        scope.spawn(|| copy(&client, &upstream));
        copy(&upstream, &client);
    });
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = vec![0; RELAY_BYTES];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    // Each socket may be closed already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Accepts this many clients, then sends the load as the lines of standard input order.
pub fn fanout(clients: usize, frame_events: usize, clock: Clock) -> Result<()> {
    let listener = listen()?;
    let feed = Feed::new(frame_events);
    let (accepted, waiting) = mpsc::sync_channel(clients);
    std::thread::spawn(move || {
        for _ in 0..clients {
            if let Ok((socket, _)) = listener.accept()
                && accepted.send(socket).is_err()
            {
                return;
            }
        }
    });
    let mut outlets = Vec::with_capacity(clients);
    let mut takers = vec![Vec::new(); feed.topics().len()];
    for socket in waiting {
        let (socket, slots) = log_in(socket, &feed)?;
        for slot in slots {
            takers[slot as usize].push(outlets.len() as u32);
        }
        outlets.push(Outlet { socket, text: vec![0; MAX_HEADER] });
    }
    let mut floor = Floor { outlets, takers, dirty: Vec::new(), sender: feed.sender(), clock };
    for line in std::io::stdin().lock().lines() {
        let sent = floor.play(line?.parse()?, feed.frame_events())?;
        println!("{}", sent_line(&sent));
    }
    Ok(())
}

/// Listens on a free loopback port and prints its address.
fn listen() -> Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    Ok(listener)
}

/// Lets a client log in. Returns its socket and its slots in the ring.
fn log_in(socket: TcpStream, feed: &Feed) -> Result<(TcpStream, Vec<u32>)> {
    let mut side = ServerSide::accept(socket)?;
    loop {
        let incoming = side.receive()?;
        let (answer, channels) = incoming.answer();
        side.socket().write_all(&answer)?;
        if !channels.is_empty() {
            side.socket().set_write_timeout(Some(WRITE_LIMIT))?;
            return Ok((side.socket().try_clone()?, feed.slots_of(channels)));
        }
    }
}

#[derive(Debug)]
struct Outlet {
    socket: TcpStream,
    /// Room for a header, then the current events.
    text: Vec<u8>,
}

#[derive(Debug)]
struct Floor {
    outlets: Vec<Outlet>,
    /// For each slot of the ring, the outlets that get its event.
    takers: Vec<Vec<u32>>,
    dirty: Vec<u32>,
    sender: Sender,
    clock: Clock,
}

impl Floor {
    fn play(&mut self, order: FloorStep, frame_events: usize) -> Result<Sent> {
        let before = self.sender.sent();
        let (most, clock) = match order.handing {
            Handing::Whole(group) => (group, self.clock),
            Handing::Split(0) => (MAX_DUE, self.clock),
            Handing::Split(group) => (group, self.clock),
        };
        let (frames, start_ns, end_ns) = pace(order.step, frame_events, most, clock, |due| {
            let sent = self.sender.sent();
            match order.handing {
                Handing::Whole(_) => self.hand_out_whole(due)?,
                Handing::Split(_) => self.hand_out_split(due)?,
            }
            Ok((self.sender.sent() - sent) as usize)
        })?;
        let per_frame = frame_events as u64;
        let through = (before + frames) * per_frame;
        Ok(Sent { events: frames * per_frame, through, start_ns, end_ns })
    }

    fn hand_out_whole(&mut self, frames: usize) -> Result<()> {
        let bytes = self.sender.take(frames, self.clock.now_ns());
        for outlet in &mut self.outlets {
            outlet.socket.write_all(bytes)?;
        }
        Ok(())
    }

    fn hand_out_split(&mut self, frames: usize) -> Result<()> {
        // It takes several times when the ring ends within the group.
        let mut left = frames;
        while left > 0 {
            let before = self.sender.sent();
            let now = self.clock.now_ns();
            let slots = self.sender.slot()..;
            for (slot, event) in slots.zip(self.sender.events(left, now)) {
                for &taker in &self.takers[slot] {
                    let text = &mut self.outlets[taker as usize].text;
                    if text.len() == MAX_HEADER {
                        self.dirty.push(taker);
                    }
                    text.extend_from_slice(event);
                    let at = text.len() - event.len();
                    text[at] = b',';
                }
            }
            left -= (self.sender.sent() - before) as usize;
        }
        for taker in self.dirty.drain(..) {
            self.outlets[taker as usize].write()?;
        }
        Ok(())
    }
}

impl Outlet {
    /// Writes the current events as one message. Each event comes with the separator before it.
    fn write(&mut self) -> Result<()> {
        self.text[MAX_HEADER] = b'[';
        self.text.push(b']');
        let length = self.text.len() - MAX_HEADER;
        debug_assert_eq!(length % STRIDE, 1);
        let mut header = Vec::with_capacity(MAX_HEADER);
        append_header(&mut header, length);
        let start = MAX_HEADER - header.len();
        self.text[start..MAX_HEADER].copy_from_slice(&header);
        self.socket.write_all(&self.text[start..])?;
        self.text.truncate(MAX_HEADER);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_they_were_written() {
        for line in ["whole 1 0 2.5", "split 64 200000 0.5"] {
            let order: FloorStep = line.parse().unwrap();
            assert_eq!(order.to_string(), line);
        }
        assert!("split 64 1".parse::<FloorStep>().is_err());
        let sent = Sent { events: 1, through: 2, start_ns: 3, end_ns: 4 };
        assert_eq!(sent_line(&parse_sent(&sent_line(&sent)).unwrap()), "1 2 3 4");
    }
}
