//! The firehose: holds the one upstream connection and gives its frames, raw, to every downstream
//! that has subscribed to anything.
//!
//! It does not filter: a downstream that asks for `T.AAPL` makes the firehose carry that channel,
//! and gets everything that is carried. Filtering is the filtered proxy's work.

pub mod config;
pub mod contracts;
pub mod demand;
pub mod entitlements;
pub mod epochs;
mod links;
mod market_args;
#[cfg(feature = "nats")]
pub mod nats;
pub mod outage_notices;
pub mod oversized;
mod publisher;
pub mod record;
mod replay;
pub mod ring;
pub mod silence;
pub mod sources;
mod subscriber;
mod upkeep;

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use proxy_common::{
    config::ConfigError,
    history::History,
    link::{Link, LinkHandle},
    metrics::{Level, Value},
    program::{
        runtime::cores,
        wiring::{BoundTier, Foundation, MarketTier, TierHandler},
    },
    protocol::{Channel, Kind, Market, NoticePolicy, TierName},
};
use tokio::sync::{Semaphore, watch};
use tracing::warn;

pub use self::config::{Args, Config};
use self::{
    config::{FeedConfig, MarketConfig},
    contracts::Contracts,
    demand::UpstreamDemand,
    entitlements::Entitlements,
    links::Links,
    publisher::Publisher,
    record::{RecordConfig, Recorder},
    ring::Ring,
    silence::monitor::SilenceMonitor,
    subscriber::Shared,
    upkeep::{ContractLevels, FirehoseUpkeep},
};
#[cfg(feature = "nats")]
use self::{
    epochs::Epochs,
    nats::{FeedWriter, WriterParts},
};

/// A firehose with its server.
pub type FirehoseTier = TierHandler<Shared, FirehoseUpkeep>;

/// Binds the ports of a firehose.
///
/// # Errors
///
/// The host is unknown or a port is taken.
pub async fn bind(mut config: Config) -> Result<BoundTier<FirehoseTier>, ConfigError> {
    let markets = std::mem::take(&mut config.markets);
    for variable in &config.unused {
        warn!(variable, "setting of a market that MARKETS does not list: ignored");
    }
    let sessions = &config.server.sessions;
    let settings = Settings {
        notices: sessions.notices,
        queue_bytes: sessions.slow.queue_bytes,
        max_contracts: sessions.max_subscriptions,
        linger: config.upstream_linger,
        contracts: config.upstream_contracts,
        silence_alarm: config.silence_alarm,
        ring_frames: config.ring_frames,
        ring_bytes: config.ring_bytes,
        history_bytes: config.history_bytes,
        replays: Arc::new(Semaphore::new(cores())),
        record: config.record,
        nats: config.nats,
    };
    let mut foundation = Foundation::bind(TierName::Firehose, config.server).await?;
    foundation.limits.named.extend([
        ("RING_FRAMES", settings.ring_frames.to_string()),
        ("RING_BYTES", settings.ring_bytes.to_string()),
        ("HISTORY_BYTES", settings.history_bytes.to_string()),
        ("UPSTREAM_CONTRACTS", settings.contracts.to_string()),
    ]);
    let markets = markets.into_iter().map(|market| serve(market, &settings, &mut foundation));
    let markets = markets.collect::<Result<_, ConfigError>>()?;
    Ok(foundation.complete(markets))
}

/// The settings that all markets share.
struct Settings {
    notices: NoticePolicy,
    queue_bytes: usize,
    max_contracts: usize,
    linger: Duration,
    contracts: usize,
    silence_alarm: Option<Duration>,
    ring_frames: usize,
    ring_bytes: usize,
    history_bytes: usize,
    replays: Arc<Semaphore>,
    record: Option<RecordConfig>,
    #[cfg_attr(not(feature = "nats"), expect(dead_code))]
    nats: Option<FeedConfig>,
}

