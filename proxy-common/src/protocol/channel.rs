//! The channels that a client can subscribe to: `*`, `T.*`, `T.AA*` or `T.AAPL`.

use std::{collections::BTreeSet, fmt};

use thiserror::Error;

use crate::protocol::{kind::Kind, market::Market};

/// The longest symbol or prefix accepted, in bytes of the form in which it is compared. The
/// vendor's longest symbols, those of option contracts, have 21 bytes.
pub const MAX_SYMBOL_BYTES: usize = 64;

/// One subscription entry. Entries are independent: a session with `T.*` and `T.AAPL` holds two.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel {
    /// `*`: every event of the market, including kinds that are unknown today.
    All,
    /// `T.*`: every event of a kind.
    Kind(Kind),
    /// `T.AAPL`: the events of a kind with this symbol, in the form of [`Market::symbol_key`].
    Symbol(Kind, Box<str>),
    /// `T.AA*`: the events of a kind whose symbol begins with this. In a box, because two variants
    /// that hold a kind would make every channel larger.
    Prefix(Box<Prefix>),
}

/// A kind, and what the symbols of its events begin with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// The kind.
    pub kind: Kind,
    /// The beginning, in the form of [`Market::prefix_key`]. Never empty: `T.*` is a kind.
    pub start: Box<str>,
}

/// The kinds that channels may name beside those of the market.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtraKinds {
    /// Any that has no name in this version: it is not known yet which ones there are.
    Unnamed,
    /// These. Kinds of the market may be among them.
    These(BTreeSet<Kind>),
}

impl ExtraKinds {
    fn contains(&self, kind: Kind) -> bool {
        match self {
            Self::Unnamed => matches!(kind, Kind::Other(_)),
            Self::These(kinds) => kinds.contains(&kind),
        }
    }
}

/// Why an item of a subscription names no channel. The error text is the message to the client.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ChannelError {
    /// No dot, or nothing on one side of it.
    #[error(
        "invalid channel {item:?}: expected TYPE.SYMBOL, TYPE.PREFIX*, TYPE.* or *, for example \
         {example}"
    )]
    Form {
        /// The item as the client wrote it, trimmed and cut at 80 characters.
        item: String,
        /// A channel of this market.
        example: String,
    },
    /// The part before the first dot is not a kind that channels may name.
    #[error("unknown channel type in {item:?}: expected one of {kinds} before the first dot")]
    UnknownKind {
        /// The item as the client wrote it, trimmed and cut at 80 characters.
        item: String,
        /// The kinds known, separated by commas.
        kinds: String,
    },
    /// No such symbol can exist.
    #[error("invalid symbol in {item:?}: {reason}")]
    Symbol {
        /// The item as the client wrote it, trimmed and cut at 80 characters.
        item: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Channel {
    /// Its kind; `None` for `*`.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::All => None,
            Self::Kind(kind) | Self::Symbol(kind, _) => Some(*kind),
            Self::Prefix(prefix) => Some(prefix.kind),
        }
    }

    /// Reads one trimmed item of a subscription, of any kind. The first dot ends the kind; the
    /// symbol keeps its case.
    ///
    /// # Errors
    ///
    /// The item has another form than `TYPE.SYMBOL`, `TYPE.PREFIX*`, `TYPE.*` or `*`; or `TYPE` is
    /// no code of a kind, or no such symbol can exist.
    pub fn parse(item: &str, market: Market) -> Result<Self, ChannelError> {
        Self::read(item, market, None)
    }

    /// Reads an item as [`parse`](Self::parse) does, if its kind is one of the market or `extra`.
    ///
    /// # Errors
    ///
    /// Those of [`parse`](Self::parse), and another kind.
    pub fn parse_among(
        item: &str,
        market: Market,
        extra: &ExtraKinds,
    ) -> Result<Self, ChannelError> {
        Self::read(item, market, Some(extra))
    }

    /// Reads an item of any kind, or of one of the market or `extra`.
    fn read(item: &str, market: Market, extra: Option<&ExtraKinds>) -> Result<Self, ChannelError> {
        if item == "*" {
            return Ok(Self::All);
        }
        let shown = || item.chars().take(80).collect::<String>();
        let form = || ChannelError::Form {
            item: shown(),
            example: market
                .kinds()
                .first()
                .map_or_else(|| "*".to_owned(), |kind| format!("{kind}.*")),
        };
        let (code, symbol) = item.split_once('.').ok_or_else(form)?;
        if code.is_empty() || symbol.is_empty() {
            return Err(form());
        }
        let kind = Kind::from_code(code.as_bytes())
            .filter(|kind| {
                market.kinds().contains(kind) || extra.is_none_or(|extra| extra.contains(*kind))
            })
            .ok_or_else(|| ChannelError::UnknownKind {
                item: shown(),
                kinds: kind_list(market, extra),
            })?;
        let refuse = |reason| Err(ChannelError::Symbol { item: shown(), reason });
        let prefix = symbol.strip_suffix('*');
        let symbol = prefix.unwrap_or(symbol);
        if symbol.contains('*') {
            return refuse("a * is the end of a channel, as in T.* or T.AA*");
        }
        // The names of futures combinations contain spaces: `ES:BF Z6-H7-M7`.
        let is_blank = |c: char| c.is_whitespace() && (c, market) != (' ', Market::Futures);
        if symbol.chars().any(|c| c.is_control() || is_blank(c)) {
            return refuse("blanks and control characters are not part of symbols");
        }
        let key = match prefix {
            Some(prefix) => market.prefix_key(prefix),
            None => market.symbol_key(symbol),
        };
        if key.len() > MAX_SYMBOL_BYTES {
            return refuse("longer than 64 bytes");
        }
        match (prefix, key.is_empty()) {
            // `T.*`, or a pair's market alone, as in `C.C:*`.
            (Some(_), true) => Ok(Self::Kind(kind)),
            (Some(_), false) => Ok(Self::Prefix(Box::new(Prefix { kind, start: key.into() }))),
            // A pair's market alone, such as `C:`.
            (None, true) => Err(form()),
            (None, false) => Ok(Self::Symbol(kind, key.into())),
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Kind(kind) => write!(f, "{kind}.*"),
            Self::Symbol(kind, symbol) => write!(f, "{kind}.{symbol}"),
            Self::Prefix(prefix) => write!(f, "{}.{}*", prefix.kind, prefix.start),
        }
    }
}

