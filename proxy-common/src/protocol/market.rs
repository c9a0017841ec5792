//! Markets: the one table of the kinds of each, and the spellings of its symbols.

use std::{borrow::Cow, fmt, str::FromStr};

use crate::{named_enum::named_enum, protocol::kind::Kind};

named_enum! {
    /// One upstream endpoint, as the vendor's clients call it: `wss://socket.massive.com/<market>`.
    ///
    /// An account may hold one connection per market.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub enum Market by
    /// The market's segment of the URL path.
    name {
        /// US stocks.
        Stocks = "stocks",
        /// US options.
        Options = "options",
        /// Currency pairs.
        Forex = "forex",
        /// Crypto currency pairs.
        Crypto = "crypto",
        /// Indices.
        Indices = "indices",
        /// Futures.
        Futures = "futures",
    }
}

/// The venues of the vendor's futures paths.
const VENUES: [&str; 4] = ["cme", "cbot", "nymex", "comex"];

impl Market {
    /// Whether a path leads to this market: `/`, `/<market>`, and for futures also
    /// `/futures/<venue>`. Repeated and trailing slashes do not matter.
    ///
    /// The official Python, Go and JavaScript clients ask for a venue (read in their sources). No
    /// event names its venue, so a venue narrows nothing.
    pub fn is_at(self, path: &str) -> bool {
        let mut segments = path.split('/').filter(|segment| !segment.is_empty());
        let [first, second, third] = [(); 3].map(|()| segments.next());
        first.is_none_or(|first| first == self.name())
            && second.is_none_or(|second| self == Self::Futures && VENUES.contains(&second))
            && third.is_none()
    }

    /// The kinds that the vendor documents for this market.
    pub const fn kinds(self) -> &'static [Kind] {
        use Kind::*;
        match self {
            Self::Stocks => &[T, Q, A, AM, LULD, NOI, FMV, LV],
            Self::Options => &[T, Q, A, AM, FMV, LV],
            Self::Forex => &[C, CA, CAS, FMV, AM, LV],
            Self::Crypto => &[XT, XQ, XA, XAS, XL2, FMV, AM, LV],
            Self::Indices => &[V, A, AM],
            Self::Futures => &[T, Q, A, AM],
        }
    }

    /// Whether the vendor serves this kind without a wildcard, by contract only, at some of its
    /// hosts.
    pub const fn may_lack_wildcard(self, kind: Kind) -> bool {
        matches!((self, kind), (Self::Options, Kind::Q | Kind::FMV | Kind::AM | Kind::LV))
    }

    /// The form of a symbol in which subscriptions and events of this market are compared.
    ///
    /// Symbols of stocks, options, indices and futures have one spelling and stay unchanged. Pairs
    /// are spelled `EUR/USD`, `EUR-USD`, `C:EUR-USD`, `C:EURUSD` or `X:BTC-USD`, often differently
    /// in the subscription and in its events (sources: the vendor's documentation, its clients, and
    /// users). Their form is `EUR-USD`. A pair without a separator is split before its last three
    /// letters.
    #[inline]
    pub fn symbol_key(self, symbol: &str) -> Cow<'_, str> {
        match self {
            Self::Forex | Self::Crypto => pair_key(symbol),
            Self::Stocks | Self::Options | Self::Indices | Self::Futures => Cow::Borrowed(symbol),
        }
    }

    /// The form of a prefix in which it is compared with symbols.
    ///
    /// A prefix meets a pair if one of the pair's spellings begins with it, once `C:` and `X:` are
    /// taken off both. So a prefix with a separator is compared with the form `EUR-USD`, and one
    /// without is compared with [`without_separator`]. `BTC*` meets `BTCB-USD` too; `BTC-*` does
    /// not.
    pub fn prefix_key(self, prefix: &str) -> Cow<'_, str> {
        match self {
            Self::Forex | Self::Crypto => with_hyphens(without_market(prefix)),
            Self::Stocks | Self::Options | Self::Indices | Self::Futures => Cow::Borrowed(prefix),
        }
    }

    /// Whether [`symbol_key`](Self::symbol_key) may differ from the symbol.
    #[inline]
    pub const fn has_symbol_forms(self) -> bool {
        matches!(self, Self::Forex | Self::Crypto)
    }
}

fn pair_key(symbol: &str) -> Cow<'_, str> {
    let pair = without_market(symbol);
    if pair.contains(['/', '-']) {
        return with_hyphens(pair);
    }
    match pair.len().checked_sub(3).and_then(|middle| pair.split_at_checked(middle)) {
        Some((base, quote)) if !base.is_empty() => Cow::Owned(format!("{base}-{quote}")),
        _ => Cow::Borrowed(pair),
    }
}

