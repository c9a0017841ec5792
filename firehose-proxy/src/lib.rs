//! The firehose: holds the one upstream connection and gives its frames, raw, to every downstream that subscribed to
//! anything.
//!
//! It does not filter: a downstream that asks for `T.AAPL` makes the firehose carry that channel, and gets everything that is
//! carried. Filtering is the filtered proxy's work.

pub mod config;
pub mod demand;
pub mod entitlements;
pub mod outage_notices;
pub mod ring;
pub mod silence;
mod subscriber;

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use prometheus_client::registry::Registry;
use proxy_common::{
    access::{gate::Doors, keys::KeyMetrics},
    config::{ConfigError, bind},
    health::{Health, HealthReporter},
    link::{Link, LinkConfig, LinkEvent, LinkHandle, Outage},
    metrics::{IntakeMetrics, LinkMetrics, LossReason, ProcessMetrics, SessionMetrics},
    program::reload::Reload,
    protocol::{
        messages::MAX_MESSAGE_BYTES,
        notice::{Notice, Notices},
    },
    server::{Bound, Server},
    session::{Tier, outbound::Outbound},
    websocket::frame::{Cut, Frame, cut},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use self::config::{Args, Config};
use self::{
    demand::Aggregate,
    entitlements::Offer,
    ring::{Content, Fanout, FanoutHandle},
    silence::monitor::{Guardian, Sampler, Scene},
    subscriber::FirehoseSeat,
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
    down: watch::Sender<Option<Outage>>,
}

/// What sessions see of the firehose.
#[derive(Debug)]
pub struct FirehoseTier {
    fanout: FanoutHandle,
    down: watch::Receiver<Option<Outage>>,
    aggregate: Arc<Aggregate>,
    offer: Arc<Offer>,
    notices: Notices,
    guardian: Guardian,
    link: LinkHandle,
    health: HealthReporter,
    upstream: Arc<LinkMetrics>,
    intake: IntakeMetrics,
    sessions: Arc<SessionMetrics>,
    /// Most bytes queued for a session.
    queue_bytes: usize,
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
        let intake = IntakeMetrics::register(prefixed);
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
        let (fanout, readers) = ring::ring(config.ring_frames, config.ring_bytes);
        let (down, lasting) = watch::channel(link.outage().cloned());
        let tier = FirehoseTier {
            fanout: readers,
            down: lasting,
            aggregate: Arc::new(aggregate),
            offer,
            notices,
            guardian,
            link: handle,
            health: HealthReporter::new(market),
            upstream,
            intake,
            sessions: Arc::clone(&sessions),
            queue_bytes: config.listen.client_queue_bytes,
        };
        let server = Server {
            tier: Arc::new(tier),
            registry,
            metrics: sessions,
            sessions: config.listen.sessions(keys, notices),
            max_connections: config.listen.max_connections,
            doors: Arc::new(doors),
            certificate: config.certificate.map(Arc::new),
            total_queue_bytes: config.listen.total_queue_bytes,
        };
        Ok(Self { bound, server, link, fanout, sampler, down })
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
        let certificate = self.server.certificate.clone();
        Reload { link: self.server.tier.link.clone(), keys, certificate }
    }

    /// What is counted about the link and about sessions.
    pub fn metrics(&self) -> (Arc<LinkMetrics>, Arc<SessionMetrics>) {
        (Arc::clone(&self.server.tier.upstream), Arc::clone(&self.server.metrics))
    }

    /// Serves until `stop`, then lets the sessions say goodbye.
    pub async fn serve(self, stop: CancellationToken) {
        // Data flows until the last session has gone.
        let publisher = Publisher {
            fanout: self.fanout,
            sampler: self.sampler,
            offer: Arc::clone(&self.server.tier.offer),
            aggregate: Arc::clone(&self.server.tier.aggregate),
            down: self.down,
            intake: self.server.tier.intake.clone(),
            sessions: Arc::clone(&self.server.metrics),
        };
        tokio::select! {
            () = pump(self.link, publisher) => {}
            () = self.server.serve(self.bound, stop) => {}
        }
    }
}

