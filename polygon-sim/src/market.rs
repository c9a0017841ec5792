//! The markets, and the event kinds of each: name, symbol field, share of the traffic, and the
//! function that renders it.

use std::{fmt, str::FromStr};

use anyhow::bail;

use crate::render::{currencies, derivatives, draw::Render, indices, launchpad, stocks};

/// One of the vendor's feeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Market {
    /// US equities.
    Stocks,
    /// US options.
    Options,
    /// Currency pairs.
    Forex,
    /// Crypto pairs.
    Crypto,
    /// Indices.
    Indices,
    /// Futures.
    Futures,
    /// Launchpad product on stocks; its host may be retired.
    LaunchpadStocks,
    /// Launchpad product on options.
    LaunchpadOptions,
    /// Launchpad product on forex.
    LaunchpadForex,
    /// Launchpad product on crypto.
    LaunchpadCrypto,
}

/// One kind of event of a market.
pub struct Kind {
    /// The value of `ev`, and the part of a channel before its first dot.
    pub ev: &'static str,
    /// The field that holds the symbol.
    pub symbol_field: &'static str,
    /// Its share of the generated traffic, relative to the market's other kinds.
    pub(crate) weight: u32,
    pub(crate) render: Render,
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kind").field("ev", &self.ev).finish_non_exhaustive()
    }
}

const fn kind(ev: &'static str, symbol_field: &'static str, weight: u32, render: Render) -> Kind {
    Kind { ev, symbol_field, weight, render }
}

static STOCKS: [Kind; 7] = [
    kind("Q", "sym", 6_800, stocks::quote),
    kind("T", "sym", 3_000, stocks::trade),
    kind("A", "sym", 90, stocks::second_bar),
    kind("FMV", "sym", 60, stocks::fair_value),
    kind("AM", "sym", 30, stocks::minute_bar),
    kind("LULD", "T", 10, stocks::limit_bands),
    kind("NOI", "T", 10, stocks::imbalance),
];
static OPTIONS: [Kind; 5] = [
    kind("Q", "sym", 9_400, derivatives::option_quote),
    kind("T", "sym", 400, derivatives::option_trade),
    kind("A", "sym", 100, derivatives::option_second_bar),
    kind("AM", "sym", 40, derivatives::option_minute_bar),
    kind("FMV", "sym", 60, stocks::fair_value),
];
static FOREX: [Kind; 4] = [
    kind("C", "p", 9_000, currencies::forex_quote),
    kind("CAS", "pair", 700, currencies::forex_second_bar),
    kind("CA", "pair", 200, currencies::forex_minute_bar),
    kind("FMV", "sym", 100, stocks::fair_value),
];
static CRYPTO: [Kind; 6] = [
    kind("XL2", "pair", 6_000, currencies::book),
    kind("XQ", "pair", 2_500, currencies::crypto_quote),
    kind("XT", "pair", 1_000, currencies::crypto_trade),
    kind("XAS", "pair", 300, currencies::crypto_second_bar),
    kind("XA", "pair", 100, currencies::crypto_minute_bar),
    kind("FMV", "sym", 100, stocks::fair_value),
];
static INDICES: [Kind; 3] = [
    kind("V", "T", 9_000, indices::value),
    kind("A", "sym", 800, indices::second_bar),
    kind("AM", "sym", 200, indices::minute_bar),
];
static FUTURES: [Kind; 4] = [
    kind("Q", "sym", 7_500, derivatives::future_quote),
    kind("T", "sym", 2_300, derivatives::future_trade),
    kind("A", "sym", 150, derivatives::future_second_bar),
    kind("AM", "sym", 50, derivatives::future_minute_bar),
];
static LAUNCHPAD: [Kind; 2] =
    [kind("LV", "sym", 9_000, launchpad::value), kind("AM", "sym", 1_000, launchpad::minute_bar)];

impl Market {
    /// Every market.
    pub const ALL: [Self; 10] = [
        Self::Stocks,
        Self::Options,
        Self::Forex,
        Self::Crypto,
        Self::Indices,
        Self::Futures,
        Self::LaunchpadStocks,
        Self::LaunchpadOptions,
        Self::LaunchpadForex,
        Self::LaunchpadCrypto,
    ];