fn without_market(mut pair: &str) -> &str {
    while let Some(rest) = pair.strip_prefix("C:").or_else(|| pair.strip_prefix("X:")) {
        pair = rest;
    }
    pair
}

fn with_hyphens(pair: &str) -> Cow<'_, str> {
    if pair.contains('/') { Cow::Owned(pair.replace('/', "-")) } else { Cow::Borrowed(pair) }
}

/// A pair, in the form of [`Market::symbol_key`], without its separators. As many bytes of it as
/// the buffer holds.
pub fn without_separator<'a>(pair: &[u8], buffer: &'a mut [u8]) -> &'a [u8] {
    let mut length = 0;
    for (place, byte) in buffer.iter_mut().zip(pair.iter().filter(|byte| **byte != b'-')) {
        *place = *byte;
        length += 1;
    }
    &buffer[..length]
}

impl fmt::Display for Market {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Market {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.iter().copied().find(|market| market.name() == text);
        named.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|market| market.name()).collect();
            format!("expected one of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_of_a_pair_have_one_form() {
        for spelling in ["EUR/USD", "EUR-USD", "C:EUR-USD", "C:EUR/USD", "C:EURUSD", "EURUSD"] {
            assert_eq!(Market::Forex.symbol_key(spelling), "EUR-USD", "{spelling}");
        }
        for spelling in ["MATIC-USD", "X:MATIC-USD", "X:MATICUSD"] {
            assert_eq!(Market::Crypto.symbol_key(spelling), "MATIC-USD", "{spelling}");
        }
        for odd in ["", "USD", "C:", "é"] {
            assert_eq!(Market::Forex.symbol_key(odd), odd.trim_start_matches("C:"), "{odd}");
        }
        // The form of a form is the form itself, even for odd input.
        for odd in ["EUR/U/USD", "EUR-U/USD", "/", "C:X:/C:", "ABCDEFG"] {
            let form = Market::Crypto.symbol_key(odd);
            assert_eq!(Market::Crypto.symbol_key(&form), form, "{odd}");
        }
    }

    #[test]
    fn a_prefix_loses_its_market_and_keeps_its_separator() {
        for (prefix, key) in [
            ("BTC", "BTC"),
            ("X:BTC", "BTC"),
            ("BTC/", "BTC-"),
            ("X:BTC-U", "BTC-U"),
            ("C:EURUS", "EURUS"),
            ("X", "X"),
            ("X:X", "X"),
            ("X:", ""),
            ("", ""),
        ] {
            assert_eq!(Market::Crypto.prefix_key(prefix), key, "{prefix}");
            assert_eq!(Market::Crypto.prefix_key(key), key, "the form of a form");
            assert_eq!(Market::Stocks.prefix_key(prefix), prefix);
        }
    }

    #[test]
    fn a_pair_without_its_separator_is_cut_at_the_end_of_the_room() {
        for (pair, room, expected) in
            [("EUR-USD", 64, "EURUSD"), ("EUR-USD", 4, "EURU"), ("EUR", 3, "EUR"), ("", 9, "")]
        {
            let mut room = vec![0; room];
            assert_eq!(without_separator(pair.as_bytes(), &mut room), expected.as_bytes());
        }
    }

    #[test]
    fn other_symbols_stay_as_they_are() {
        for symbol in ["BRK.B", "BRK-B", "C:EURUSD", "X:BTC-USD", "O:SPY251219C00650000"] {
            assert_eq!(Market::Stocks.symbol_key(symbol), symbol);
            assert_eq!(Market::Options.symbol_key(symbol), symbol);
        }
    }

    #[test]
    fn paths_lead_to_one_market_and_futures_have_venues() {
        for path in ["", "/", "//", "/futures", "/futures/", "/futures/cme", "//futures//comex/"] {
            assert!(Market::Futures.is_at(path), "{path}");
        }
        for path in ["/cme", "/stocks", "/futures/x", "/futures/CME", "/futures/cme/x", "/Futures"]
        {
            assert!(!Market::Futures.is_at(path), "{path}");
        }
        assert!(Market::Stocks.is_at("/stocks/") && !Market::Stocks.is_at("/stocks/cme"));
    }

    #[test]
    fn a_market_is_found_by_its_name() {
        for &market in Market::ALL {
            assert_eq!(market.name().parse(), Ok(market));
        }
        assert!("Stocks".parse::<Market>().is_err());
    }
}
