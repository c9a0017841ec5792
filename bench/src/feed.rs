//! The load: WebSocket frames that are made once and only stamped before they are sent. All events
//! have the same length.
//!
//! An event is 148 bytes with the feed's key order. Near its end, at fixed distances, stand the
//! time of sending (`t`, `pt`) and a sequence number (`q`). The sequence number holds the lap
//! around the ring of frames and the slot in the ring. The slot alone gives kind and symbol. A
//! client that knows its slots therefore notices events that are missing, repeated, out of order or
//! not its own.

use std::collections::HashMap;

use crate::event::{
    EVENT_BYTES, PATCH_AT, PATCH_BYTES, SLOT_AT, Topic, append_event, patch, symbol,
};

/// Bytes from one event to the next in a frame.
pub const STRIDE: usize = EVENT_BYTES + 1;
/// Events per frame, unless a scenario varies it.
pub const FRAME_EVENTS: usize = 50;
/// Symbols of the feed.
pub const SYMBOLS: usize = 10_000;
/// Events in the ring: enough for rare symbols to appear, few enough to stay in the processor's
/// cache.
const RING_EVENTS: usize = 51_200;
/// Trades per 100 events. The others are quotes.
const TRADES_PERCENT: u32 = 30;
const SEED: u64 = 20_261_001;

/// The ring of frames, and what each slot holds.
#[derive(Debug)]
pub struct Feed {
    /// All frames with their headers, concatenated.
    ring: Vec<u8>,
    header_bytes: usize,
    frame_events: usize,
    frames: usize,
    topics: Vec<Topic>,
    ranks: HashMap<String, usize>,
}

impl Feed {
    /// The load with this many events per frame. Every call gives the same.
    pub fn new(frame_events: usize) -> Self {
        let frames = (RING_EVENTS / frame_events).max(8);
        let mut random = fastrand::Rng::with_seed(SEED);
        let zipf = Zipf::new(SYMBOLS);
        let topics: Vec<Topic> = (0..frames * frame_events)
            .map(|_| Topic {
                rank: zipf.draw(&mut random) as u16,
                trade: random.u32(0..100) < TRADES_PERCENT,
            })
            .collect();
        let mut ring = Vec::new();
        let mut header_bytes = 0;
        for frame in topics.chunks(frame_events) {
            let start = ring.len();
            append_header(&mut ring, frame.len() * STRIDE + 1);
            header_bytes = ring.len() - start;
            for (i, topic) in frame.iter().enumerate() {
                ring.push(if i == 0 { b'[' } else { b',' });
                let slot = (start / (header_bytes + frame_events * STRIDE + 1)) * frame_events + i;
                append_event(&mut ring, *topic, slot, &mut random);
            }
            ring.push(b']');
        }
        let ranks = (0..SYMBOLS).map(|rank| (symbol(rank), rank)).collect();
        Self { ring, header_bytes, frame_events, frames, topics, ranks }
    }

    /// The number of frames in the ring.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// The number of events per frame.
    pub fn frame_events(&self) -> usize {
        self.frame_events
    }

    /// The topic of each slot of the ring.
    pub fn topics(&self) -> &[Topic] {
        &self.topics
    }

    /// The slots of the events that `wanted` accepts.
    pub fn slots(&self, wanted: impl Fn(Topic) -> bool) -> Vec<u32> {
        let slots = self.topics.iter().enumerate().filter(|(_, topic)| wanted(**topic));
        slots.map(|(slot, _)| slot as u32).collect()
    }

    /// The slots that these channels name: `T.AAPL`, `T.AA*`, `Q.*`, `*`. Channels of other kinds
    /// name none.
    pub fn slots_of<'a>(&self, channels: impl IntoIterator<Item = &'a str>) -> Vec<u32> {
        let mut wanted = vec![[false; 2]; SYMBOLS];
        for channel in channels {
            let (kinds, name): (&[usize], &str) = match channel.split_once('.') {
                None if channel == "*" => (&[0, 1], "*"),
                Some(("Q", name)) => (&[0], name),
                Some(("T", name)) => (&[1], name),
                _ => continue,
            };
            for &kind in kinds {
                if let Some(prefix) = name.strip_suffix('*') {
                    let with_prefix =
                        self.ranks.iter().filter(|(symbol, _)| symbol.starts_with(prefix));
                    with_prefix.for_each(|(_, &rank)| wanted[rank][kind] = true);
                } else if let Some(&rank) = self.ranks.get(name) {
                    wanted[rank][kind] = true;
                }
            }
        }
        self.slots(|topic| wanted[topic.rank as usize][usize::from(topic.trade)])
    }

    /// The text of one frame of the ring, without its header.
    pub fn text(&self, frame: usize) -> &[u8] {
        let bytes = self.frame_bytes();
        &self.ring[frame * bytes + self.header_bytes..(frame + 1) * bytes]
    }

    /// Bytes per frame, header included.
    pub fn frame_bytes(&self) -> usize {
        self.header_bytes + self.frame_events * STRIDE + 1
    }

    /// A copy of the ring that stamps and sends.
    pub fn sender(&self) -> Sender {
        Sender {
            ring: self.ring.clone(),
            header_bytes: self.header_bytes,
            frame_bytes: self.frame_bytes(),
            frame_events: self.frame_events,
            frames: self.frames,
            next: 0,
        }
    }

    /// The event at this slot of the ring, without a stamp.
    pub fn event(&self, slot: usize) -> &[u8] {
        let frame = slot / self.frame_events;
        let within = self.header_bytes + (slot % self.frame_events) * STRIDE + 1;
        let at = frame * self.frame_bytes() + within;
        &self.ring[at..at + EVENT_BYTES]
    }

    /// Whether a received event has the bytes with which it was sent, apart from its stamp.
    pub fn is_intact(&self, event: &[u8], slot: usize) -> bool {
        let sent = self.event(slot);
        event[..PATCH_AT] == sent[..PATCH_AT] && event[SLOT_AT..] == sent[SLOT_AT..]
    }
}

