//! The names of a market's stream, subjects and buckets.

use crate::protocol::Market;

/// The names of one market. All begin with `NATS_STREAM`: in capitals where NATS wants a name, in
/// small letters where it wants a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    prefix: String,
    market: Market,
}

impl Names {
    /// The names of a market. `prefix` is what `NATS_STREAM` holds, `POLYGON` by default.
    pub fn new(prefix: &str, market: Market) -> Self {
        Self { prefix: prefix.to_owned(), market }
    }

    /// The market.
    pub fn market(&self) -> Market {
        self.market
    }

    /// The stream: `POLYGON_STOCKS`.
    pub fn stream(&self) -> String {
        format!("{}_{}", self.prefix, self.market.name()).to_uppercase()
    }

    /// The subject of frames: `polygon.stocks.data`.
    pub fn data(&self) -> String {
        self.subject("data")
    }

    /// The subject of the state: `polygon.stocks.state`.
    pub fn state(&self) -> String {
        self.subject("state")
    }

    /// The subject of what one filtered proxy wants: `polygon.stocks.demand.ID`. `*` stands for
    /// all.
    pub fn demand(&self, id: &str) -> String {
        self.subject(&format!("demand.{id}"))
    }

    /// The subject of the answers for one filtered proxy's contracts: `polygon.stocks.answers.ID`.
    pub fn answers(&self, id: &str) -> String {
        self.subject(&format!("answers.{id}"))
    }

    /// The subject at which every program answers with its health: `polygon.stocks.health.ask`.
    pub fn health(&self) -> String {
        self.subject("health.ask")
    }

    /// The subject at which the program of this ID gets the answers: `polygon.stocks.health.to.ID`.
    pub fn health_answers(&self, id: &str) -> String {
        self.subject(&format!("health.to.{id}"))
    }

    /// The bucket of the leases of all markets: `POLYGON_LEASE`. The key is the market's name.
    pub fn lease_bucket(&self) -> String {
        format!("{}_LEASE", self.prefix).to_uppercase()
    }

    /// The bucket of named sessions: `POLYGON_SESSIONS`.
    pub fn session_bucket(&self) -> String {
        format!("{}_SESSIONS", self.prefix).to_uppercase()
    }

    fn subject(&self, last: &str) -> String {
        format!("{}.{}.{last}", self.prefix.to_lowercase(), self.market.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_begin_with_the_prefix() {
        let names = Names::new("Polygon", Market::Stocks);
        assert_eq!(names.stream(), "POLYGON_STOCKS");
        assert_eq!(names.data(), "polygon.stocks.data");
        assert_eq!(names.demand("7f"), "polygon.stocks.demand.7f");
        assert_eq!(names.lease_bucket(), "POLYGON_LEASE");
    }
}
