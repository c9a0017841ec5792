//! The generator: an endless, seeded stream of events in the vendor's own form.

use std::sync::LazyLock;

use anyhow::{Context, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Zipf};

use crate::{
    instrument::Instrument,
    market::Market,
    render::draw::{Draw, Ids},
    universe,
};

/// An endless stream of a market's events. Kinds come in the market's usual proportions, symbols by
/// Zipf's law with exponent 1, and prices walk at random. One generator never repeats a sequence
/// number or a trade id.
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

/// The kind and symbol of a generated event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// Position in the market's [`Market::kinds`].
    pub kind: usize,
    /// Position in [`Generator::symbols`].
    pub symbol: usize,
}

/// The cumulated weights of the market's kinds.
#[derive(Debug)]
struct KindTable {
    upto: Vec<u32>,
    total: u32,
}

/// The kinds that the generator makes for a market named as in [`SimConfig::market`]. Empty for an
/// unknown name.
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
            ids: Ids::default(),
        })
    }

    /// The market that it generates for.
    #[must_use]
    pub fn market(&self) -> Market {
        self.market
    }

    /// The symbols as trades and quotes spell them, the most active first.
    pub fn symbols(&self) -> impl ExactSizeIterator<Item = &str> {
        self.instruments.iter().map(|instrument| instrument.symbol.as_str())
    }

    /// Appends one event object and returns its kind and symbol.
    ///
    /// `now_ns` is the time in nanoseconds since the Unix epoch. FMV, LV, LULD and NOI carry it
    /// unchanged in `t`, so that a reader can measure their delay. The others carry milliseconds.
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

    /// Appends one event of the kind and symbol at these positions.
    pub(crate) fn render(&mut self, kind: usize, symbol: usize, now_ns: u64, out: &mut String) {
        let instrument = &mut self.instruments[symbol];
        let mut draw = Draw::new(instrument, now_ns, &mut self.rng, &mut self.ids);
        draw.walk();
        (self.market.kinds()[kind].render)(&mut draw, out);
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