/// Moves what the link yields to the ring. Publishing never waits, so upstream is read as fast as it sends.
async fn pump(mut link: Link, mut publisher: Publisher) {
    loop {
        match link.next().await {
            LinkEvent::Frame { frame, events } => {
                publisher.sampler.frame(frame.text());
                if frame.text().len() > MAX_MESSAGE_BYTES {
                    publisher.publish_cut(frame.text(), events);
                } else {
                    publisher.intake.found(events, events, false);
                    publisher.publish(frame, u32::try_from(events).unwrap_or(u32::MAX));
                }
            }
            LinkEvent::Notice(frame) => publisher.fanout.notify(frame),
            LinkEvent::Malformed => publisher.fanout.notify(Notice::malformed(TIER).frame()),
            LinkEvent::Down(outage) => {
                publisher.down.send_replace(Some(outage.clone()));
                publisher.fanout.signal(Content::Down(outage));
            }
            LinkEvent::Up(_) | LinkEvent::Settled => {
                publisher.down.send_replace(None);
                publisher.aggregate.settle();
                publisher.fanout.signal(Content::Complete(SystemTime::now()));
            }
            LinkEvent::Channels(changes) => {
                if publisher.offer.learn(&changes) {
                    publisher.fanout.signal(Content::OfferChanged);
                }
            }
            // Another firehose says it of its `*`, which is not asked for here.
            LinkEvent::Carried(_) => {}
        }
    }
}

/// The way into the ring, with its books.
struct Publisher {
    fanout: Fanout,
    sampler: Sampler,
    /// What can be had of the vendor, as it turns out.
    offer: Arc<Offer>,
    aggregate: Arc<Aggregate>,
    /// The outage that lasts, for who subscribes meanwhile.
    down: watch::Sender<Option<Outage>>,
    intake: IntakeMetrics,
    sessions: Arc<SessionMetrics>,
}

impl Publisher {
    fn publish(&mut self, frame: Frame, events: u32) {
        let readers = self.fanout.publish(frame, events);
        if readers == 0 {
            self.intake.unwanted.inc_by(events.into());
            return;
        }
        let owed = u64::from(events) * readers as u64;
        self.sessions.events_owed.inc_by(owed);
        self.sessions.queue_events.inc_by(owed as i64);
    }

    /// A frame longer than a message to clients may be: rare enough to be parsed.
    fn publish_cut(&mut self, text: &[u8], told: u64) {
        match cut(text) {
            Ok(Cut { arrays, oversize }) => {
                let found = arrays.iter().map(|(_, events)| u64::from(*events)).sum::<u64>();
                self.intake.found(found + oversize, told, false);
                for (array, events) in arrays {
                    self.publish(array, events);
                }
                if oversize > 0 {
                    warn!(oversize, "events longer than a message may be dropped");
                    self.sessions.lost(LossReason::Oversize, oversize);
                    self.fanout.notify(Notice::oversize(TIER, oversize).frame());
                }
            }
            Err(_) => {
                warn!(bytes = text.len(), "malformed frame dropped");
                let lost = self.intake.found(0, told, true);
                self.sessions.lost(LossReason::Malformed, lost);
                self.fanout.notify(Notice::malformed(TIER).frame());
            }
        }
    }
}

impl Tier for FirehoseTier {
    type Seat = FirehoseSeat;

    async fn admit(&self, outbound: &Arc<Outbound>) -> FirehoseSeat {
        FirehoseSeat::new(self, outbound)
    }

    fn health(&self) -> Health {
        let (link, problems) = (self.link.status(), self.guardian.problems());
        self.health.report(&link, &self.upstream, &self.intake, &self.sessions, problems)
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
