//! The generator: an endless, seeded stream of events in the vendor's own forms.

pub(crate) mod currencies;
pub(crate) mod derivatives;
pub(crate) mod indices;
pub(crate) mod launchpad;
mod object;
pub(crate) mod stocks;

use std::sync::LazyLock;

use anyhow::{Context, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Zipf};

use self::object::Object;
use crate::{
    Market,
    universe::{self, Instrument},
};

/// Renders one event of one kind.
pub(crate) type Render = fn(&mut Draw<'_>, &mut String);

/// An endless stream of a market's events: kinds in the market's usual proportions, symbols by
/// Zipf's law with exponent 1, prices in a random walk, sequence numbers and trade ids never used
/// twice by one generator.
///
/// The same market, symbols, seed and times give the same bytes.
#[derive(Debug)]
pub struct Generator {
    market: Market,
    instruments: Vec<Instrument>,
    activity: Zipf<f64>,
    kinds: KindTable,
    rng: ChaCha8Rng,
    ids: Ids,
}

/// What a generated event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// Position in the market's [`Market::kinds`].
    pub kind: usize,
    /// Position in [`Generator::symbols`].
    pub symbol: usize,
}

/// Cumulated weights of the market's kinds.
#[derive(Debug)]
struct KindTable {
    upto: Vec<u32>,
    total: u32,
}

/// Numbers that only grow.
#[derive(Debug)]
struct Ids {
    sequence: u64,
    trade: u64,
}

/// Everything the rendering of one event draws from.
pub(crate) struct Draw<'a> {
    instrument: &'a mut Instrument,
    rng: &'a mut ChaCha8Rng,
    ids: &'a mut Ids,
    now_ns: u64,
}

/// Kinds the generator makes for a market named as in [`SimConfig::market`]; empty for a name that
/// is none.
///
/// [`SimConfig::market`]: crate::SimConfig::market
#[must_use]
pub fn sample_kinds(market: &str) -> &'static [&'static str] {
    static NAMES: LazyLock<Vec<Vec<&'static str>>> = LazyLock::new(|| {
        let names = |market: Market| market.kinds().iter().map(|kind| kind.ev).collect();
        Market::ALL.into_iter().map(names).collect()
    });
    match Market::ALL.iter().position(|known| known.name() == market) {
        Some(position) => &NAMES[position],
        None => &[],
    }
}

impl Generator {
    /// A generator of this market's events over its `symbols` most active symbols.
    ///
    /// # Errors
    /// When the market is unknown or `symbols` is 0.
    pub fn new(market: &str, symbols: usize, seed: u64) -> Result<Self> {
        let market: Market = market.parse()?;
        #[expect(clippy::cast_precision_loss, reason = "far fewer symbols than 2^53")]
        let activity = Zipf::new(symbols as f64, 1.0).context("needs at least one symbol")?;
        let mut total = 0;
        let upto = market.kinds().iter().map(|kind| {
            total += kind.weight;
            total
        });
        let upto = upto.collect();
        Ok(Self {
            market,
            instruments: universe::instruments(market, symbols),
            activity,
            kinds: KindTable { upto, total },
            rng: ChaCha8Rng::seed_from_u64(seed),
            ids: Ids { sequence: 1_000, trade: 100_000 },
        })
    }

    /// The market generated for.
    #[must_use]
    pub fn market(&self) -> Market {
        self.market
    }

    /// The symbols as trades and quotes carry them, the most active first.
    pub fn symbols(&self) -> impl ExactSizeIterator<Item = &str> {
        self.instruments.iter().map(|instrument| instrument.symbol.as_str())
    }

