//! The firehose: holds the one upstream connection and gives its frames, raw, to every downstream that subscribed to
//! anything.
//!
//! It does not filter: a downstream that asks for `T.AAPL` makes the firehose carry that channel, and gets everything that is
//! carried. Filtering is the filtered proxy's work.

pub mod aggregate;
pub mod calendar;
pub mod config;
pub mod fanout;
pub mod guardian;
pub mod offer;
mod seat;
pub mod silence;

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use prometheus_client::registry::Registry;
use proxy_common::{
    config::{ConfigError, bind},
    doors::Doors,
    frame::{Cut, cut},
    health::{Health, HealthReporter},
    keys::KeyMetrics,
    link::{Link, LinkConfig, LinkEvent, LinkHandle},
    metrics::{LinkMetrics, LossReason, ProcessMetrics, SessionMetrics},
    notice::{Notice, Notices},
    outbound::Outbound,
    protocol::MAX_MESSAGE_BYTES,
    reload::Reload,
    server::{Bound, Server},
    session::Tier,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use self::config::{Args, Config};
use self::{
    aggregate::Aggregate,
    fanout::{Fanout, FanoutHandle},
    guardian::{Guardian, Sampler, Scene},
    offer::Offer,
    seat::FirehoseSeat,
};

/// The tier's name in notices and metrics.
const TIER: &str = "firehose";

/// A firehose that listens but does not serve yet.
#[derive(Debug)]
pub struct Firehose {
    bound: Bound,
    server: Server<FirehoseTier>,
    link: Link,
    fanout: Fanout,
    sampler: Sampler,
}

/// What sessions see of the firehose.
#[derive(Debug)]
pub struct FirehoseTier {
    fanout: FanoutHandle,
    aggregate: Arc<Aggregate>,
    offer: Arc<Offer>,
    notices: Notices,
    guardian: Guardian,
    link: LinkHandle,
    health: HealthReporter,
    upstream: Arc<LinkMetrics>,
    sessions: Arc<SessionMetrics>,
}

impl Firehose {
    /// Binds the ports.
    ///
    /// # Errors
    ///
    /// The host is unknown or a port is taken.
    pub async fn bind(config: Config) -> Result<Self, ConfigError> {
        let bound = bind(
            ("FIREHOSE_HOST", &config.host),
            ("FIREHOSE_PORT", config.port),
            config.listen.admin_port,
            &config.keys,
        )
        .await?;
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessMetrics::new()));
        let prefixed = registry.sub_registry_with_prefix(TIER);
        let upstream = LinkMetrics::register(prefixed);
        let sessions = SessionMetrics::register(prefixed);
        let doors = Doors::new(&config.listen.admission, prefixed);
        let keys = Arc::new(config.keys);
        prefixed.register_collector(Box::new(KeyMetrics(Arc::clone(&keys))));
        let market = config.listen.market;
        let offer = Arc::new(Offer::new(market, config.upstream_channels.clone()));
        let notices = config.notices;
        let (guardian, sampler) = Guardian::new(market, config.silence_alarm, prefixed);
        let (aggregate, wanted) =
            Aggregate::new(market, config.upstream_channels, config.upstream_linger);
        let mut link_config = LinkConfig::new("Polygon", config.upstream, config.key);
        link_config.extra_roots = config.extra_roots;
        let (link, handle) = Link::new(link_config, wanted, Arc::clone(&upstream));
        let (fanout, readers) = fanout::ring(config.ring_frames);
        let tier = FirehoseTier {
            fanout: readers,
            aggregate: Arc::new(aggregate),
            offer,
            notices,
            guardian,
            link: handle,
            health: HealthReporter::new(market),
            upstream,
            sessions: Arc::clone(&sessions),
        };
        let server = Server {
            tier: Arc::new(tier),
            registry,
            metrics: sessions,
            sessions: config.listen.sessions(keys, notices),
            max_connections: config.listen.max_connections,
            doors: Arc::new(doors),
        };
        Ok(Self { bound, server, link, fanout, sampler })
    }

    /// The addresses listened on.
    ///
    /// # Errors
    ///
    /// The system does not tell.
    pub fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.bound.addresses()
    }

    /// What SIGHUP asks for.
    pub fn reload(&self) -> Reload {
        let keys = Arc::clone(&self.server.sessions.keys);
        Reload { link: self.server.tier.link.clone(), keys }
    }

    /// What is counted about the link and about sessions.
    pub fn metrics(&self) -> (Arc<LinkMetrics>, Arc<SessionMetrics>) {
        (Arc::clone(&self.server.tier.upstream), Arc::clone(&self.server.metrics))
    }

    /// Serves until `stop`, then lets the sessions say goodbye.
    pub async fn serve(self, stop: CancellationToken) {
        // Data flows until the last session has gone.
        let metrics = Arc::clone(&self.server.metrics);
        let offer = Arc::clone(&self.server.tier.offer);
        tokio::select! {
            () = pump(self.link, self.fanout, self.sampler, offer, metrics) => {}
            () = self.server.serve(self.bound, stop) => {}
        }
    }
}

