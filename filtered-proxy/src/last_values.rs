//! Keeps the last event of each kind and symbol, and renders the last values of a subscription.
//! Pure: the caller says what time it is.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, Hash, Hasher},
    time::Instant,
};

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use proxy_common::{
    metrics::{Count, Level, Metrics},
    protocol::{Channel, Kind, MAX_MESSAGE_BYTES, Market, Status, status_frame},
    websocket::Frame,
};

use crate::{coverage::KnownCoverage, index::Index};

/// Most bytes that the values of a market may take. When they are reached, a value that needs more
/// is not kept.
const MAX_BYTES: usize = 1 << 30;

/// Bytes that a value takes at most beside its text: its share of the table, which may be a little
/// less than half full, and what the allocator adds.
const OVERHEAD: usize = 16 * (size_of::<Value>() + 1) / 7 + 16;

/// The metrics of the values kept.
#[derive(Debug)]
struct LastValuesMetrics {
    values: Level,
    bytes: Level,
    skipped: Count,
}

/// The last event of each kind and symbol.
#[derive(Debug)]
pub struct LastValues {
    values: HashTable<Value>,
    hasher: RandomState,
    /// Bytes that the values take, at most.
    bytes: usize,
    max_bytes: usize,
    /// The number of the last event.
    number: u64,
    /// Whether an event was not kept since [`take_skipped`](Self::take_skipped) said so.
    skipped: bool,
    metrics: LastValuesMetrics,
}

/// The last event of a kind and symbol.
#[derive(Debug)]
struct Value {
    kind: Kind,
    /// How many bytes of `text` are the symbol, in the form of [`Market::symbol_key`].
    symbol_bytes: u32,
    /// The symbol and the event. In one piece, because the symbol is compared just before the event
    /// is replaced, so that both come with one look into memory.
    text: Vec<u8>,
    /// When the event was read from upstream.
    read_at: Instant,
    /// Its number among all events, for the order.
    number: u64,
}

impl Value {
    fn symbol(&self) -> &[u8] {
        &self.text[..self.symbol_bytes as usize]
    }

    fn event(&self) -> &[u8] {
        &self.text[self.symbol_bytes as usize..]
    }

    #[inline]
    fn is(&self, kind: Kind, symbol: &[u8]) -> bool {
        self.kind == kind && self.symbol() == symbol
    }
}

impl LastValues {
    /// Without values. Registers their metrics.
    pub fn new(metrics: &mut Metrics) -> Self {
        Self {
            values: HashTable::new(),
            hasher: RandomState::default(),
            bytes: 0,
            max_bytes: MAX_BYTES,
            number: 0,
            skipped: false,
            metrics: LastValuesMetrics {
                values: metrics.register("last_values", "Last values kept"),
                bytes: metrics.register_bytes("last_values", "Bytes of the last values"),
                skipped: metrics.register("last_values_skipped", "Events not kept as last values"),
            },
        }
    }

    /// Keeps an event as the last one of its kind and symbol. The symbol has the form of
    /// [`Market::symbol_key`].
    #[inline]
    pub fn keep(&mut self, kind: Kind, symbol: &[u8], event: &[u8], read_at: Instant) {
        self.number += 1;
        let hash = hash_of(&self.hasher, kind, symbol);
        match self.values.find_mut(hash, |value| value.is(kind, symbol)) {
            Some(value) if symbol.len() + event.len() <= value.text.capacity() => {
                value.text.truncate(symbol.len());
                value.text.extend_from_slice(event);
                value.read_at = read_at;
                value.number = self.number;
            }
            _ => self.keep_anew(hash, kind, symbol, event, read_at),
        }
    }

    /// Keeps an event that needs more memory, if there is room for it. A value that it was to
    /// replace is dropped: it is no longer the last one.
    #[cold]
    fn keep_anew(&mut self, hash: u64, kind: Kind, symbol: &[u8], event: &[u8], read_at: Instant) {
        if let Ok(entry) = self.values.find_entry(hash, |value| value.is(kind, symbol)) {
            let (old, _) = entry.remove();
            self.bytes -= old.text.capacity() + OVERHEAD;
        }
        // Rounded up, as the allocator does anyway: one more digit then needs no other buffer.
        let capacity = (symbol.len() + event.len()).next_multiple_of(16);
        let mut text = Vec::with_capacity(capacity);
        if self.bytes + text.capacity() + OVERHEAD <= self.max_bytes {
            text.extend_from_slice(symbol);
            text.extend_from_slice(event);
            self.bytes += text.capacity() + OVERHEAD;
            let symbol_bytes = symbol.len() as u32;
            let value = Value { kind, symbol_bytes, text, read_at, number: self.number };
            let hasher = &self.hasher;
            let rehash = |value: &Value| hash_of(hasher, value.kind, value.symbol());
            self.values.insert_unique(hash, value, rehash);
        } else {
            self.skipped = true;
            self.metrics.skipped.inc();
        }
        self.metrics.values.set(self.values.len() as i64);
        self.metrics.bytes.set(self.bytes as i64);
    }