/// The ring while it is sent. It stamps frames in place and returns their bytes.
#[derive(Debug)]
pub struct Sender {
    ring: Vec<u8>,
    header_bytes: usize,
    frame_bytes: usize,
    frame_events: usize,
    frames: usize,
    /// The number of the next frame, counted over all laps.
    next: u64,
}

impl Sender {
    /// The number of frames taken so far.
    pub fn sent(&self) -> u64 {
        self.next
    }

    /// Stamps up to `most` frames with this time and returns their bytes. Returns fewer frames
    /// where the ring ends.
    pub fn take(&mut self, most: usize, now_ns: u64) -> &[u8] {
        let (lap, first) =
            (self.next / self.frames as u64, (self.next % self.frames as u64) as usize);
        let count = most.min(self.frames - first);
        let patch = patch(now_ns, lap);
        let range = first * self.frame_bytes..(first + count) * self.frame_bytes;
        for frame in self.ring[range.clone()].chunks_exact_mut(self.frame_bytes) {
            for event in frame[self.header_bytes + 1..].chunks_mut(STRIDE).take(self.frame_events) {
                event[PATCH_AT..PATCH_AT + PATCH_BYTES].copy_from_slice(&patch);
            }
        }
        self.next += count as u64;
        &self.ring[range]
    }

    /// The slot of the first event of the next frame.
    pub fn slot(&self) -> usize {
        (self.next % self.frames as u64) as usize * self.frame_events
    }

    /// As [`take`](Self::take), but one event at a time, each with the byte before it: a bracket
    /// for the first of a frame, a comma for all others.
    pub fn events(&mut self, most: usize, now_ns: u64) -> impl Iterator<Item = &[u8]> {
        let (frame_bytes, head, events) = (self.frame_bytes, self.header_bytes, self.frame_events);
        self.take(most, now_ns)
            .chunks_exact(frame_bytes)
            .flat_map(move |frame| frame[head..].chunks_exact(STRIDE).take(events))
    }
}

/// Appends the header of a text frame as a server sends it.
pub fn append_header(out: &mut Vec<u8>, length: usize) {
    out.push(0x81);
    match length {
        0..=125 => out.push(length as u8),
        126..=0xffff => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// Picks ranks with a probability of 1/(rank + 1).
#[derive(Debug)]
struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    fn new(ranks: usize) -> Self {
        let mut sum = 0.0;
        let cumulative = (0..ranks).map(|rank| {
            sum += 1.0 / (rank + 1) as f64;
            sum
        });
        Self { cumulative: cumulative.collect() }
    }

    fn draw(&self, random: &mut fastrand::Rng) -> usize {
        let at = random.f64() * self.cumulative[self.cumulative.len() - 1];
        self.cumulative.partition_point(|&sum| sum <= at).min(self.cumulative.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Mark, mark};

    #[test]
    fn frames_are_json_of_the_promised_shape() {
        let feed = Feed::new(FRAME_EVENTS);
        let mut symbols = std::collections::HashSet::new();
        let mut trades = 0;
        for frame in 0..feed.frames() {
            let events: Vec<serde_json::Value> = serde_json::from_slice(feed.text(frame)).unwrap();
            assert_eq!(events.len(), FRAME_EVENTS);
            for (i, event) in events.iter().enumerate() {
                let topic = feed.topics()[frame * FRAME_EVENTS + i];
                assert_eq!(event["ev"], if topic.trade { "T" } else { "Q" });
                assert_eq!(event["sym"], symbol(topic.rank as usize));
                symbols.insert(topic.rank);
                trades += u32::from(topic.trade);
            }
        }
        let share = f64::from(trades) / feed.topics().len() as f64;
        assert!((0.29..0.31).contains(&share), "{share}");
        let aapl = feed.slots_of(["T.AAPL", "Q.AAPL"]).len() as f64 / feed.topics().len() as f64;
        assert!((0.09..0.12).contains(&aapl), "{aapl}");
        assert!(symbols.len() > 5_000, "{}", symbols.len());
    }

    #[test]
    fn symbols_are_distinct() {
        let all: std::collections::HashSet<String> = (0..SYMBOLS).map(symbol).collect();
        assert_eq!(all.len(), SYMBOLS);
    }

    #[test]
    fn marks_are_read_as_they_were_stamped() {
        for events in [FRAME_EVENTS, 1, 5_000] {
            let feed = Feed::new(events);
            let mut sender = feed.sender();
            let (mut slot, mut lap) = (0, 0);
            for round in 0..3 * feed.frames() as u64 {
                let header = feed.header_bytes;
                let bytes = sender.take(1, 987_654_321 * (round % 7)).to_vec();
                assert_eq!(bytes.len(), feed.frame_bytes());
                for event in bytes[header + 1..].chunks(STRIDE).take(events) {
                    let event: &[u8; EVENT_BYTES] = event[..EVENT_BYTES].try_into().unwrap();
                    let expected = Mark { stamp_ns: 987_654_321 * (round % 7), lap, slot };
                    assert_eq!(mark(event), Some(expected));
                    assert!(feed.is_intact(event, slot as usize));
                    slot += 1;
                }
                if slot as usize == feed.topics().len() {
                    (slot, lap) = (0, lap + 1);
                }
            }
        }
    }
}