/// Moves what the link yields to the ring. Publishing never waits, so upstream is read as fast as it sends.
async fn pump(
    mut link: Link,
    mut fanout: Fanout,
    mut sampler: Sampler,
    offer: Arc<Offer>,
    metrics: Arc<SessionMetrics>,
) {
    loop {
        match link.next().await {
            LinkEvent::Frame { frame, events } => {
                sampler.frame(frame.text());
                if frame.text().len() > MAX_MESSAGE_BYTES {
                    publish_cut(&mut fanout, frame.text(), &metrics);
                } else {
                    fanout.publish(frame, u32::try_from(events).unwrap_or(u32::MAX));
                }
            }
            LinkEvent::Notice(frame) => fanout.notify(frame),
            LinkEvent::Down(outage) => {
                fanout.notify(Notice::upstream_down(TIER, &outage).frame());
            }
            LinkEvent::Up(Some(outage)) => {
                fanout.notify(Notice::upstream_up(TIER, &outage, SystemTime::now()).frame());
            }
            LinkEvent::Channels(changes) => {
                if offer.learn(&changes) {
                    fanout.offer_changed();
                }
            }
            // Another firehose says it of its `*`, which is not asked for here.
            LinkEvent::Up(None) | LinkEvent::Carried(_) => {}
        }
    }
}

/// A frame longer than a message to clients may be: rare enough to be parsed.
fn publish_cut(fanout: &mut Fanout, text: &[u8], metrics: &SessionMetrics) {
    match cut(text) {
        Ok(Cut { arrays, oversize }) => {
            for (array, events) in arrays {
                fanout.publish(array, events);
            }
            if oversize > 0 {
                warn!(oversize, "events longer than a message may be dropped");
                metrics.lost(LossReason::Oversize, oversize);
                fanout.notify(Notice::oversize(TIER, oversize).frame());
            }
        }
        Err(_) => {
            warn!(bytes = text.len(), "malformed frame dropped");
            fanout.notify(Notice::malformed(TIER).frame());
        }
    }
}

impl Tier for FirehoseTier {
    type Seat = FirehoseSeat;

    async fn admit(&self, outbound: &Arc<Outbound>) -> FirehoseSeat {
        FirehoseSeat::new(
            Arc::clone(outbound),
            self.fanout.clone(),
            Arc::clone(&self.aggregate),
            Arc::clone(&self.offer),
            self.notices,
            Arc::clone(&self.sessions),
        )
    }

    fn health(&self) -> Health {
        let problems = self.guardian.problems();
        self.health.report(&self.link.status(), &self.upstream, &self.sessions, problems)
    }

    fn tick(&self) {
        self.health.sample(&self.upstream);
        self.aggregate.expire(Instant::now());
        let wanted = self.aggregate.wanted();
        self.offer.retain(&wanted);
        let scene = Scene {
            up: self.upstream.up.get() == 1,
            wanted: &wanted,
            refused: &self.offer.refused(),
            frames: self.upstream.frames.get(),
        };
        self.guardian.tick(Instant::now().into_std(), SystemTime::now(), &scene);
    }
}
