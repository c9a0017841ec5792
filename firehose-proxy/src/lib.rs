//! The firehose: holds the one upstream connection and gives its frames, raw, to every downstream that subscribed to
//! anything.
//!
//! It does not filter: a downstream that asks for `T.AAPL` makes the firehose carry that channel, and gets everything that is
//! carried. Filtering is the filtered proxy's work.

pub mod aggregate;
pub mod config;
pub mod fanout;
mod seat;

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use prometheus_client::registry::Registry;
use proxy_common::{
    config::{ConfigError, bind},
    frame::{Cut, Frame, cut},
    health::{Health, HealthReporter},
    link::{Link, LinkConfig, LinkEvent, LinkHandle},
    metrics::{IntakeMetrics, LinkMetrics, LossReason, ProcessMetrics, SessionMetrics},
    notice::Notice,
    outbound::Outbound,
    protocol::MAX_MESSAGE_BYTES,
    server::{Bound, Server},
    session::Tier,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use self::config::{Args, Config};
use self::{
    aggregate::Aggregate,
    fanout::{Fanout, FanoutHandle},
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
    down: watch::Sender<Option<Frame>>,
}

/// What sessions see of the firehose.
#[derive(Debug)]
pub struct FirehoseTier {
    fanout: FanoutHandle,
    down: watch::Receiver<Option<Frame>>,
    aggregate: Arc<Aggregate>,
    link: LinkHandle,
    health: HealthReporter,
    upstream: Arc<LinkMetrics>,
    intake: IntakeMetrics,
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
        )
        .await?;
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessMetrics::new()));
        let prefixed = registry.sub_registry_with_prefix(TIER);
        let upstream = LinkMetrics::register(prefixed);
        let intake = IntakeMetrics::register(prefixed);
        let sessions = SessionMetrics::register(prefixed);
        let market = config.listen.market;
        let (aggregate, wanted) =
            Aggregate::new(market, config.upstream_channels, config.upstream_linger);
        let mut link_config = LinkConfig::new("Polygon", config.upstream, config.key);
        link_config.extra_roots = config.extra_roots;
        let (link, handle) = Link::new(link_config, wanted, Arc::clone(&upstream));
        let (fanout, readers) = fanout::ring(config.ring_frames);
        let (down, lasting) = watch::channel(None);
        let tier = FirehoseTier {
            fanout: readers,
            down: lasting,
            aggregate: Arc::new(aggregate),
            link: handle,
            health: HealthReporter::new(market),
            upstream,
            intake,
            sessions: Arc::clone(&sessions),
        };
        let server = Server {
            tier: Arc::new(tier),
            registry,
            metrics: sessions,
            sessions: config.listen.sessions(config.keys),
            max_connections: config.listen.max_connections,
            total_queue_bytes: config.listen.total_queue_bytes,
        };
        Ok(Self { bound, server, link, fanout, down })
    }

    /// The addresses listened on.
    ///
    /// # Errors
    ///
    /// The system does not tell.
    pub fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.bound.addresses()
    }

    /// The link upstream.
    pub fn link(&self) -> LinkHandle {
        self.server.tier.link.clone()
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
            LinkEvent::Frame { frame, events } if frame.text().len() > MAX_MESSAGE_BYTES => {
                publisher.publish_cut(frame.text(), events);
            }
            LinkEvent::Frame { frame, events } => {
                publisher.intake.found(events, events, false);
                publisher.publish(frame, u32::try_from(events).unwrap_or(u32::MAX));
            }
            LinkEvent::Notice(frame) => publisher.notify(frame),
            LinkEvent::Down(outage) => {
                let frame = Notice::upstream_down(TIER, &outage).frame();
                publisher.down.send_replace(Some(frame.clone()));
                publisher.notify(frame);
            }
            LinkEvent::Up(Some(outage)) => {
                publisher.down.send_replace(None);
                publisher.notify(Notice::upstream_up(TIER, &outage, SystemTime::now()).frame());
            }
            LinkEvent::Up(None) => {}
        }
    }
}

/// The way into the ring, with its books.
struct Publisher {
    fanout: Fanout,
    /// The notice of the outage that lasts, for who subscribes meanwhile.
    down: watch::Sender<Option<Frame>>,
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

    fn notify(&mut self, frame: Frame) {
        self.publish(frame, 0);
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
                    self.notify(Notice::oversize(TIER, oversize).frame());
                }
            }
            Err(_) => {
                warn!(bytes = text.len(), "malformed frame dropped");
                let lost = self.intake.found(0, told, true);
                self.sessions.lost(LossReason::Malformed, lost);
                self.notify(Notice::malformed(TIER).frame());
            }
        }
    }
}

impl Tier for FirehoseTier {
    type Seat = FirehoseSeat;

    async fn admit(&self, outbound: &Arc<Outbound>) -> FirehoseSeat {
        FirehoseSeat::new(
            Arc::clone(outbound),
            self.fanout.clone(),
            self.down.clone(),
            Arc::clone(&self.aggregate),
            Arc::clone(&self.sessions),
        )
    }

    fn health(&self) -> Health {
        self.health.report(&self.link.status(), &self.upstream, &self.intake, &self.sessions)
    }

    fn tick(&self) {
        self.health.sample(&self.upstream);
        self.aggregate.expire(Instant::now());
    }
}
