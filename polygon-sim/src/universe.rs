//! The symbols of a market: first well-known ones, then made-up ones of the same form.

use std::collections::HashSet;

use crate::{instrument::Instrument, market::Market};

/// Tickers and rough prices in cents, the most traded first. Among them are share classes with a
/// dot, preferreds and rights with lower-case letters, a warrant, a test ticker and one traded over
/// the counter.
const STOCKS: [(&str, i64); 60] = [
    ("AAPL", 23_142),
    ("NVDA", 18_512),
    ("TSLA", 41_230),
    ("MSFT", 49_861),
    ("AMZN", 22_815),
    ("SPY", 67_125),
    ("AMD", 16_133),
    ("META", 74_208),
    ("GOOGL", 24_490),
    ("QQQ", 60_177),
    ("BRK.B", 49_831),
    ("PLTR", 17_886),
    ("GOOG", 24_535),
    ("INTC", 3_122),
    ("BAC", 5_108),
    ("BACpL", 124_850),
    ("F", 1_164),
    ("AVGO", 33_837),
    ("SOFI", 2_743),
    ("NIO", 752),
    ("JPM", 31_175),
    ("XYZr", 185),
    ("WFC", 8_321),
    ("C", 10_144),
    ("T", 2_897),
    ("GE", 28_735),
    ("XOM", 11_368),
    ("PFE", 2_411),
    ("KO", 6_642),
    ("DIS", 11_455),
    ("NFLX", 120_417),
    ("ORCL", 29_160),
    ("CRM", 24_398),
    ("UBER", 9_726),
    ("SHOP", 14_902),
    ("COIN", 33_551),
    ("HOOD", 12_684),
    ("MARA", 1_836),
    ("IWM", 24_170),
    ("TQQQ", 10_344),
    ("BF.B", 2_863),
    ("V", 33_917),
    ("MA", 57_490),
    ("WMT", 10_285),
    ("COST", 91_746),
    ("HD", 40_412),
    ("BA", 21_530),
    ("CAT", 46_772),
    ("CVX", 15_726),
    ("LLY", 75_764),
    ("UNH", 34_409),
    ("JNJ", 17_953),
    ("MRK", 7_988),
    ("HENOF", 42),
    ("ABCX", 1_360),
    ("XYZw", 1_205),
    ("MSTR", 32_642),
    ("HUBC.WS", 4),
    ("NTEST.Q", 2_500),
    ("SNAP", 831),
];
const UNDERLYINGS: [(&str, i64); 8] = [
    ("SPY", 650),
    ("NVDA", 190),
    ("TSLA", 400),
    ("AAPL", 230),
    ("QQQ", 600),
    ("AMD", 160),
    ("MSFT", 500),
    ("AMZN", 230),
];
const EXPIRIES: [&str; 6] = ["261016", "261120", "261218", "270115", "270319", "270618"];
const PAIRS: [(&str, i64); 16] = [
    ("EUR/USD", 117_340),
    ("USD/JPY", 148_212),
    ("GBP/USD", 134_512),
    ("AUD/USD", 65_870),
    ("USD/CAD", 139_410),
    ("USD/CHF", 79_620),
    ("NZD/USD", 57_930),
    ("EUR/GBP", 87_240),
    ("EUR/JPY", 173_910),
    ("GBP/JPY", 199_350),
    ("EUR/CHF", 93_450),
    ("USD/MXN", 1_838_200),
    ("USD/ZAR", 1_729_400),
    ("USD/CNH", 713_050),
    ("AUD/JPY", 97_640),
    ("USD/SEK", 940_120),
];
const COINS: [(&str, i64); 12] = [
    ("BTC-USD", 1_124_057_700),
    ("ETH-USD", 41_021_100),
    ("SOL-USD", 2_084_700),
    ("XRP-USD", 28_412),
    ("DOGE-USD", 2_331),
    ("ADA-USD", 8_040),
    ("AVAX-USD", 301_500),
    ("LINK-USD", 213_400),
    ("LTC-USD", 1_061_900),
    ("MATIC-USD", 2_315),
    ("BTC-EUR", 957_930_100),
    ("ETH-BTC", 365),
];
const INDICES: [(&str, i64); 8] = [
    ("I:SPX", 671_244),
    ("I:NDX", 2_470_306),
    ("I:VIX", 1_642),
    ("I:DJI", 4_639_789),
    ("I:RUT", 243_498),
    ("I:COMP", 2_266_001),
    ("I:XSP", 67_124),
    ("I:SPX1D", 669_010),
];
const ROOTS: [(&str, i64); 10] = [
    ("ES", 673_125),
    ("NQ", 2_478_850),
    ("CL", 6_191),
    ("GC", 385_730),
    ("RTY", 245_150),
    ("YM", 4_661_000),
    ("SI", 4_675),
    ("ZN", 11_250),
    ("NG", 331),
    ("6E", 117),
];

