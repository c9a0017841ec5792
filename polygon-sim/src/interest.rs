//! The subscriptions of one connection.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::market::Market;

/// The channels of a connection. Each is an entry of its own: a client may hold `T.*` and `T.AAPL`
/// together, and removing one leaves the other.
#[derive(Debug)]
pub(crate) struct Interest {
    market: Market,
    /// One for each kind of the market, in its order.
    kinds: Vec<KindInterest>,
}

#[derive(Debug, Clone, Default)]
struct KindInterest {
    wildcard: bool,
    /// From the matching form of the symbol to the spelling in the subscription.
    symbols: HashMap<String, String>,
}

/// A subscription item that names a kind the market has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Channel<'a> {
    pub(crate) kind: usize,
    pub(crate) symbol: &'a str,
}

impl<'a> Channel<'a> {
    /// Reads `KIND.SYMBOL`; the first dot ends the kind. `None` for a bare `*`, a bare symbol or an
    /// unknown kind: the vendor ignores those.
    pub(crate) fn parse(market: Market, item: &'a str) -> Option<Self> {
        let (kind, symbol) = item.split_once('.')?;
        if symbol.is_empty() {
            return None;
        }
        Some(Self { kind: market.kind(kind)?, symbol })
    }
}

impl Interest {
    pub(crate) fn new(market: Market) -> Self {
        Self { market, kinds: vec![KindInterest::default(); market.kinds().len()] }
    }

    /// Adds a channel. Returns false if it is there already.
    pub(crate) fn add(&mut self, channel: Channel<'_>) -> bool {
        let kind = &mut self.kinds[channel.kind];
        if channel.symbol == "*" {
            return !std::mem::replace(&mut kind.wildcard, true);
        }
        let form = self.market.matching_form(channel.symbol);
        if kind.symbols.contains_key(&form) {
            return false;
        }
        kind.symbols.insert(form, channel.symbol.to_owned());
        true
    }

    /// Whether these channels and those that it holds are more than `most` contracts of a kind that
    /// is served by contract only.
    pub(crate) fn would_exceed<'a>(
        &self,
        added: impl Iterator<Item = Channel<'a>>,
        most: usize,
    ) -> bool {
        let mut new = vec![HashSet::new(); self.kinds.len()];
        for channel in added {
            let form = self.market.matching_form(channel.symbol);
            let held = &self.kinds[channel.kind].symbols;
            let counts = self.market.is_by_contract(channel.kind) && channel.symbol != "*";
            if counts && !held.contains_key(&form) {
                new[channel.kind].insert(form);
            }
        }
        let mut kinds = self.kinds.iter().zip(new);
        kinds.any(|(held, new)| !new.is_empty() && held.symbols.len() + new.len() > most)
    }

    /// Removes a channel. Returns false if it is not there.
    pub(crate) fn remove(&mut self, channel: Channel<'_>) -> bool {
        let kind = &mut self.kinds[channel.kind];
        if channel.symbol == "*" {
            return std::mem::take(&mut kind.wildcard);
        }
        kind.symbols.remove(&self.market.matching_form(channel.symbol)).is_some()
    }

    /// Whether the connection wants an event of this kind, with the symbol in its matching form.
    pub(crate) fn wants(&self, kind: usize, form: &str) -> bool {
        let kind = &self.kinds[kind];
        kind.wildcard || (!kind.symbols.is_empty() && kind.symbols.contains_key(form))
    }

    /// Name of the market's first kind.
    pub(crate) fn first_kind(&self) -> &'static str {
        self.market.kinds()[0].ev
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kinds.iter().all(|kind| !kind.wildcard && kind.symbols.is_empty())
    }

    /// Adds its channels to the set, in the spelling of the subscriptions.
    pub(crate) fn collect(&self, into: &mut BTreeSet<String>) {
        for (kind, held) in self.market.kinds().iter().zip(&self.kinds) {
            if held.wildcard {
                into.insert(format!("{}.*", kind.ev));
            }
            into.extend(held.symbols.values().map(|symbol| format!("{}.{symbol}", kind.ev)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn channel(market: Market, item: &str) -> Channel<'_> {
        Channel::parse(market, item).unwrap()
    }

    #[test]
    fn the_first_dot_ends_the_kind() {
        let brk = channel(Market::Stocks, "T.BRK.B");
        assert_eq!(brk.symbol, "BRK.B");
        for ignored in ["*", "AAPL", "ZZ.AAPL", "t.AAPL", "T.", "", ".AAPL"] {
            assert_eq!(Channel::parse(Market::Stocks, ignored), None, "{ignored}");
        }
    }

    #[test]
    fn entries_are_independent() {
        let mut held = Interest::new(Market::Stocks);
        let (one, all) = (channel(Market::Stocks, "T.AAPL"), channel(Market::Stocks, "T.*"));
        assert!(held.add(one) && held.add(all) && !held.add(one) && !held.add(all));
        assert!(held.remove(one) && !held.remove(one));
        assert!(held.wants(one.kind, "AAPL"), "the wildcard still covers it");
        assert!(held.add(one) && held.remove(all));
        assert!(held.wants(one.kind, "AAPL") && !held.wants(one.kind, "MSFT"));
        assert!(!held.is_empty() && held.remove(one) && held.is_empty());
    }

    #[test]
    fn a_pair_is_held_once_whatever_its_spelling() {
        let mut held = Interest::new(Market::Forex);
        assert!(held.add(channel(Market::Forex, "C.C:EUR-USD")));
        assert!(!held.add(channel(Market::Forex, "C.EUR/USD")));
        assert!(held.wants(0, "EURUSD"));
        let mut set = BTreeSet::new();
        held.collect(&mut set);
        assert_eq!(set, BTreeSet::from(["C.C:EUR-USD".to_owned()]));
    }
}