    /// Whether an event was not kept for want of room. True once.
    pub fn take_skipped(&mut self) -> bool {
        std::mem::take(&mut self.skipped)
    }

    /// The messages with the last values of these channels, and how many events each holds: `begin`
    /// with the ages, then the events, oldest first. Several times if they do not fit one message.
    /// And `end`.
    ///
    /// # Errors
    ///
    /// The events have more bytes than this limit. The value says how many.
    pub fn snapshot(
        &self,
        channels: &BTreeSet<Channel>,
        market: Market,
        coverage: &KnownCoverage,
        now: Instant,
        limit: usize,
    ) -> Result<Vec<(Frame, u32)>, usize> {
        let mut values = self.of(channels, market, coverage);
        let bytes = values.iter().map(|value| value.event().len()).sum();
        if bytes > limit {
            return Err(bytes);
        }
        values.sort_unstable_by_key(|value| value.number);
        let mut frames = Vec::new();
        let mut part = Part::default();
        for value in values {
            if part.text.len() + value.event().len() + 2 > MAX_MESSAGE_BYTES {
                frames.extend(part.take());
            }
            part.add(value, now);
        }
        if !part.ages.is_empty() || frames.is_empty() {
            frames.extend(part.take());
        }
        frames.push((status_frame(&Status::snapshot_end()), 0));
        Ok(frames)
    }

    /// The values that live data of these channels would hold.
    fn of(
        &self,
        channels: &BTreeSet<Channel>,
        market: Market,
        coverage: &KnownCoverage,
    ) -> Vec<&Value> {
        let symbols = channels.iter().map(|channel| match channel {
            Channel::Symbol(kind, symbol) => Some((*kind, symbol.as_bytes())),
            Channel::All | Channel::Kind(_) | Channel::Prefix(_) => None,
        });
        // Usual, and quick however many values there are.
        if let Some(symbols) = symbols.collect::<Option<Vec<_>>>() {
            return symbols
                .into_iter()
                .filter_map(|(kind, symbol)| self.get(kind, symbol))
                .collect();
        }
        let mut index = Index::default();
        index.set_on_demand(&coverage.on_demand(), &coverage.listed());
        index.join(0, ());
        index.change(0, channels.iter().cloned(), true);
        let is_wanted = |value: &&Value| {
            let mut named = false;
            let (kind, symbol) = (Some(value.kind), Some(value.symbol()));
            let for_all = index.recipients(kind, symbol, market, |_| named = true);
            named || (for_all && !index.all().is_empty())
        };
        self.values.iter().filter(is_wanted).collect()
    }

    fn get(&self, kind: Kind, symbol: &[u8]) -> Option<&Value> {
        self.values.find(hash_of(&self.hasher, kind, symbol), |value| value.is(kind, symbol))
    }
}

/// One message of a snapshot.
#[derive(Debug, Default)]
struct Part {
    /// The array of events, without its closing bracket.
    text: Vec<u8>,
    /// The age of each in milliseconds. An age has fewer digits than an event has bytes, so a
    /// message has room for the ages of the events of another one.
    ages: Vec<u64>,
}

impl Part {
    fn add(&mut self, value: &Value, now: Instant) {
        self.text.push(if self.text.is_empty() { b'[' } else { b',' });
        self.text.extend_from_slice(value.event());
        let age = now.saturating_duration_since(value.read_at).as_millis();
        self.ages.push(u64::try_from(age).unwrap_or(u64::MAX));
    }

    /// The status that begins this part, and its events.
    fn take(&mut self) -> impl Iterator<Item = (Frame, u32)> {
        let (mut text, ages) = (std::mem::take(&mut self.text), std::mem::take(&mut self.ages));
        let events = ages.len() as u32;
        text.push(b']');
        let begin = status_frame(&Status::snapshot_begin(ages));
        let message = (events > 0).then(|| (Frame::new(&text), events));
        [(begin, 0)].into_iter().chain(message)
    }
}

