//! Hints: why a channel that a client subscribed to may never match an event.
//!
//! The vendor acknowledges any symbol, whether or not it exists (measured by several users). So a
//! symbol that cannot exist is acknowledged here as well, but with a hint.

use super::{channel::Channel, coverage::summarize_channels, market::Market, messages::Status};

/// The suffixes of stocks that are written in lower case: preferred, rights, when issued (CQS
/// symbology).
const LOWER_CASE_SUFFIXES: [char; 3] = ['p', 'r', 'w'];
/// What the vendor's symbols contain besides letters and digits.
const MARKS: &str = ".:/-_+=^& ";

/// Why a channel probably matches nothing. The text is for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Doubt {
    Separator,
    Quotes,
    Characters,
    Case,
}

impl Doubt {
    fn of(channel: &Channel, market: Market) -> Option<Self> {
        let symbol = match channel {
            Channel::Symbol(_, symbol) => symbol,
            Channel::Prefix(prefix) => &prefix.start,
            Channel::All | Channel::Kind(_) => return None,
        };
        let may_be_lower = |at, letter| {
            market == Market::Stocks && at > 0 && LOWER_CASE_SUFFIXES.contains(&letter)
        };
        let doubts = symbol.char_indices().filter_map(|(at, letter)| match letter {
            ';' | '|' => Some(Self::Separator),
            '"' | '\'' | '`' => Some(Self::Quotes),
            'a'..='z' if !may_be_lower(at, letter) => Some(Self::Case),
            _ if letter.is_ascii_alphanumeric() || MARKS.contains(letter) => None,
            _ => Some(Self::Characters),
        });
        doubts.min()
    }

    const fn sentence(self) -> &'static str {
        match self {
            Self::Separator => "commas separate channels, as in T.AAPL,Q.AAPL",
            Self::Quotes => "symbols stand without quotes",
            Self::Characters => "no known symbol has such a character",
            Self::Case => "symbols are case-sensitive and in upper case",
        }
    }
}

/// A status for the channels of a command that probably match nothing. `None` if there are none.
pub fn hint<'a>(channels: impl Iterator<Item = &'a Channel>, market: Market) -> Option<Status> {
    let doubted: Vec<_> = channels
        .filter_map(|channel| Doubt::of(channel, market).map(|doubt| (doubt, channel)))
        .collect();
    let (doubt, _) = doubted.iter().min()?;
    let named = summarize_channels(doubted.iter().map(|(_, channel)| channel));
    let sentence = doubt.sentence();
    Some(Status::new("hint", format!("subscribed, but perhaps nothing comes: {named}: {sentence}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::channel_items;

    #[track_caller]
    fn check(market: Market, items: &str, expected: Option<&str>) {
        let parse = |item| Channel::parse(item, market).expect("a channel");
        let channels: Vec<Channel> = channel_items(items).map(parse).collect();
        let message = hint(channels.iter(), market).map(|status| status.message);
        let expected =
            expected.map(|text| format!("subscribed, but perhaps nothing comes: {text}"));
        assert_eq!(message, expected, "{items}");
    }

    #[test]
    fn symbols_that_exist_get_no_hint() {
        check(
            Market::Stocks,
            "*,T.*,T.AAPL,Q.BRK.B,T.BACpL,T.XYZr,T.XYZw,T.HHw.WS,T.FCELpB,T.AA*,T.BACp*",
            None,
        );
        check(Market::Options, "T.O:SPY251219C00650000,Q.O:BRKB251219P00650000", None);
        check(Market::Forex, "C.EUR/USD,C.EUR-USD,C.C:EURUSD", None);
        check(Market::Indices, "V.I:SPX,V.I:NDX", None);
        check(Market::Futures, "T.ESU6,T.NQH7-NQM7,T.UD:1V: GN 2533155,T.ES:BF Z6-H7-M7", None);
    }

    #[test]
    fn what_cannot_exist_is_named_with_the_reason() {
        let case = "symbols are case-sensitive and in upper case";
        let quotes = "symbols stand without quotes";
        let separator = "commas separate channels, as in T.AAPL,Q.AAPL";
        for (market, items, expected) in [
            (Market::Stocks, "T.aapl", format!("T.aapl: {case}")),
            (Market::Stocks, "T.aa*", format!("T.aa*: {case}")),
            (Market::Crypto, "XT.btc-*", format!("XT.btc-*: {case}")),
            (Market::Stocks, "T.AAPL,T.Msft,T.w", format!("T.Msft, T.w: {case}")),
            (Market::Crypto, "XT.btc-usd", format!("XT.btc-usd: {case}")),
            (Market::Indices, "V.I:SPXw", format!("V.I:SPXw: {case}")),
            (Market::Stocks, "T.AAPL;Q.AAPL", format!("T.AAPL;Q.AAPL: {separator}")),
            (Market::Stocks, "T.aapl|T.msft", format!("T.aapl|T.msft: {separator}")),
            (Market::Stocks, "T.\"AAPL\"", format!("T.\"AAPL\": {quotes}")),
            (Market::Stocks, "T.'aapl'", format!("T.'aapl': {quotes}")),
            (Market::Stocks, "T.$AAPL", "T.$AAPL: no known symbol has such a character".to_owned()),
            (Market::Stocks, "T.ÀAPL", "T.ÀAPL: no known symbol has such a character".to_owned()),
        ] {
            check(market, items, Some(&expected));
        }
        let many = (0..7).map(|n| format!("T.a{n}")).collect::<Vec<_>>().join(",");
        let named = format!("T.a0, T.a1, T.a2, T.a3, T.a4 and 2 more: {case}");
        check(Market::Stocks, &many, Some(&named));
    }
}