/// Splits the `params` of a command into items. Drops empty items and the blanks around items.
pub fn channel_items(params: &str) -> impl Iterator<Item = &str> {
    params.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn kind_list(market: Market, extra: Option<&ExtraKinds>) -> String {
    let mut kinds: Vec<_> = market.kinds().iter().map(ToString::to_string).collect();
    if let Some(ExtraKinds::These(extra)) = extra {
        let added = extra.iter().filter(|kind| !market.kinds().contains(kind));
        kinds.extend(added.map(ToString::to_string));
    }
    kinds.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(item: &str, expected: &str) {
        let shown = match Channel::parse(item, Market::Stocks) {
            Ok(channel) => channel.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn channels_keep_their_symbol() {
        for item in ["*", "T.*", "T.AAPL", "Q.BRK.B", "LULD.BACpL", "T.X:Y/Z-1", "T.XYZw"] {
            check(item, item);
        }
    }

    #[test]
    fn an_invalid_channel_is_answered_with_the_expected_form() {
        let form = |item: &str| {
            let forms = "TYPE.SYMBOL, TYPE.PREFIX*, TYPE.* or *, for example T.*";
            format!("invalid channel {item:?}: expected {forms}")
        };
        for item in ["AAPL", ".AAPL", "T.", ".", "**"] {
            check(item, &form(item));
        }
        let kinds = "expected one of T, Q, A, AM, LULD, NOI, FMV, LV before the first dot";
        for item in ["t.AAPL", "Tt.AAPL", "9T.AAPL", "T-T.AAPL", "*.AAPL", "ABCDEFGHIJ.AAPL"] {
            check(item, &format!("unknown channel type in {item:?}: {kinds}"));
        }
        for item in ["T.A*B", "T.**", "T.*A", "T.A**", "T.*A*"] {
            let end = "a * is the end of a channel, as in T.* or T.AA*";
            check(item, &format!("invalid symbol in {item:?}: {end}"));
        }
        check(
            "T.A B",
            "invalid symbol in \"T.A B\": blanks and control characters are not part of symbols",
        );
        let longest = format!("T.{}", "A".repeat(64));
        check(&longest, &longest);
        check(&format!("{longest}*"), &format!("{longest}*"));
        for end in ["", "*"] {
            let long = format!("T.{}{end}", "A".repeat(65));
            check(&long, &format!("invalid symbol in {long:?}: longer than 64 bytes"));
        }
    }

    #[test]
    fn a_prefix_is_a_channel_of_its_own() {
        for item in ["T.AA*", "Q.BRK.*", "LULD.BACp*", "T.X:Y/Z-*", "NEW9.A*"] {
            check(item, item);
            let prefix = Channel::parse(item, Market::Stocks).unwrap();
            let symbol = Channel::parse(item.trim_end_matches('*'), Market::Stocks).unwrap();
            assert_ne!(prefix, symbol);
            assert_eq!(prefix.kind(), symbol.kind());
        }
        for (item, market) in [("T.O:SPY2*", Market::Options), ("T.ES:BF *", Market::Futures)] {
            assert_eq!(Channel::parse(item, market).unwrap().to_string(), item);
        }
        assert!(Channel::parse("T.A *", Market::Stocks).is_err());
    }

    #[test]
    fn kinds_of_no_market_or_another_one_are_taken_if_they_are_among_the_extra_ones() {
        for item in ["ZZ.AAPL", "NEW9.*", "NEW9.BRK.B", "XT.BTC-USD"] {
            check(item, item);
        }
        let kinds = ["T", "NEW9", "XT"].map(|code| Kind::from_code(code.as_bytes()).unwrap());
        let extra = ExtraKinds::These(kinds.into());
        let among = |item| Channel::parse_among(item, Market::Stocks, &extra);
        for item in ["T.AAPL", "LV.*", "NEW9.AAPL", "XT.*"] {
            assert_eq!(among(item), Channel::parse(item, Market::Stocks), "{item}");
        }
        for item in ["NEW8.AAPL", "XQ.*", "new9.AAPL"] {
            let kinds = "T, Q, A, AM, LULD, NOI, FMV, LV, XT, NEW9 before the first dot";
            let error = format!("unknown channel type in {item:?}: expected one of {kinds}");
            assert_eq!(among(item).unwrap_err().to_string(), error);
        }
        let unnamed =
            |item| Channel::parse_among(item, Market::Stocks, &ExtraKinds::Unnamed).is_ok();
        assert!(unnamed("NEW8.AAPL") && unnamed("T.AAPL"));
        assert!(!unnamed("XQ.*") && !unnamed("new9.AAPL"), "another market's, or no code");
    }

    #[test]
    fn only_futures_have_spaces_in_symbols() {
        for item in ["T.UD:1V: GN 2533155", "T.ES:BF Z6-H7-M7", "Q.NQH7-NQM7"] {
            assert_eq!(Channel::parse(item, Market::Futures).unwrap().to_string(), item);
        }
        for item in ["T.A\tB", "T.A\u{a0}B", "T.A\nB"] {
            assert!(Channel::parse(item, Market::Futures).is_err(), "{item:?}");
        }
        for market in [Market::Stocks, Market::Options, Market::Indices] {
            let kind = market.kinds()[0];
            assert!(Channel::parse(&format!("{kind}.A B"), market).is_err(), "{market}");
        }
    }

    #[test]
    fn blanks_and_empty_items_are_dropped() {
        assert_eq!(channel_items(" T.A, T.B ,,\tQ.C,").collect::<Vec<_>>(), ["T.A", "T.B", "Q.C"]);
        assert_eq!(channel_items(" , ").count(), 0);
    }

    #[test]
    fn spellings_of_a_pair_are_one_channel() {
        let channel = |item: &str| Channel::parse(item, Market::Forex);
        assert_eq!(channel("C.EUR/USD"), channel("C.C:EUR-USD"));
        assert_ne!(channel("C.EUR/USD"), channel("CA.EUR/USD"));
        for prefix in ["C.EUR-*", "C.C:EUR/*", "C.X:EUR-*"] {
            assert_eq!(channel(prefix).unwrap().to_string(), "C.EUR-*", "{prefix}");
        }
        assert_ne!(channel("C.EUR*"), channel("C.EUR/*"));
        assert_eq!(channel("C.C:*"), channel("C.*"), "all pairs");
        for nothing in ["C.C:", "C.X:", "CA.C:X:"] {
            assert!(matches!(channel(nothing), Err(ChannelError::Form { .. })), "{nothing}");
        }
        // The limit applies to the form that is shown, which has one byte more here.
        let pair = |bytes: usize| channel(&format!("C.C:{}", "A".repeat(bytes)));
        let shown = pair(63).unwrap().to_string();
        assert_eq!((shown.len(), channel(&shown)), (2 + MAX_SYMBOL_BYTES, pair(63)));
        assert!(matches!(pair(64), Err(ChannelError::Symbol { .. })));
    }
}
