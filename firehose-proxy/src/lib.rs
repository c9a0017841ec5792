//! The firehose: holds the one upstream connection and gives its frames, raw, to every downstream
//! that has subscribed to anything.
//!
//! It does not filter: a downstream that asks for `T.AAPL` makes the firehose carry that channel,
//! and gets everything that is carried. Filtering is the filtered proxy's work.

pub mod config;
pub mod contracts;
pub mod demand;
pub mod entitlements;
pub mod outage_notices;
pub mod oversized;
mod publisher;
pub mod ring;
pub mod silence;
mod subscriber;
mod upkeep;

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicU32},
};

use proxy_common::{
    config::ConfigError,
    link::Link,
    metrics::{Level, register},
    program::wiring::{BoundTier, Foundation, TierHandler},
    protocol::{Channel, Kind, Market, TierName},
};
use tokio::sync::watch;
use tracing::warn;

pub use self::config::{Args, Config};
use self::{
    contracts::Contracts,
    demand::UpstreamDemand,
    entitlements::Entitlements,
    publisher::Publisher,
    ring::Ring,
    silence::monitor::SilenceMonitor,
    subscriber::Shared,
    upkeep::{ContractLevels, FirehoseUpkeep},
};

/// A firehose with its server.
pub type FirehoseTier = TierHandler<Shared, FirehoseUpkeep>;

/// Binds the ports of a firehose.
///
/// # Errors
///
/// The host is unknown or a port is taken.
pub async fn bind(config: Config) -> Result<BoundTier<FirehoseTier>, ConfigError> {
    let sessions = &config.server.sessions;
    let (market, notices, queue_bytes) =
        (sessions.market, sessions.notices, sessions.slow.queue_bytes);
    let max_contracts = sessions.max_subscriptions;
    let mut foundation = Foundation::bind(TierName::Firehose, config.server).await?;
    warn_of_odd_channels(market, &config.upstream_channels);
    let help = "Events in the ring that sessions have yet to read, counted for each session";
    let unread: Level = register(foundation.registry(), "ring_events", help);
    let ring = Ring::new(config.ring_frames, config.ring_bytes, unread.clone());
    let silence = config.silence_alarm;
    let (silence, sampler) = SilenceMonitor::register(market, silence, foundation.registry());
    let entitlements = Arc::new(Entitlements::new(
        config.feed,
        config.upstream_channels.clone(),
        config.on_demand.clone(),
        config.upstream_contracts,
    ));
    let contracts =
        Contracts::new(config.on_demand, config.upstream_contracts, config.upstream_linger);
    let (demand, wanted) = UpstreamDemand::new(
        config.feed,
        config.upstream_channels,
        config.upstream_linger,
        contracts,
    );
    let levels = ContractLevels::register(foundation.registry(), demand.occupancy());
    let upstream = Arc::clone(&foundation.upstream);
    let (link, handle) = Link::new(config.link, wanted, Arc::clone(&upstream));
    let outage = watch::Sender::new(link.outage().cloned());
    let shared = Shared {
        ring: ring.readers(),
        outage: outage.subscribe(),
        demand: Arc::new(demand),
        entitlements,
        notices,
        metrics: Arc::clone(&foundation.session_metrics),
        queue_bytes,
        max_contracts,
        next_session: Arc::default(),
    };
    let recounts = Arc::new(AtomicU32::new(0));
    let publisher = Publisher {
        ring,
        sampler,
        shared: shared.clone(),
        outage,
        intake: foundation.intake.clone(),
        recounts: Arc::clone(&recounts),
    };
    let upkeep = FirehoseUpkeep {
        shared: shared.clone(),
        upstream,
        silence,
        unread,
        contracts: levels,
        recounts,
    };
    Ok(foundation.complete(shared, upkeep, handle, |stop| publisher.run(link, stop)))
}

/// Names the types that may be typing errors: the vendor does not answer for a type that it does
/// not know.
fn warn_of_odd_channels(market: Market, channels: &BTreeSet<Channel>) {
    if channels.is_empty() {
        warn!(%market, "this host serves no type by wildcard: list contracts in UPSTREAM_CHANNELS");
    }
    let kinds: BTreeSet<Kind> = channels.iter().filter_map(Channel::kind).collect();
    for kind in kinds.iter().filter(|kind| !market.kinds().contains(kind)) {
        warn!(
            "UPSTREAM_CHANNELS names the type {kind}, which this version does not know in {market}: \
             check its spelling"
        );
    }
}
