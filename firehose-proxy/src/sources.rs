//! The sources of a market: which of its connections to the vendor carries which kinds. Pure.
//!
//! Most markets have one connection. A plan may spread a market over two hosts, and an account may
//! have several connections, which share the contracts on demand.

use std::{collections::BTreeSet, ops::Range};

use proxy_common::protocol::{Channel, Feed, Kind};

/// A host that serves a market, or a part of it.
#[derive(Debug, Clone)]
pub struct Source {
    /// What the host serves.
    pub feed: Feed,
    /// The kinds that come from here. A source on its own needs none: everything comes from it.
    pub kinds: BTreeSet<Kind>,
}

/// The sources of a market, with their connections. Connections have numbers from 0.
#[derive(Debug, Clone)]
pub struct Sources {
    /// At least one.
    sources: Vec<(Source, Range<usize>)>,
}

impl Sources {
    /// These sources, at least one. A source with contracts on demand has this many connections,
    /// which share the contracts; any other source has one.
    pub fn new(sources: Vec<Source>, connections: usize) -> Self {
        let mut next = 0;
        let number = |source: Source| {
            let shares = source.feed.on_demand_kinds().any(|kind| source.carries(kind));
            let first = next;
            next += if shares { connections } else { 1 };
            (source, first..next)
        };
        Self { sources: sources.into_iter().map(number).collect() }
    }

    /// The sources, each with its connections.
    pub fn iter(&self) -> impl Iterator<Item = (&Source, Range<usize>)> {
        self.sources.iter().map(|(source, connections)| (source, connections.clone()))
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.sources.last().map_or(0, |(_, connections)| connections.end)
    }

    /// The connections that share the contracts of a kind.
    pub fn of_contracts(&self, kind: Kind) -> Range<usize> {
        self.of(kind).1.clone()
    }

    /// The connection that carries a channel. A kind that no source lists comes from the first.
    pub fn connection(&self, channel: &Channel) -> usize {
        channel.kind().map_or(0, |kind| self.of(kind).1.start)
    }

    /// Whether the vendor serves this kind by wildcard.
    pub fn serves_whole(&self, kind: Kind) -> bool {
        self.of(kind).0.feed.serves_whole(kind)
    }

    /// Whether some source carries this kind.
    pub fn carries(&self, kind: Kind) -> bool {
        self.sources.iter().any(|(source, _)| source.carries(kind))
    }

    /// The kinds that are served by contract only.
    pub fn on_demand_kinds(&self) -> impl Iterator<Item = Kind> {
        self.sources.iter().flat_map(|(source, _)| {
            source.feed.on_demand_kinds().filter(|kind| source.carries(*kind))
        })
    }

    /// The kinds that `*` requests if the operator lists none.
    pub fn default_kinds(&self) -> impl Iterator<Item = Kind> {
        self.sources.iter().flat_map(|(source, _)| {
            let listed =
                source.kinds.iter().copied().filter(|&kind| source.feed.serves_whole(kind));
            let by_host = source.feed.default_kinds().filter(|_| source.kinds.is_empty());
            listed.chain(by_host)
        })
    }

    fn of(&self, kind: Kind) -> &(Source, Range<usize>) {
        let carries = |source: &&(Source, Range<usize>)| source.0.carries(kind);
        self.sources.iter().find(carries).unwrap_or(&self.sources[0])
    }
}

impl Source {
    fn carries(&self, kind: Kind) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&kind)
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::protocol::Market;

    use super::*;

    fn source(market: Market, host: &str, kinds: &[Kind]) -> Source {
        Source { feed: Feed::new(market, host), kinds: kinds.iter().copied().collect() }
    }

    fn shown(kinds: impl Iterator<Item = Kind>) -> String {
        kinds.map(|kind| kind.to_string()).collect::<Vec<_>>().join(",")
    }

    fn connection(sources: &Sources, item: &str, market: Market) -> usize {
        sources.connection(&Channel::parse(item, market).unwrap())
    }

    #[test]
    fn one_source_carries_everything_over_one_connection() {
        let sources = Sources::new(vec![source(Market::Stocks, "socket.massive.com", &[])], 1);
        assert_eq!(sources.connections(), 1);
        assert_eq!(shown(sources.default_kinds()), "T,Q,A,AM,LULD,NOI");
        assert!(sources.carries(Kind::FMV) && sources.serves_whole(Kind::FMV));
    }

    #[test]
    fn two_hosts_carry_what_each_lists() {
        let market = Market::Stocks;
        let sources = Sources::new(
            vec![
                source(market, "delayed-business.massive.com", &[Kind::T, Kind::Q]),
                source(market, "business.massive.com", &[Kind::AM, Kind::FMV]),
            ],
            3,
        );
        assert_eq!(sources.connections(), 2, "no contracts on demand to share");
        assert_eq!(shown(sources.default_kinds()), "T,Q,AM,FMV");
        for (item, number) in [("T.*", 0), ("Q.AAPL", 0), ("FMV.*", 1), ("AM.AAPL", 1), ("A.*", 0)]
        {
            assert_eq!(connection(&sources, item, market), number, "{item}");
        }
        assert!(sources.carries(Kind::T) && !sources.carries(Kind::A));
    }

    #[test]
    fn connections_share_contracts_and_the_first_carries_channels() {
        let market = Market::Options;
        let sources = Sources::new(vec![source(market, "socket.massive.com", &[])], 3);
        assert_eq!((sources.connections(), sources.of_contracts(Kind::Q)), (3, 0..3));
        assert_eq!(connection(&sources, "T.*", market), 0);
        assert_eq!(shown(sources.on_demand_kinds()), "Q");
        // The second host has the contracts.
        let sources = Sources::new(
            vec![
                source(market, "delayed-business.massive.com", &[Kind::T]),
                source(market, "business.massive.com", &[Kind::AM, Kind::FMV]),
            ],
            2,
        );
        assert_eq!((sources.connections(), sources.of_contracts(Kind::FMV)), (3, 1..3));
        assert_eq!(connection(&sources, "AM.*", market), 1);
        assert_eq!(shown(sources.on_demand_kinds()), "FMV");
        assert_eq!(shown(sources.default_kinds()), "T,AM");
    }
}