#[inline]
fn hash_of(hasher: &RandomState, kind: Kind, symbol: &[u8]) -> u64 {
    let mut state = hasher.build_hasher();
    kind.hash(&mut state);
    state.write(symbol);
    state.finish()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn last_values(max_bytes: usize) -> LastValues {
        LastValues { max_bytes, ..LastValues::new(&mut Metrics::default()) }
    }

    /// The texts of the messages with the last values of these items.
    fn snapshot(values: &LastValues, items: &[&str], now: Instant) -> Vec<String> {
        let channels =
            items.iter().map(|item| Channel::parse(item, Market::Stocks).unwrap()).collect();
        let coverage = KnownCoverage::default();
        let frames = values.snapshot(&channels, Market::Stocks, &coverage, now, usize::MAX);
        let text = |frame: &Frame| String::from_utf8(frame.text().to_vec()).unwrap();
        frames.unwrap().iter().map(|(frame, _)| text(frame)).collect()
    }

    #[test]
    fn the_newest_event_of_each_item_stands_between_two_statuses() {
        let (mut values, start) = (last_values(MAX_BYTES), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        values.keep(Kind::T, b"A", b"{1}", at(0));
        values.keep(Kind::T, b"B", b"{2}", at(5));
        values.keep(Kind::Q, b"A", b"{3}", at(7));
        values.keep(Kind::T, b"A", b"{4, longer than before}", at(9));
        let end =
            r#"[{"ev":"status","status":"snapshot","message":"live data follows","state":"end"}]"#;
        let begin = |events, ages| {
            format!(
                r#"[{{"ev":"status","status":"snapshot","message":"last values follow: {events} events","state":"begin","events":{events},"ages":{ages}}}]"#
            )
        };
        let found = snapshot(&values, &["T.*"], at(10));
        assert_eq!(found, [&*begin(2, "[5,1]"), "[{2},{4, longer than before}]", end]);
        let found = snapshot(&values, &["T.A", "T.A*", "Q.A"], at(10));
        assert_eq!(found, [&*begin(2, "[3,1]"), "[{3},{4, longer than before}]", end]);
        let none = [begin(0, "[]"), end.to_owned()];
        assert_eq!(snapshot(&values, &["T.C"], at(10)), none);
        assert_eq!(snapshot(&values, &[], at(10)), none);
    }

    #[test]
    fn a_value_without_room_is_not_kept_and_no_older_one_stays() {
        let now = Instant::now();
        let mut values = last_values(2 * (OVERHEAD + 16));
        values.keep(Kind::T, b"A", b"{1}", now);
        values.keep(Kind::T, b"B", b"{2}", now);
        assert_eq!((values.metrics.values.get(), values.take_skipped()), (2, false));
        assert_eq!(values.metrics.bytes.get() as usize, values.max_bytes);
        values.keep(Kind::T, b"C", b"{3}", now);
        assert_eq!(snapshot(&values, &["T.*"], now)[1], "[{1},{2}]");
        assert!(values.take_skipped() && !values.take_skipped());
        values.keep(Kind::T, b"A", b"{4, longer than before}", now);
        assert_eq!(snapshot(&values, &["T.*"], now)[1], "[{2}]");
        values.keep(Kind::T, b"C", b"{5}", now);
        assert_eq!(snapshot(&values, &["T.*"], now)[1], "[{2},{5}]");
        assert_eq!(values.metrics.skipped.get(), 2);
    }

    #[test]
    fn as_many_values_as_a_message_holds_have_room_for_their_ages() {
        let mut values = last_values(MAX_BYTES);
        let (start, age) = (Instant::now(), Duration::from_hours(24 * 365));
        let event = |symbol: &str| format!(r#"{{"ev":"T","sym":"{symbol}"}}"#);
        for n in 0..100_000 {
            let symbol = n.to_string();
            values.keep(Kind::T, symbol.as_bytes(), event(&symbol).as_bytes(), start);
        }
        let found = snapshot(&values, &["*"], start + age);
        assert_eq!(found.len(), 2 * 3 + 1);
        assert!(found.iter().all(|text| text.len() <= MAX_MESSAGE_BYTES));
        let all: Vec<String> = (0..100_000).map(|n| event(&n.to_string())).collect();
        let events = [&found[1], &found[3], &found[5]].map(|text| &text[1..text.len() - 1]);
        assert_eq!(events.join(","), all.join(","));
    }

    #[test]
    fn a_value_that_needs_no_more_memory_stays_in_place() {
        let (mut values, now) = (last_values(MAX_BYTES), Instant::now());
        values.keep(Kind::T, b"A", b"{first}", now);
        let place = |values: &LastValues| values.get(Kind::T, b"A").unwrap().text.as_ptr();
        let (before, bytes) = (place(&values), values.bytes);
        for event in [&b"{2}"[..], b"{3, up to here}"] {
            values.keep(Kind::T, b"A", event, now);
            assert_eq!((place(&values), values.bytes), (before, bytes));
            assert_eq!(values.get(Kind::T, b"A").unwrap().event(), event);
        }
    }
}
