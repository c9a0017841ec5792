//! The settings of a simulator, and the checks on them.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::market::Market;

/// How a simulator behaves from its start. [`SimHandle`](crate::SimHandle) changes some of it
/// later.
#[derive(Debug, Clone)]
pub struct SimConfig {
    /// The market it serves: `stocks`, `options`, `forex`, `crypto`, `indices` or `futures`. The
    /// retired Launchpad product's `launchpad-stocks`, `-options`, `-forex` and `-crypto` work too,
    /// under the plain market's path. Several are separated by commas. Each has its own path,
    /// connections, events and faults, and all other settings apply to each. Default `stocks`.
    pub market: String,
    /// Events generated per second while some client is subscribed. Events that no client wants
    /// count too. 0 sends scripted events only. Default 0.
    pub rate: f64,
    /// Symbols the generator draws from, the most active first. Default 1,000.
    pub symbols: usize,
    /// Seed of the generator. Default 1.
    pub seed: u64,
    /// Keys that authenticate. Default `sim-key` alone.
    pub keys: Vec<String>,
    /// Kinds that the account's plan lacks, such as `FMV`: answered with `not authorized`. Default
    /// none.
    pub refuse: Vec<String>,
    /// Contracts that a connection may hold of each kind that the vendor serves by contract only:
    /// `Q` and `FMV` of options, `AM` and `LV` of Launchpad options. A request for more is refused
    /// whole. Default 1,000.
    pub contracts: usize,
    /// The most generated events in a frame while the client keeps up. Default 50.
    pub frame_events: usize,
    /// How long the simulator gathers generated events before it sends them. Default 5 ms.
    pub tick: Duration,
    /// How the rate changes over time. Default [`Profile::Steady`].
    pub profile: Profile,
    /// Keeps every data frame sent, for [`SimHandle::sent`](crate::SimHandle::sent). Default off.
    pub record: bool,
    /// Authenticated connections that the account may hold. One more evicts the oldest. Default 1.
    pub max_connections: usize,
    /// Bytes that may wait for one connection. Past that the simulator kills it as a slow consumer.
    /// The vendor shows the size of its buffer per account and does not publish it. Default 64 MiB.
    pub buffer_bytes: usize,
    /// How long a connection may stay without an `auth` request. The vendor does not publish its
    /// own delay. Default 10 s.
    pub auth_timeout: Duration,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            market: "stocks".to_owned(),
            rate: 0.0,
            symbols: 1_000,
            seed: 1,
            keys: vec!["sim-key".to_owned()],
            refuse: Vec::new(),
            contracts: 1_000,
            frame_events: 50,
            tick: Duration::from_millis(5),
            profile: Profile::Steady,
            record: false,
            max_connections: 1,
            buffer_bytes: 64 << 20,
            auth_timeout: Duration::from_secs(10),
        }
    }
}

impl SimConfig {
    /// The markets that this configuration names, at least one.
    ///
    /// # Errors
    /// The first setting that cannot be used. The message names it and what is expected.
    pub fn validate(&self) -> Result<Vec<Market>> {
        let markets = self.market.split(',').map(|name| name.trim().parse());
        let markets = markets.collect::<Result<Vec<Market>>>()?;
        for (n, market) in markets.iter().enumerate() {
            let path = market.segment();
            let taken = markets[..n].iter().any(|other| other.segment() == path);
            ensure!(!taken, "market {market} needs the path /{path}, which another has already");
        }
        check_rate(self.rate)?;
        ensure!(self.symbols > 0, "symbols must be 1 or more");
        ensure!(self.frame_events > 0, "frame events must be 1 or more");
        ensure!(!self.tick.is_zero(), "tick must be longer than 0");
        ensure!(self.max_connections > 0, "max connections must be 1 or more");
        for kind in &self.refuse {
            let kinds = markets.iter().flat_map(|market| market.kinds());
            let known: Vec<_> = kinds.map(|kind| kind.ev).collect();
            ensure!(
                known.contains(&kind.as_str()),
                "unknown kind {kind:?} to refuse, {} has {}",
                self.market,
                known.join(", ")
            );
        }
        Ok(markets)
    }
}

/// Checks a generation rate, in events per second.
///
/// # Errors
/// When it is negative, infinite or no number.
pub fn check_rate(rate: f64) -> Result<()> {
    ensure!(rate.is_finite() && rate >= 0.0, "rate {rate} must be 0 or more events per second");
    Ok(())
}

/// How the rate changes over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// The same rate all the time.
    Steady,
    /// Ten times the rate at the open, which is the moment of the first subscription. The rate then
    /// decays to the plain one with a time constant of 15 s.
    Open,
}

impl Profile {
    /// The factor on the rate at this time since the open.
    pub(crate) fn factor(self, since_open: Duration) -> f64 {
        match self {
            Self::Steady => 1.0,
            Self::Open => 1.0 + 9.0 * (-since_open.as_secs_f64() / 15.0).exp(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_bad_setting() {
        let fails = |config: SimConfig| config.validate().unwrap_err().to_string();
        assert!(SimConfig::default().validate().is_ok());
        assert!(
            fails(SimConfig { market: "bonds".into(), ..Default::default() }).contains("bonds")
        );
        assert!(fails(SimConfig { rate: f64::NAN, ..Default::default() }).contains("rate"));
        assert!(fails(SimConfig { symbols: 0, ..Default::default() }).contains("symbols"));
        for list in ["stocks,bonds", "stocks,", ""] {
            let config = SimConfig { market: list.into(), ..Default::default() };
            assert!(fails(config).contains("unknown market"), "{list}");
        }
        let twice = SimConfig { market: "stocks,launchpad-stocks".into(), ..Default::default() };
        assert!(fails(twice).contains("launchpad-stocks needs the path /stocks"));
        let refused = fails(SimConfig { refuse: vec!["XT".into()], ..Default::default() });
        assert!(refused.contains("XT") && refused.contains("LULD"), "{refused}");
        let market = "stocks, crypto".to_owned();
        let several = SimConfig { market, refuse: vec!["XT".into()], ..Default::default() };
        assert_eq!(several.validate().unwrap(), [Market::Stocks, Market::Crypto]);
    }

    #[test]
    fn the_open_decays() {
        assert!((Profile::Open.factor(Duration::ZERO) - 10.0).abs() < 1e-9);
        assert!(Profile::Open.factor(Duration::from_secs(120)) < 1.01);
        assert!((Profile::Steady.factor(Duration::ZERO) - 1.0).abs() < 1e-9);
    }
}