    /// Appends exactly one event object and says what it is about.
    ///
    /// `now_ns` is the time in nanoseconds since the Unix epoch. FMV, LV, LULD and NOI carry it
    /// unchanged in `t`, so a reader can measure their delay; the others carry milliseconds.
    pub fn next(&mut self, now_ns: u64, out: &mut String) -> Drawn {
        let ticket = self.rng.random_range(0..self.kinds.total);
        let kind = self.kinds.upto.iter().take_while(|upto| **upto <= ticket).count();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank between 1 and the number of symbols"
        )]
        let rank = self.activity.sample(&mut self.rng) as usize;
        let symbol = rank.clamp(1, self.instruments.len()) - 1;
        self.render(kind, symbol, now_ns, out);
        Drawn { kind, symbol }
    }

    /// Appends one event of the kind and symbol given by their positions.
    pub(crate) fn render(&mut self, kind: usize, symbol: usize, now_ns: u64, out: &mut String) {
        let instrument = &mut self.instruments[symbol];
        let mut draw = Draw { instrument, rng: &mut self.rng, ids: &mut self.ids, now_ns };
        draw.walk();
        (self.market.kinds()[kind].render)(&mut draw, out);
    }
}

impl Draw<'_> {
    /// Moves the price by at most a tick, within half and double the day's open.
    fn walk(&mut self) {
        let step = self.rng.random_range(-1..=1) * self.instrument.tick;
        let (low, high) = (self.instrument.open / 2 + 1, self.instrument.open * 2);
        self.instrument.price = (self.instrument.price + step).clamp(low, high);
    }

    fn now_ms(&self) -> u64 {
        self.now_ns / 1_000_000
    }

    /// The last whole second whose bar is out by now, as bars leave two seconds late.
    fn second(&self) -> (u64, u64) {
        let end = (self.now_ms() / 1_000).saturating_sub(1) * 1_000;
        (end.saturating_sub(1_000), end)
    }

    /// The last whole minute.
    fn minute(&self) -> (u64, u64) {
        let end = self.now_ms() / 60_000 * 60_000;
        (end.saturating_sub(60_000), end)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng.random_range(0..bound)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.random_range(0..from.len())]
    }

    fn sequence(&mut self) -> u64 {
        self.ids.sequence += self.rng.random_range(1..=4);
        self.ids.sequence
    }

    fn trade_id(&mut self) -> u64 {
        self.ids.trade += 1;
        self.ids.trade
    }

    /// Opens the object of an event of this kind.
    fn object<'o>(&self, ev: &str, out: &'o mut String) -> Object<'o> {
        Object::open(ev, self.instrument.decimals, out)
    }
}

/// Prices of one bar, in price units.
struct Bar {
    open: i64,
    close: i64,
    high: i64,
    low: i64,
    mean: i64,
}

impl Draw<'_> {
    fn bar(&mut self) -> Bar {
        let tick = self.instrument.tick;
        let close = self.instrument.price;
        let open = (close + self.rng.random_range(-3..=3) * tick).max(1);
        let high = open.max(close) + self.rng.random_range(0..=2) * tick;
        let low = (open.min(close) - self.rng.random_range(0..=2) * tick).max(1);
        Bar { open, close, high, low, mean: (open + close + high + low) / 4 }
    }

    /// Volume of a bar that has just been added to the day's.
    fn traded(&mut self, bound: u64) -> u64 {
        let volume = 1 + self.below(bound);
        self.instrument.volume += volume;
        volume
    }

    /// Bid and ask around the price.
    fn spread(&mut self) -> (i64, i64) {
        let bid = (self.instrument.price - self.instrument.tick).max(1);
        let ask = self.instrument.price + self.rng.random_range(1..=3) * self.instrument.tick;
        (bid, ask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_trades_over_the_counter_says_so() {
        let mut generator = Generator::new("stocks", 60, 1).unwrap();
        let bars = generator.market.kind("AM").unwrap();
        let symbols: Vec<String> = generator.symbols().map(str::to_owned).collect();
        for (position, symbol) in symbols.iter().enumerate() {
            let mut bar = String::new();
            generator.render(bars, position, 0, &mut bar);
            assert_eq!(bar.contains(r#","otc":true,"dv":"#), symbol == "HENOF", "{bar}");
        }
    }

    #[test]
    fn prices_stay_positive_and_near_their_open() {
        for market in Market::ALL {
            let mut generator = Generator::new(market.name(), 20, 9).unwrap();
            let mut out = String::new();
            for _ in 0..20_000 {
                out.clear();
                generator.next(1, &mut out);
            }
            for one in &generator.instruments {
                let near = one.price > 0 && one.price <= one.open * 2 && one.price >= one.open / 2;
                assert!(near, "{market}: {one:?}");
            }
        }
    }
}
