//! What a key is limited to, as the words after its digest in a file of keys say. Pure.

use std::{collections::BTreeSet, fmt::Display};

use crate::protocol::{Channel, Kind, Market};

const EXPECTED_LIMITS: &str =
    "expected nothing after the digest but markets=, types= and role=operator, each once at most";
const EXPECTED_TYPES: &str =
    "types=: expected types of events such as T,AM, with commas and no blanks between";
const NOT_KEPT: &str = "types= works at the filtered proxy only, as this program hands out frames \
                        whole: expected no limit but markets=";

/// Which limits of keys a program keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitsKept {
    /// Those to markets. A limit to types is an error: the program hands out frames whole.
    Markets,
    /// Those to markets and to types.
    MarketsAndTypes,
}

/// What a key may be used for. By default for everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// The markets whose sessions it opens; `None` for all.
    markets: Option<BTreeSet<Market>>,
    /// The types whose events it may have; `None` for all.
    types: Option<BTreeSet<Kind>>,
    operator: bool,
}

impl KeyLimits {
    /// Reads the words `markets=stocks,options`, `types=T,AM` and `role=operator`, in any order.
    ///
    /// # Errors
    ///
    /// Another word, one of them twice, a list that is empty or names something else, or a limit
    /// that the program does not keep. The error never holds a part of the words.
    pub fn parse<'a>(
        words: impl Iterator<Item = &'a str>,
        kept: LimitsKept,
    ) -> Result<Self, String> {
        let mut limits = Self::default();
        for word in words {
            match word.split_once('=') {
                Some(("markets", list)) if limits.markets.is_none() => {
                    let markets = members(list, |name| name.parse().ok());
                    limits.markets = Some(markets.ok_or_else(expected_markets)?);
                }
                Some(("types", _)) if kept == LimitsKept::Markets => {
                    return Err(NOT_KEPT.to_owned());
                }
                Some(("types", list)) if limits.types.is_none() => {
                    let types = members(list, |code| Kind::from_code(code.as_bytes()));
                    limits.types = Some(types.ok_or(EXPECTED_TYPES)?);
                }
                Some(("role", "operator")) if !limits.operator => limits.operator = true,
                _ => return Err(EXPECTED_LIMITS.to_owned()),
            }
        }
        Ok(limits)
    }

    /// The same for the operator, who may see all sessions.
    #[must_use]
    pub fn of_operator(self) -> Self {
        Self { operator: true, ..self }
    }

    /// Whether the key shows the sessions of all clients.
    pub fn is_operator(&self) -> bool {
        self.operator
    }

    /// Whether the key opens sessions of this market.
    pub fn include_market(&self, market: Market) -> bool {
        self.markets.as_ref().is_none_or(|markets| markets.contains(&market))
    }

    /// Whether the key may have all events of this channel. `*` is for keys without a limit to
    /// types.
    pub fn include(&self, channel: &Channel) -> bool {
        let Some(types) = &self.types else { return true };
        channel.kind().is_some_and(|kind| types.contains(&kind))
    }

    /// The types of the limit, in order. None if there is no limit.
    pub fn types(&self) -> impl Iterator<Item = Kind> {
        self.types.iter().flatten().copied()
    }

    /// The markets of the limit, separated by commas. Empty if there is no limit.
    pub fn market_names(&self) -> String {
        names(self.markets.as_ref())
    }

    /// The types of the limit, separated by commas. Empty if there is no limit.
    pub fn type_names(&self) -> String {
        names(self.types.as_ref())
    }
}

/// Reads a list of at least one member. `None` if a member cannot be read.
fn members<T: Ord>(list: &str, read: impl Fn(&str) -> Option<T>) -> Option<BTreeSet<T>> {
    list.split(',').map(read).collect()
}

fn expected_markets() -> String {
    let all = names(Some(&Market::ALL.iter().copied().collect()));
    format!("markets=: expected some of {all}, with commas and no blanks between")
}

