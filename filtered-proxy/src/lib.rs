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
pub mod index;
pub mod router;
pub mod split;

use std::{collections::BTreeSet, sync::Arc};

use proxy_common::{
    config::ConfigError,
    link::{Link, Wanted},
    metrics::register,
    program::wiring::{BoundTier, Foundation, TierHandler},
    protocol::{Channel, TierName},
};
use tokio::sync::watch;

pub use self::config::{Args, Config};
use self::router::{Router, RouterHandle};

/// A filtered proxy with its server.
pub type FilteredTier = TierHandler<RouterHandle, RouterHandle>;

/// Binds the ports of a filtered proxy.
///
/// # Errors
///
/// The host is unknown or a port is taken.
pub async fn bind(config: Config) -> Result<BoundTier<FilteredTier>, ConfigError> {
    let sessions = config.server.sessions.clone();
    let mut foundation = Foundation::bind(TierName::Filtered, config.server).await?;
    let help = "Objects without a type";
    let malformed = register(foundation.registry(), "malformed", help);
    // The link wants `*`. The router asks for contracts itself.
    let wanted = Wanted { channels: BTreeSet::from([Channel::All]), ..Wanted::default() };
    let (_, wanted) = watch::channel(wanted);
    let (link, handle) = Link::new(config.link, wanted, Arc::clone(&foundation.upstream));
    let (intake, metrics) = (foundation.intake.clone(), Arc::clone(&foundation.session_metrics));
    let (router, routes) = Router::new(&sessions, intake, malformed, metrics);
    Ok(foundation.complete(routes.clone(), routes, handle, |stop| router.run(link, stop)))
}