/// The parts of one market: its connection upstream, its ring and what its sessions share.
fn serve(
    config: MarketConfig,
    settings: &Settings,
    foundation: &mut Foundation,
) -> Result<MarketTier<Shared, FirehoseUpkeep>, ConfigError> {
    let MarketConfig { market, links, sources, channels, on_demand } = config;
    warn_of_odd_channels(market, &channels, on_demand.is_empty());
    let counters = foundation.market(market);
    let help = "Events in the ring that sessions have yet to read, counted for each session";
    let unread: Level = foundation.metrics.register("ring_events", help);
    let help = "How much of the ring the slowest session has yet to read, from 0 to 1";
    let ring_used: Value = foundation.metrics.register("ring_used_ratio", help);
    let history = History::new(settings.history_bytes);
    let ring =
        Ring::new(settings.ring_frames, settings.ring_bytes, unread.clone(), history.clone());
    let silence = settings.silence_alarm;
    let (silence, sampler) = SilenceMonitor::register(market, silence, &mut foundation.metrics);
    let recording = settings
        .record
        .as_ref()
        .map(|config| Recorder::start(market, config, &mut foundation.metrics))
        .transpose()?;
    let (recorder, record_status) = recording.unzip();
    let connections = links.len() as i64;
    let help = "Connections that the market should have upstream";
    foundation.metrics.register::<Level>("upstream_connections", help).set(connections);
    // Kinds on demand share the connections of one host, or have as many each.
    let shares = on_demand.first().map_or(1, |kind| sources.of_contracts(*kind).len());
    let entitlements = Arc::new(Entitlements::new(
        Arc::clone(&sources),
        channels.clone(),
        on_demand.clone(),
        settings.contracts * shares,
    ));
    let of_contracts = on_demand.into_iter().map(|kind| (kind, sources.of_contracts(kind)));
    let contracts = Contracts::new(of_contracts, settings.contracts, settings.linger);
    let (demand, wanted) = UpstreamDemand::new(sources, channels, settings.linger, contracts);
    let levels = ContractLevels::register(&mut foundation.metrics, demand.occupancy());
    let upstream = Arc::clone(&counters.upstream);
    let links = links.into_iter().zip(wanted);
    let (links, handles): (Vec<Link>, Vec<LinkHandle>) =
        links.map(|(link, wanted)| Link::new(link, wanted, Arc::clone(&upstream))).unzip();
    let links = Links::new(links);
    let outage = watch::Sender::new(links.outage());
    let shared = Shared {
        ring: ring.readers(),
        outage: outage.subscribe(),
        demand: Arc::new(demand),
        entitlements,
        notices: settings.notices,
        metrics: Arc::clone(&counters.sessions),
        queue_bytes: settings.queue_bytes,
        max_contracts: settings.max_contracts,
        next_session: Arc::default(),
        replays: Arc::clone(&settings.replays),
    };
    let recounts = Arc::new(AtomicU32::new(0));
    #[cfg_attr(not(feature = "nats"), allow(unused_mut))]
    let mut publisher = Publisher {
        ring,
        sampler,
        shared: shared.clone(),
        outage,
        intake: counters.intake.clone(),
        recounts: Arc::clone(&recounts),
        recorder,
        epochs: None,
    };
    #[cfg(feature = "nats")]
    let writing = settings.nats.as_ref().map(|config| {
        let (epochs, requests) = Epochs::new();
        let wake = Arc::default();
        publisher.ring.wake_with(Arc::clone(&wake));
        publisher.epochs = Some(requests);
        let parts = WriterParts {
            market,
            holder: nats::instance(),
            config: config.clone(),
            writing: nats::always(&shared.ring),
            shared: shared.clone(),
            wake,
            epochs: Some(epochs),
        };
        FeedWriter::new(parts, &mut foundation.metrics)
    });
    #[cfg(feature = "nats")]
    let (writer, writer_status) = writing.unzip();
    let upkeep = FirehoseUpkeep {
        shared: shared.clone(),
        upstream,
        connections,
        silence,
        unread,
        ring_used,
        contracts: levels,
        recounts,
        record: record_status,
        #[cfg(feature = "nats")]
        nats: writer_status,
    };
    let data = async move |stop, heartbeat| {
        #[cfg(feature = "nats")]
        let writer = writer.map(FeedWriter::start);
        publisher.run(links, stop, heartbeat).await;
        #[cfg(feature = "nats")]
        if let Some(writer) = writer {
            writer.close().await;
        }
    };
    Ok(MarketTier {
        counters,
        tier: shared,
        upkeep,
        links: handles,
        history,
        data: Box::new(|stop, heartbeat| Box::pin(data(stop, heartbeat))),
    })
}

/// Names the types that may be typing errors: the vendor does not answer for a type that it does
/// not know.
fn warn_of_odd_channels(market: Market, channels: &BTreeSet<Channel>, nothing_on_demand: bool) {
    if channels.is_empty() && nothing_on_demand {
        warn!(%market, "this host serves nothing that is known: list types in UPSTREAM_CHANNELS");
    }
    let kinds: BTreeSet<Kind> = channels.iter().filter_map(Channel::kind).collect();
    for kind in kinds.iter().filter(|kind| !market.kinds().contains(kind)) {
        warn!(
            "UPSTREAM_CHANNELS names the type {kind}, which this version does not know in {market}: \
             check its spelling"
        );
    }
}
