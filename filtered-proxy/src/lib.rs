//! The filtered proxy: takes everything from one firehose and gives each client exactly the events
//! that it subscribed to.
//!
//! A frame passes four modules: [`split`] finds its events, [`index`] finds the sessions that want
//! each, [`batch`] renders one chunk for all sessions with equal subscriptions, and [`router`]
//! writes it. The proxy never talks to the vendor. It passes on only subscriptions of [`contracts`]
//! on demand.

pub mod batch;
pub mod config;
pub mod contracts;
pub mod coverage;
pub mod feed;
pub mod followers;
pub mod index;
pub mod kind_counts;
pub mod last_values;
pub mod named_sessions;
pub mod replay;
mod replay_start;
mod replays;
pub mod router;
#[cfg(feature = "nats")]
pub mod session_bucket;
pub mod split;
mod subscriber;

use std::{collections::BTreeSet, sync::Arc};

#[cfg(feature = "nats")]
use proxy_common::link::{NatsUpstream, ReaderMetrics};
use proxy_common::{
    config::ConfigError,
    health::EventTypes,
    history::History,
    link::{Link, LinkConfig, Wanted},
    nats::NatsConfig,
    program::wiring::{BoundTier, Foundation, MarketTier, TierHandler},
    protocol::{Channel, Market, TierName},
    session::SessionConfig,
};
use tokio::sync::watch;
use tracing::warn;

pub use self::config::{Args, Config};
#[cfg(feature = "nats")]
use self::session_bucket::Bucket;
use self::{
    last_values::LastValues,
    named_sessions::SessionNames,
    router::{LagLevels, Memory, Router, RouterHandle},
};

/// A filtered proxy with its server.
pub type FilteredTier = TierHandler<RouterHandle, RouterHandle>;

/// Binds the ports of a filtered proxy.
///
/// # Errors
///
/// The host is unknown or a port is taken.
pub async fn bind(config: Config) -> Result<BoundTier<FilteredTier>, ConfigError> {
    for variable in &config.unused {
        warn!(variable, "the feed comes out of NATS, which does not ask for this key: ignored");
    }
    let (history_bytes, session_ttl) = (config.history_bytes, config.session_ttl);
    let sessions = config.server.sessions.clone();
    #[cfg(feature = "nats")]
    let bucket = config.nats.as_ref().map(|nats| Bucket::start(nats, session_ttl));
    let keeps_last_values = config.last_values;
    let mut foundation = Foundation::bind(TierName::Filtered, config.server).await?;
    let nats = config.nats;
    foundation.nats = nats.clone();
    let markets = config.links.into_iter().map(|(market, link)| {
        let counters = foundation.market(market);
        let (link, lag) = out_of_nats(link, nats.as_ref(), market, &mut foundation);
        let malformed = foundation.metrics.register("malformed", "Objects without a type");
        let event_types = EventTypes::register(&mut foundation.metrics, true);
        let last_values = keeps_last_values.then(|| LastValues::new(&mut foundation.metrics));
        // The link wants `*`. The router asks for contracts itself.
        let wanted = Wanted { channels: BTreeSet::from([Channel::All]), ..Wanted::default() };
        let (_, wanted) = watch::channel(wanted);
        let history = History::new(history_bytes);
        let (link, handle) = Link::new(link, wanted, Arc::clone(&counters.upstream));
        let sessions = SessionConfig { market, ..sessions.clone() };
        let names = SessionNames::new(session_ttl);
        #[cfg(feature = "nats")]
        let bucket = bucket.as_ref().map(|bucket| bucket.of(market));
        #[cfg(feature = "nats")]
        let names = if bucket.is_some() { names.shared() } else { names };
        let (router, routes) = Router::new(
            &sessions,
            Memory {
                history: history.clone(),
                names,
                #[cfg(feature = "nats")]
                bucket: bucket.clone(),
                last_values,
                lag,
            },
            counters.intake.clone(),
            malformed,
            Arc::clone(&event_types),
            Arc::clone(&counters.sessions),
        );
        #[cfg(feature = "nats")]
        let shared_names = Arc::clone(&routes.shared.names);
        MarketTier {
            counters,
            tier: routes.clone(),
            upkeep: routes,
            links: vec![handle],
            history,
            data: Box::new(|stop, heartbeat| {
                let work = router.run(link, stop, heartbeat);
                #[cfg(feature = "nats")]
                if let Some(bucket) = bucket {
                    return Box::pin(session_bucket::save_while(bucket, shared_names, work));
                }
                Box::pin(work)
            }),
        }
    });
    let markets = markets.collect();
    Ok(foundation.complete(markets))
}

/// Takes the feed out of NATS, if one is set.
#[cfg(feature = "nats")]
fn out_of_nats(
    link: LinkConfig,
    nats: Option<&NatsConfig>,
    market: Market,
    foundation: &mut Foundation,
) -> (LinkConfig, Option<LagLevels>) {
    let upstream = nats.map(|nats| {
        let metrics = ReaderMetrics::register(&mut foundation.metrics);
        let lag = LagLevels {
            messages: metrics.lag_messages.clone(),
            milliseconds: metrics.lag_ms.clone(),
        };
        (Arc::new(NatsUpstream::new(nats.clone(), market, metrics)), lag)
    });
    let (nats, lag) = upstream.unzip();
    (LinkConfig { nats, ..link }, lag)
}

/// This build has no NATS.
#[cfg(not(feature = "nats"))]
fn out_of_nats(
    link: LinkConfig,
    _: Option<&NatsConfig>,
    _: Market,
    _: &mut Foundation,
) -> (LinkConfig, Option<LagLevels>) {
    (link, None)
}
