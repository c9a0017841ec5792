//! Feeds: which kinds of a market a host of the vendor serves, and which of them by wildcard
//! (sources: the vendor's specification and its clients).

use crate::protocol::{kind::Kind, market::Market};

/// A market as one host serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feed {
    market: Market,
    host: Host,
}

/// The product that a host belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    /// `socket`, `delayed` and the feeds of single plans.
    Plain,
    /// The hosts of business plans, which alone serve fair market values.
    Business,
    /// The Launchpad product, which serves two kinds of its own.
    Launchpad,
    /// None of the vendor's, such as a relay or a simulator. It may serve anything.
    Other,
}

impl Host {
    /// Only the first label counts: the vendor has changed its domain before.
    fn named(host: &str) -> Self {
        match host.split('.').next().unwrap_or_default() {
            "socket" | "delayed" | "nasdaqfeed" | "polyfeed" | "polyfeedplus" | "starterfeed" => {
                Self::Plain
            }
            "launchpad" => Self::Launchpad,
            label if label == "business" || label.ends_with("-business") => Self::Business,
            _ => Self::Other,
        }
    }
}

impl Feed {
    /// The feed of this market at a host, such as `socket.massive.com`.
    pub fn new(market: Market, host: &str) -> Self {
        Self { market, host: Host::named(host) }
    }

    /// The kinds that `*` requests from the vendor if `UPSTREAM_CHANNELS` names none: those that
    /// the host serves by wildcard, without the order book, which the vendor has deprecated.
    pub fn default_kinds(self) -> impl Iterator<Item = Kind> {
        let kinds = self.market.kinds().iter().copied();
        kinds.filter(move |&kind| self.serves(kind) && self.serves_whole(kind) && kind != Kind::XL2)
    }

    /// The kinds that the host serves by contract only, a limited number of contracts of each.
    pub fn on_demand_kinds(self) -> impl Iterator<Item = Kind> {
        let kinds = self.market.kinds().iter().copied();
        kinds.filter(move |&kind| self.serves(kind) && !self.serves_whole(kind))
    }

    fn serves(self, kind: Kind) -> bool {
        match (self.host, kind) {
            (Host::Launchpad, _) => matches!(kind, Kind::AM | Kind::LV),
            (_, Kind::LV) => false,
            // Currencies have minute bars of this name on Launchpad only.
            (_, Kind::AM) => !matches!(self.market, Market::Forex | Market::Crypto),
            (Host::Plain, Kind::FMV) => false,
            (Host::Plain | Host::Business | Host::Other, _) => true,
        }
    }

    /// Whether the vendor serves this kind by wildcard. Some kinds of options are served by
    /// contract only.
    pub fn serves_whole(self, kind: Kind) -> bool {
        match (self.market, kind) {
            (Market::Options, Kind::Q | Kind::FMV | Kind::LV) => false,
            (Market::Options, Kind::AM) => self.host != Host::Launchpad,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults(market: Market, host: &str) -> String {
        let kinds = Feed::new(market, host).default_kinds();
        kinds.map(|kind| kind.to_string()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn default_kinds_follow_the_host() {
        let everywhere = [
            (Market::Stocks, "T Q A AM LULD NOI", "T Q A AM LULD NOI FMV", "AM LV"),
            (Market::Options, "T A AM", "T A AM", ""),
            (Market::Forex, "C CA CAS", "C CA CAS FMV", "AM LV"),
            (Market::Crypto, "XT XQ XA XAS", "XT XQ XA XAS FMV", "AM LV"),
            (Market::Indices, "V A AM", "V A AM", "AM"),
            (Market::Futures, "T Q A AM", "T Q A AM", "AM"),
        ];
        for (market, plain, with_values, launchpad) in everywhere {
            for host in
                ["socket.massive.com", "socket.polygon.io", "delayed.massive.com", "polyfeed"]
            {
                assert_eq!(defaults(market, host), plain, "{market} at {host}");
            }
            for host in ["business.massive.com", "delayed-business.polygon.io", "iex-business.x"] {
                assert_eq!(defaults(market, host), with_values, "{market} at {host}");
            }
            for host in ["localhost", "127.0.0.1", "[::1]", "relay.socket.example", "nobusiness"] {
                assert_eq!(defaults(market, host), with_values, "{market} at {host}");
            }
            assert_eq!(defaults(market, "launchpad.massive.com"), launchpad, "{market}");
        }
    }

    #[test]
    fn kinds_without_a_wildcard_are_on_demand() {
        let on_demand = |market, host| {
            let kinds = Feed::new(market, host).on_demand_kinds();
            kinds.map(|kind| kind.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(on_demand(Market::Options, "socket.massive.com"), "Q");
        assert_eq!(on_demand(Market::Options, "business.massive.com"), "Q FMV");
        assert_eq!(on_demand(Market::Options, "localhost"), "Q FMV");
        assert_eq!(on_demand(Market::Options, "launchpad.massive.com"), "AM LV");
        for market in Market::ALL.iter().filter(|market| **market != Market::Options) {
            for host in ["socket.massive.com", "launchpad.massive.com", "localhost"] {
                assert_eq!(on_demand(*market, host), "", "{market} at {host}");
            }
        }
    }

    #[test]
    fn only_some_kinds_of_options_have_no_wildcard() {
        let whole = |market, host, kind| Feed::new(market, host).serves_whole(kind);
        for kind in [Kind::Q, Kind::FMV, Kind::LV] {
            assert!(!whole(Market::Options, "socket.massive.com", kind), "{kind}");
            assert!(whole(Market::Stocks, "socket.massive.com", kind), "{kind}");
        }
        assert!(whole(Market::Options, "socket.massive.com", Kind::AM));
        assert!(!whole(Market::Options, "launchpad.massive.com", Kind::AM));
        let new = Kind::from_code(b"NEW9").unwrap();
        assert!(whole(Market::Options, "socket.massive.com", new));
    }
}
