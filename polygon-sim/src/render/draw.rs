//! The source of one rendered event: its instrument, random numbers, counters and the time.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::object::Object;
use crate::instrument::Instrument;

/// Renders one event of one kind.
pub(crate) type Render = fn(&mut Draw<'_>, &mut String);

/// Numbers that only grow.
#[derive(Debug)]
pub(crate) struct Ids {
    sequence: u64,
    trade: u64,
}

impl Default for Ids {
    fn default() -> Self {
        Self { sequence: 1_000, trade: 100_000 }
    }
}

/// The source of one rendered event.
pub(crate) struct Draw<'a> {
    pub(super) instrument: &'a mut Instrument,
    pub(super) now_ns: u64,
    rng: &'a mut ChaCha8Rng,
    ids: &'a mut Ids,
}

/// Prices of one bar, in price units.
pub(super) struct Bar {
    pub(super) open: i64,
    pub(super) close: i64,
    pub(super) high: i64,
    pub(super) low: i64,
    pub(super) mean: i64,
}

impl<'a> Draw<'a> {
    pub(crate) fn new(
        instrument: &'a mut Instrument,
        now_ns: u64,
        rng: &'a mut ChaCha8Rng,
        ids: &'a mut Ids,
    ) -> Self {
        Self { instrument, now_ns, rng, ids }
    }

    /// Moves the price by at most a tick, within half and double the day's open.
    pub(crate) fn walk(&mut self) {
        let step = self.rng.random_range(-1..=1) * self.instrument.tick;
        let (low, high) = (self.instrument.open / 2 + 1, self.instrument.open * 2);
        self.instrument.price = (self.instrument.price + step).clamp(low, high);
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.now_ns / 1_000_000
    }

    /// The last whole second whose bar is out by now; bars come two seconds late.
    pub(super) fn second(&self) -> (u64, u64) {
        let end = (self.now_ms() / 1_000).saturating_sub(1) * 1_000;
        (end.saturating_sub(1_000), end)
    }

    /// The last whole minute.
    pub(super) fn minute(&self) -> (u64, u64) {
        let end = self.now_ms() / 60_000 * 60_000;
        (end.saturating_sub(60_000), end)
    }

    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.rng.random_range(0..bound)
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.random_range(0..from.len())]
    }

    pub(super) fn sequence(&mut self) -> u64 {
        self.ids.sequence += self.rng.random_range(1..=4);
        self.ids.sequence
    }

    pub(super) fn trade_id(&mut self) -> u64 {
        self.ids.trade += 1;
        self.ids.trade
    }

    /// Opens the object of an event of this kind.
    pub(super) fn object<'o>(&self, ev: &str, out: &'o mut String) -> Object<'o> {
        Object::open(ev, self.instrument.decimals, out)
    }

    pub(super) fn bar(&mut self) -> Bar {
        let tick = self.instrument.tick;
        let close = self.instrument.price;
        let open = (close + self.rng.random_range(-3..=3) * tick).max(1);
        let high = open.max(close) + self.rng.random_range(0..=2) * tick;
        let low = (open.min(close) - self.rng.random_range(0..=2) * tick).max(1);
        Bar { open, close, high, low, mean: (open + close + high + low) / 4 }
    }

    /// The volume of a bar, which it adds to the volume of the day.
    pub(super) fn traded(&mut self, bound: u64) -> u64 {
        let volume = 1 + self.below(bound);
        self.instrument.volume += volume;
        volume
    }

    /// Bid and ask around the price.
    pub(super) fn spread(&mut self) -> (i64, i64) {
        let bid = (self.instrument.price - self.instrument.tick).max(1);
        let ask = self.instrument.price + self.rng.random_range(1..=3) * self.instrument.tick;
        (bid, ask)
    }
}
