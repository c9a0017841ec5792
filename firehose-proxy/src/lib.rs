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
pub mod lease;
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
pub mod role;
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
use tokio::sync::{Semaphore, oneshot, watch};
use tracing::warn;

pub use self::config::{Args, Config};
use self::{
    config::{FeedConfig, MarketConfig},
    contracts::Contracts,
    demand::UpstreamDemand,
    entitlements::Entitlements,
    epochs::Epochs,
    lease::{Contention, Leases, MarketLease},
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
    nats::{DemandListener, FeedWriter, WriterParts},
    role::Role,
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
    let listen = &config.server.listen;
    let address = format!("{}:{}", listen.host, listen.port);
    let mut foundation = Foundation::bind(TierName::Firehose, config.server).await?;
    foundation.nats = settings.nats.as_ref().map(|feed| feed.nats.clone());
    foundation.limits.named.extend([
        ("RING_FRAMES", settings.ring_frames.to_string()),
        ("RING_BYTES", settings.ring_bytes.to_string()),
        ("HISTORY_BYTES", settings.history_bytes.to_string()),
        ("UPSTREAM_CONTRACTS", settings.contracts.to_string()),
    ]);
    let mut leases = config.lease.map(|lease| Leases::new(lease, address));
    let mut contention = Vec::new();
    let mut served = Vec::new();
    for market in markets {
        let (contends, contending) = oneshot::channel();
        contention.push(contends);
        served.push(serve(market, &settings, &mut foundation, &mut leases, contending)?);
    }
    if let Some(leases) = leases {
        let started = Arc::new(leases.start()?);
        for contends in contention {
            let _ = contends.send(Arc::clone(&started));
        }
    }
    let markets = served;
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
    nats: Option<FeedConfig>,
}

/// The parts of one market: its connection upstream, its ring and what its sessions share.
fn serve(
    config: MarketConfig,
    settings: &Settings,
    foundation: &mut Foundation,
    leases: &mut Option<Leases>,
    contending: oneshot::Receiver<Arc<Contention>>,
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
    let (mut epochs, mut epoch_requests) = (None, None);
    if leases.is_some() || settings.nats.is_some() {
        (epochs, epoch_requests) = Some(Epochs::new()).unzip();
    }
    let lease = epochs.as_ref().zip(leases.as_mut()).map(|(epochs, leases)| {
        leases.market(market, &ring.readers(), epochs.clone(), &mut foundation.metrics)
    });
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
    let links = links.into_iter().zip(wanted).map(|(mut link, wanted)| {
        link.dial_right = lease.as_ref().map(|lease| lease.right.clone());
        Link::new(link, wanted, Arc::clone(&upstream))
    });
    let (links, handles): (Vec<Link>, Vec<LinkHandle>) = links.unzip();
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
        epochs: epoch_requests,
    };
    #[cfg_attr(not(feature = "nats"), expect(unused_variables, reason = "only NATS needs it"))]
    let (lease_status, lease_role, release) = match lease {
        Some(MarketLease { status, role, release, .. }) => {
            (Some(status), Some(role), Some(release))
        }
        None => (None, None, None),
    };
    #[cfg(feature = "nats")]
    let writing = settings.nats.as_ref().map(|config| {
        let wake = Arc::default();
        publisher.ring.wake_with(Arc::clone(&wake));
        // Whoever reads the stream gets what a session with `*` does. So the first outage of a
        // firehose lasts until the vendor has answered all of that.
        shared.demand.add([&Channel::All]);
        let parts = WriterParts {
            market,
            holder: nats::holder(),
            config: config.clone(),
            // A lease says who is later. Without one our clock may have gone back.
            epochs: epochs.filter(|_| lease_role.is_none()),
            writing: lease_role.unwrap_or_else(|| Role::without_lease(shared.ring.epoch().0)),
            shared: shared.clone(),
            wake,
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
        lease: lease_status,
        #[cfg(feature = "nats")]
        nats: writer_status,
    };
    #[cfg(feature = "nats")]
    let demands = settings.nats.as_ref().map(|config| (config.nats.clone(), shared.clone()));
    let data = async move |stop, heartbeat| {
        #[cfg(feature = "nats")]
        let _demands = demands.map(|(nats, shared)| DemandListener::start(nats, market, shared));
        #[cfg(feature = "nats")]
        let writer = writer.map(FeedWriter::start);
        publisher.run(links, stop, heartbeat).await;
        #[cfg(feature = "nats")]
        if let Some(writer) = writer {
            writer.close().await;
        }
        // Last: from here on another firehose dials and writes.
        if let Some(release) = release {
            release.release().await;
        }
        drop(contending);
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