/// The first `count` symbols of a market, the most active first.
pub(crate) fn instruments(market: Market, count: usize) -> Vec<Instrument> {
    let known: Vec<(String, i64)> = match market {
        Market::Stocks | Market::LaunchpadStocks => named(&STOCKS),
        Market::Options | Market::LaunchpadOptions => contracts(),
        Market::Forex | Market::LaunchpadForex => named(&PAIRS),
        Market::Crypto | Market::LaunchpadCrypto => named(&COINS),
        Market::Indices => named(&INDICES),
        Market::Futures => futures(),
    };
    let taken: HashSet<String> = known.iter().map(|(symbol, _)| symbol.clone()).collect();
    let made_up = (0..)
        .map(|n| (made_up_symbol(market, n), made_up_price(n)))
        .filter(|(symbol, _)| !taken.contains(symbol));
    let mut all: Vec<_> = known.iter().cloned().chain(made_up.take(count)).collect();
    all.truncate(count);
    all.into_iter().map(|(symbol, price)| instrument(market, symbol, price)).collect()
}

fn named(list: &[(&str, i64)]) -> Vec<(String, i64)> {
    list.iter().map(|(symbol, price)| ((*symbol).to_owned(), *price)).collect()
}

/// Every call and put around the money of the known underlyings, near expiries first.
fn contracts() -> Vec<(String, i64)> {
    let mut contracts = vec![("O:SPY261218C00650000".to_owned(), 1_842)];
    for expiry in EXPIRIES {
        for step in 0..20 {
            for (underlying, money) in UNDERLYINGS {
                let strike = (money - 50 + 5 * step) * 1_000;
                for side in ['C', 'P'] {
                    let symbol = format!("O:{underlying}{expiry}{side}{strike:08}");
                    if symbol != contracts[0].0 {
                        contracts.push((symbol, 50 + 173 * step));
                    }
                }
            }
        }
    }
    contracts
}

/// Quarterly contracts of the known roots, with the one-digit year that the feed uses, and one
/// spread.
fn futures() -> Vec<(String, i64)> {
    let mut futures = Vec::new();
    for expiry in ["Z6", "H7", "M7", "U7", "X6", "F7"] {
        futures.extend(ROOTS.iter().map(|(root, price)| (format!("{root}{expiry}"), *price)));
    }
    futures.insert(12, ("NQH7-NQM7".to_owned(), 21_525));
    futures
}

/// A symbol of the market's form that is different for every `n`.
fn made_up_symbol(market: Market, n: usize) -> String {
    let letters = letters(n);
    match market {
        Market::Stocks | Market::LaunchpadStocks => letters,
        Market::Options | Market::LaunchpadOptions => format!("O:{letters}261218C00050000"),
        Market::Forex | Market::LaunchpadForex => format!("{letters}/USD"),
        Market::Crypto | Market::LaunchpadCrypto => format!("{letters}-USD"),
        Market::Indices => format!("I:{letters}"),
        Market::Futures => format!("{letters}Z6"),
    }
}

/// `BAAA`, `BAAB` and so on, with more letters after `ZZZZ`.
fn letters(n: usize) -> String {
    let mut rest = n + 26 * 26 * 26;
    let mut letters = Vec::new();
    while rest > 0 {
        letters.push(b'A' + u8::try_from(rest % 26).unwrap_or(0));
        rest /= 26;
    }
    letters.iter().rev().map(|letter| char::from(*letter)).collect()
}

fn made_up_price(n: usize) -> i64 {
    i64::try_from(500 + n * 7_919 % 29_500).unwrap_or(500)
}

fn instrument(market: Market, symbol: String, price: i64) -> Instrument {
    let (decimals, tick, price) = match market {
        // Listed in cents; trades are priced to hundredths of a cent.
        Market::Stocks | Market::LaunchpadStocks | Market::Options | Market::LaunchpadOptions => {
            (4, if price < 100 { 1 } else { 100 }, price * 100)
        }
        Market::Forex | Market::LaunchpadForex if symbol.ends_with("/JPY") => (3, 1, price),
        Market::Forex | Market::LaunchpadForex => (5, 1, price),
        Market::Crypto | Market::LaunchpadCrypto => (4, 100, price),
        Market::Indices => (2, 1, price),
        Market::Futures => (2, 25, price),
    };
    let prefixed = match market {
        Market::Forex | Market::LaunchpadForex => format!("C:{}", symbol.replace('/', "")),
        Market::Crypto | Market::LaunchpadCrypto => format!("X:{symbol}"),
        Market::Stocks
        | Market::Options
        | Market::Indices
        | Market::Futures
        | Market::LaunchpadStocks
        | Market::LaunchpadOptions => symbol.clone(),
    };
    let otc = symbol == "HENOF";
    let tick = tick.min((price / 20).max(1));
    Instrument { symbol, prefixed, decimals, tick, open: price, price, volume: 10_000, otc }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_market_has_as_many_distinct_symbols_as_asked() {
        for market in Market::ALL {
            for count in [1, 7, 5_000] {
                let all = instruments(market, count);
                let distinct: HashSet<_> =
                    all.iter().map(|one| market.matching_form(&one.symbol)).collect();
                assert_eq!((all.len(), distinct.len()), (count, count), "{market}");
                assert!(all.iter().all(|one| one.price > 0 && one.tick > 0), "{market}");
            }
        }
    }

    #[test]
    fn the_odd_forms_are_among_the_stocks() {
        let all = instruments(Market::Stocks, 100);
        assert_eq!(all[0].symbol, "AAPL");
        for odd in ["BRK.B", "BACpL", "XYZr", "HUBC.WS", "NTEST.Q", "HENOF", "BAAA"] {
            assert!(all.iter().any(|one| one.symbol == odd), "{odd}");
        }
    }
}
