//! The filtered proxy: takes everything from one firehose and gives each client exactly the events it subscribed to.
//!
//! A frame's way: [`split`] finds its events, [`index`] tells who wants each, [`batch`] renders one chunk for each set of
//! sessions that want the same, [`router`] writes it. It never talks to the vendor and passes no subscription on.

pub mod batch;
pub mod config;
pub mod coverage;
pub mod index;
pub mod metrics;
pub mod router;
pub mod split;

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use proxy_common::{
    access::{gate::Doors, keys::KeyMetrics},
    config::{ConfigError, bind},
    health::{Health, HealthReporter},
    link::{Link, LinkConfig, LinkHandle, Wanted},
    metrics::{IntakeMetrics, LinkMetrics, ProcessMetrics, SessionMetrics},
    program::reload::Reload,
    protocol::channel::Channel,
    server::{Bound, Server},
    session::{Tier, outbound::Outbound},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::config::{Args, Config};
use self::{
    metrics::RouterMetrics,
    router::{Router, RouterHandle, RouterSeat},
};

/// The tier's name in notices and metrics.
const TIER: &str = "filtered";

/// A filtered proxy that listens but does not serve yet.
#[derive(Debug)]
pub struct FilteredProxy {
    bound: Bound,
    server: Server<FilteredTier>,
    link: Link,
    router: Router,
    /// What the link asks for never changes; the sender only has to live.
    wanted: watch::Sender<Wanted>,
}

/// What sessions see of the filtered proxy.
#[derive(Debug)]
pub struct FilteredTier {
    router: RouterHandle,
    link: LinkHandle,
    health: HealthReporter,
    upstream: Arc<LinkMetrics>,
    intake: IntakeMetrics,
    sessions: Arc<SessionMetrics>,
}

impl FilteredProxy {
    /// Binds the ports.
    ///
    /// # Errors
    ///
    /// The host is unknown or a port is taken.
    pub async fn bind(config: Config) -> Result<Self, ConfigError> {
        let bound = bind(
            ("FILTERED_PROXY_HOST", &config.host),
            ("FILTERED_PROXY_PORT", config.port),
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
        let routing = RouterMetrics::register(prefixed);
        let (wanted, receiver) = watch::channel(BTreeSet::from([Channel::All]));
        let mut link_config = LinkConfig::new("firehose", config.firehose, config.key);
        link_config.extra_roots = config.extra_roots;
        // Our own firehose does not mind being asked often, and may have been given the right keys meanwhile.
        link_config.refused_interval = Duration::from_secs(30);
        let (link, handle) = Link::new(link_config, receiver, Arc::clone(&upstream));
        let market = config.listen.market;
        let intake = routing.intake.clone();
        let (router, router_handle) = Router::new(
            market,
            config.listen.client_queue_bytes,
            config.notices,
            routing,
            Arc::clone(&sessions),
        );
        let tier = FilteredTier {
            router: router_handle,
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
            sessions: config.listen.sessions(keys, config.notices),
            max_connections: config.listen.max_connections,
            doors: Arc::new(doors),
            certificate: config.certificate.map(Arc::new),
            total_queue_bytes: config.listen.total_queue_bytes,
        };
        Ok(Self { bound, server, link, router, wanted })
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
        tokio::select! {
            () = self.router.run(self.link) => {}
            () = self.server.serve(self.bound, stop) => {}
        }
        drop(self.wanted);
    }
}

impl Tier for FilteredTier {
    type Seat = RouterSeat;

    async fn admit(&self, outbound: &Arc<Outbound>) -> RouterSeat {
        self.router.join(Arc::clone(outbound)).await
    }

    fn health(&self) -> Health {
        let (link, problems) = (self.link.status(), self.router.problems());
        self.health.report(&link, &self.upstream, &self.intake, &self.sessions, problems)
    }

    fn tick(&self) {
        self.health.sample(&self.upstream);
    }
}