    /// Its name in settings and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stocks => "stocks",
            Self::Options => "options",
            Self::Forex => "forex",
            Self::Crypto => "crypto",
            Self::Indices => "indices",
            Self::Futures => "futures",
            Self::LaunchpadStocks => "launchpad-stocks",
            Self::LaunchpadOptions => "launchpad-options",
            Self::LaunchpadForex => "launchpad-forex",
            Self::LaunchpadCrypto => "launchpad-crypto",
        }
    }

    /// The path segment of its endpoint. Launchpad uses that of the plain market, as the official
    /// JVM client does.
    #[must_use]
    pub const fn segment(self) -> &'static str {
        match self {
            Self::Stocks | Self::LaunchpadStocks => "stocks",
            Self::Options | Self::LaunchpadOptions => "options",
            Self::Forex | Self::LaunchpadForex => "forex",
            Self::Crypto | Self::LaunchpadCrypto => "crypto",
            Self::Indices => "indices",
            Self::Futures => "futures",
        }
    }

    /// Whether a request path leads to this market: `/stocks` with any repeated or trailing
    /// slashes. For futures an exchange may follow (`/futures/cme`), as the official clients name
    /// them.
    #[must_use]
    pub fn serves_path(self, path: &str) -> bool {
        let mut segments = path.split('/').filter(|segment| !segment.is_empty());
        segments.next() == Some(self.segment())
            && match segments.next() {
                None => true,
                Some(exchange) => {
                    self == Self::Futures
                        && ["cme", "cbot", "nymex", "comex"].contains(&exchange)
                        && segments.next().is_none()
                }
            }
    }

    /// Its kinds of events, in most markets the most frequent first.
    #[must_use]
    pub fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Stocks => &STOCKS,
            Self::Options => &OPTIONS,
            Self::Forex => &FOREX,
            Self::Crypto => &CRYPTO,
            Self::Indices => &INDICES,
            Self::Futures => &FUTURES,
            Self::LaunchpadStocks
            | Self::LaunchpadOptions
            | Self::LaunchpadForex
            | Self::LaunchpadCrypto => &LAUNCHPAD,
        }
    }

    /// The position in [`Market::kinds`] of the kind with this `ev`, case-sensitive.
    #[must_use]
    pub fn kind(self, ev: &str) -> Option<usize> {
        self.kinds().iter().position(|kind| kind.ev == ev)
    }

    /// Whether the vendor documents the kind at this position without a wildcard, and limits the
    /// contracts that a connection may hold of it.
    pub(crate) fn is_by_contract(self, kind: usize) -> bool {
        match self {
            Self::Options => matches!(self.kinds()[kind].ev, "Q" | "FMV"),
            Self::LaunchpadOptions => true,
            Self::Stocks
            | Self::Forex
            | Self::Crypto
            | Self::Indices
            | Self::Futures
            | Self::LaunchpadStocks
            | Self::LaunchpadForex
            | Self::LaunchpadCrypto => false,
        }
    }

    /// The form in which the symbols of subscriptions and events are compared.
    ///
    /// Clients subscribe to pairs as `EUR/USD`, `EUR-USD` or `C:EUR-USD`, and events carry yet
    /// another spelling. For forex and crypto the prefix and the separators are therefore removed.
    /// Symbols of other markets stay as they are.
    pub(crate) fn matching_form(self, symbol: &str) -> String {
        let prefix = match self {
            Self::Forex | Self::LaunchpadForex => "C:",
            Self::Crypto | Self::LaunchpadCrypto => "X:",
            Self::Stocks
            | Self::Options
            | Self::Indices
            | Self::Futures
            | Self::LaunchpadStocks
            | Self::LaunchpadOptions => return symbol.to_owned(),
        };
        symbol.strip_prefix(prefix).unwrap_or(symbol).replace(['/', '-'], "")
    }
}

impl fmt::Display for Market {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Market {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match Self::ALL.into_iter().find(|market| market.name() == name) {
            Some(market) => Ok(market),
            None => bail!(
                "unknown market {name:?}, expected one of {}",
                Self::ALL.map(Self::name).join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_tolerate_slashes_and_nothing_else() {
        for path in ["/stocks", "//stocks", "/stocks/", "///stocks//"] {
            assert!(Market::Stocks.serves_path(path), "{path}");
        }
        for path in ["/", "", "/Stocks", "/options", "/stocks/x", "/x/stocks", "/futures/cme"] {
            assert!(!Market::Stocks.serves_path(path), "{path}");
        }
        assert!(Market::Futures.serves_path("/futures/cme/"));
        assert!(!Market::Futures.serves_path("/futures/x"));
        assert!(Market::LaunchpadForex.serves_path("/forex"));
    }

    #[test]
    fn only_pairs_have_several_spellings() {
        for spelling in ["EUR/USD", "EUR-USD", "C:EUR-USD", "C:EURUSD"] {
            assert_eq!(Market::Forex.matching_form(spelling), "EURUSD");
        }
        assert_eq!(Market::Crypto.matching_form("X:BTC-USD"), "BTCUSD");
        assert_eq!(Market::Stocks.matching_form("BRK-B"), "BRK-B");
        assert_eq!(Market::Options.matching_form("O:SPY"), "O:SPY");
    }
}
