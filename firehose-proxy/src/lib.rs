//! The firehose: holds the one upstream connection and gives its frames, raw, to every downstream
//! that has subscribed to anything.
//!
//! It does not filter: a downstream that asks for `T.AAPL` makes the firehose carry that channel,
//! and gets everything that is carried. Filtering is the filtered proxy's work.

pub mod config;
pub mod demand;
pub mod entitlements;
pub mod outage_notices;
mod publisher;
pub mod ring;
pub mod silence;
mod subscriber;
mod tier;

use std::sync::Arc;

use proxy_common::{
    config::ConfigError,
    link::Link,
    program::wiring::{BoundTier, Foundation},
    protocol::TierName,
};
use tokio::sync::watch;

pub use self::{
    config::{Args, Config},
    tier::FirehoseTier,
};
use self::{
    demand::UpstreamDemand, entitlements::Entitlements, publisher::Publisher, ring::Ring,
    silence::monitor::SilenceMonitor, subscriber::Feed,
};

/// Binds the ports of a firehose.
///
/// # Errors
///
/// The host is unknown or a port is taken.
pub async fn bind(config: Config) -> Result<BoundTier<FirehoseTier>, ConfigError> {
    let market = config.server.sessions.market;
    let (notices, limits) = (config.server.sessions.notices, config.server.sessions.slow);
    let mut foundation = Foundation::bind(TierName::Firehose, config.server).await?;
    let ring = Ring::register(config.ring_frames, config.ring_bytes, foundation.registry());
    let silence = config.silence_alarm;
    let (silence, sampler) = SilenceMonitor::register(market, silence, foundation.registry());
    let entitlements = Arc::new(Entitlements::new(market, config.upstream_channels.clone()));
    let (demand, wanted) =
        UpstreamDemand::new(market, config.upstream_channels, config.upstream_linger);
    let demand = Arc::new(demand);
    let (link, handle) = Link::new(config.link, wanted, Arc::clone(&foundation.upstream));
    let outage = watch::Sender::new(link.outage().cloned());
    let feed = Feed {
        ring: ring.readers(),
        outage: outage.subscribe(),
        demand: Arc::clone(&demand),
        entitlements: Arc::clone(&entitlements),
        notices,
        metrics: Arc::clone(&foundation.session_metrics),
        queue_bytes: limits.queue_bytes,
    };
    let health = foundation.health(&handle, Some(ring.unread()));
    let publisher = Publisher {
        ring,
        sampler,
        entitlements: Arc::clone(&entitlements),
        demand: Arc::clone(&demand),
        outage,
        intake: foundation.intake.clone(),
        sessions: Arc::clone(&foundation.session_metrics),
    };
    let tier = FirehoseTier {
        upstream: Arc::clone(&foundation.upstream),
        sessions: foundation.sessions(feed),
        demand,
        entitlements,
        silence,
        health,
    };
    Ok(foundation.complete(tier, handle, publisher.run(link)))
}