/// The members of a limit, separated by commas.
fn names<T: Display>(limit: Option<&BTreeSet<T>>) -> String {
    limit.into_iter().flatten().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str, kept: LimitsKept) -> Result<KeyLimits, String> {
        KeyLimits::parse(words.split_whitespace(), kept)
    }

    fn limits(words: &str) -> KeyLimits {
        parse(words, LimitsKept::MarketsAndTypes).unwrap()
    }

    #[test]
    fn a_key_without_limits_is_for_everything() {
        let limits = limits("");
        assert_eq!(limits, KeyLimits::default());
        for market in Market::ALL {
            assert!(limits.include_market(*market));
        }
        assert!(limits.include(&Channel::All) && limits.include(&Channel::Kind(Kind::T)));
    }

    #[test]
    fn only_the_word_makes_an_operator() {
        assert!(!limits("").is_operator() && !limits("markets=stocks types=T").is_operator());
        let operator = limits("types=T role=operator");
        assert!(operator.is_operator() && !operator.include(&Channel::Kind(Kind::Q)));
        assert_eq!(
            parse("role=operator", LimitsKept::Markets),
            Ok(KeyLimits::default().of_operator())
        );
    }

    #[test]
    fn limits_hold_for_markets_and_types_in_any_order() {
        let both = limits("markets=options,stocks types=AM,T,NEW9");
        for same in [
            "types=T,AM,NEW9 markets=stocks,options",
            "markets=stocks,options,stocks types=NEW9,T,AM",
        ] {
            assert_eq!(limits(same), both, "{same}");
        }
        assert!(both.include_market(Market::Options) && !both.include_market(Market::Crypto));
        for (item, included) in [
            ("*", false),
            ("T.*", true),
            ("AM.BRK.B", true),
            ("T.AA*", true),
            ("NEW9.*", true),
            ("A.*", false),
            ("Q.AAPL", false),
            ("Q.A*", false),
            ("NEW8.*", false),
        ] {
            let channel = Channel::parse(item, Market::Stocks).unwrap();
            assert_eq!(both.include(&channel), included, "{item}");
            assert!(limits("markets=options").include(&channel), "{item}");
        }
        assert!(limits("types=T").include_market(Market::Crypto));
        assert_eq!(both.type_names(), "T, AM, NEW9");
        assert_eq!(both.market_names(), "stocks, options");
    }

    #[test]
    fn an_error_says_what_was_expected_and_shows_nothing() {
        let (form, types, markets) = (EXPECTED_LIMITS, EXPECTED_TYPES, &*expected_markets());
        assert_eq!(
            markets,
            "markets=: expected some of stocks, options, forex, crypto, indices, futures, with \
             commas and no blanks between"
        );
        for (words, expected) in [
            ("s3cret", form),
            ("market=stocks", form),
            ("MARKETS=stocks", form),
            ("markets =stocks", form),
            ("markets=stocks markets=options", form),
            ("types=T types=T", form),
            ("# note", form),
            ("role=operator role=operator", form),
            ("role=s3cret", form),
            ("role=", form),
            ("markets=", markets),
            ("markets=stocks,", markets),
            ("markets=Stocks", markets),
            ("markets=stocks, options", markets),
            ("markets=s3cret", markets),
            ("types=", types),
            ("types=T,,Q", types),
            ("types=t", types),
            ("types=*", types),
            ("types=T.AAPL", types),
            ("types=T;Q", types),
        ] {
            let error = parse(words, LimitsKept::MarketsAndTypes).unwrap_err();
            assert_eq!(error, expected, "{words}");
        }
    }

    #[test]
    fn a_limit_that_is_not_kept_is_an_error() {
        for words in ["types=T", "markets=stocks types=T", "types=s3cret", "types="] {
            let error = parse(words, LimitsKept::Markets).unwrap_err();
            assert_eq!(error, NOT_KEPT, "{words}");
        }
        let markets = parse("markets=stocks", LimitsKept::Markets);
        assert_eq!(markets, parse("markets=stocks", LimitsKept::MarketsAndTypes));
    }
}
