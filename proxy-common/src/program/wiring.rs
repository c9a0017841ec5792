//! The wiring that both tiers share: binds ports, registers counters, builds and serves a tier.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::reload::Reload;
use crate::{
    access::{AbuseLog, Gate, GateConfig, KeyMetrics},
    config::ConfigError,
    health::{ContractsHealth, Health, HealthReporter, IntakeMetrics, ProcessMetrics},
    link::{LinkHandle, LinkMetrics},
    metrics::Level,
    protocol::TierName,
    server::{Handler, Server},
    session::{
        ClientInfo, QueueBudget, SessionConfig, SessionMetrics, Sessions, Tier, enforce_until,
    },
    transport::{Certificate, ListenConfig, Listeners, Socket},
};

/// The checked settings that both tiers have.
pub struct ServerConfig {
    /// Where to listen.
    pub listen: ListenConfig,
    /// The rules of the gate.
    pub gate: GateConfig,
    /// The certificate of the data port, if it speaks TLS.
    pub certificate: Option<Certificate>,
    /// The settings of sessions.
    pub sessions: SessionConfig,
    /// Most sessions at once. Default: 10,000.
    pub max_sessions: usize,
    /// Most bytes queued for all sessions together. Default: 1 GiB.
    pub total_queue_bytes: usize,
}

/// The parts that both tiers have: ports bound, counters registered.
pub struct Foundation {
    /// The counters of the link.
    pub upstream: Arc<LinkMetrics>,
    /// The counts of events in frames.
    pub intake: IntakeMetrics,
    /// The counters of sessions.
    pub session_metrics: Arc<SessionMetrics>,
    name: TierName,
    listeners: Listeners,
    registry: Registry,
    gate: Arc<Gate>,
    abuse: Arc<AbuseLog>,
    budget: Arc<QueueBudget>,
    certificate: Option<Arc<Certificate>>,
    sessions: SessionConfig,
    max_sessions: usize,
}

impl Foundation {
    /// Binds the ports and registers the counters.
    ///
    /// # Errors
    ///
    /// The host is unknown, or a port is in use. Or the port would be open to other machines while
    /// the account's key is the only key: that key must not travel there. The error names the
    /// variable.
    pub async fn bind(name: TierName, config: ServerConfig) -> Result<Self, ConfigError> {
        let addresses = config.listen.resolve().await?;
        let keys = &config.sessions.keys;
        if let Some(open) = addresses.iter().find(|address| !address.ip().is_loopback())
            && keys.is_account()
        {
            let (host, ip) = (config.listen.host_variable, open.ip());
            let expected = format!("keys for the clients, as {host} opens {ip} to other machines");
            return Err(ConfigError::missing(keys.variable(), expected));
        }
        let listeners = Listeners::bind(&config.listen, &addresses)?;
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessMetrics::new()));
        let prefixed = registry.sub_registry_with_prefix(name.name());
        prefixed.register_collector(Box::new(KeyMetrics(Arc::clone(keys))));
        let abuse = Arc::new(AbuseLog::register(prefixed));
        let gate = Arc::new(Gate::new(config.gate, Arc::clone(&abuse), prefixed));
        let upstream = LinkMetrics::register(prefixed);
        let intake = IntakeMetrics::register(prefixed);
        let session_metrics = SessionMetrics::register(prefixed);
        let budget = QueueBudget::new(config.total_queue_bytes, Arc::clone(&session_metrics));
        Ok(Self {
            upstream,
            intake,
            session_metrics,
            name,
            listeners,
            registry,
            gate,
            abuse,
            budget: Arc::new(budget),
            certificate: config.certificate.map(Arc::new),
            sessions: config.sessions,
            max_sessions: config.max_sessions,
        })
    }

    /// Where a tier registers counters of its own.
    pub fn registry(&mut self) -> &mut Registry {
        self.registry.sub_registry_with_prefix(self.name.name())
    }

    /// The whole tier. `data` moves the link's data to the sessions until the token is cancelled.
    /// Then it closes the link.
    pub fn complete<T: Tier, U: Upkeep, D: Future<Output = ()> + Send + 'static>(
        self,
        tier: T,
        upkeep: U,
        link: LinkHandle,
        data: impl FnOnce(CancellationToken) -> D,
    ) -> BoundTier<TierHandler<T, U>> {
        let keys = Arc::clone(&self.sessions.keys);
        let handler = TierHandler {
            health: HealthReporter::new(
                self.sessions.market,
                Arc::clone(&keys),
                Arc::clone(&self.upstream),
                self.intake.clone(),
                Arc::clone(&self.session_metrics),
            ),
            sessions: Sessions {
                tier,
                config: self.sessions.clone(),
                metrics: Arc::clone(&self.session_metrics),
                abuse: Arc::clone(&self.abuse),
                budget: Arc::clone(&self.budget),
            },
            upkeep,
            link: link.clone(),
        };
        self.serve_by(handler, link, data)
    }

    /// Does the same as [`complete`](Self::complete), with a handler of the caller.
    pub fn serve_by<H: Handler, D: Future<Output = ()> + Send + 'static>(
        self,
        handler: H,
        link: LinkHandle,
        data: impl FnOnce(CancellationToken) -> D,
    ) -> BoundTier<H> {
        let data_stop = CancellationToken::new();
        let (keys, certificate) = (Arc::clone(&self.sessions.keys), self.certificate.clone());
        BoundTier {
            listeners: self.listeners,
            upstream: self.upstream,
            sessions: self.session_metrics,
            reload: Reload { link, keys, certificate },
            server: Server {
                handler: Arc::new(handler),
                registry: self.registry,
                market: self.sessions.market,
                gate: self.gate,
                certificate: self.certificate,
                max_sessions: self.max_sessions,
                step_timeout: self.sessions.auth_timeout,
            },
            budget: self.budget,
            data: Box::pin(data(data_stop.clone())),
            data_stop,
            drain_spread: self.sessions.drain_spread,
            drain_timeout: self.sessions.drain_timeout,
        }
    }
}

/// What a tier does each second, and the problems that it reports.
pub trait Upkeep: Send + Sync + 'static {
    /// Its problems, in sentences for `/health`.
    fn problems(&self) -> Vec<String>;

    /// The contracts on demand, by type.
    fn contracts(&self) -> BTreeMap<String, ContractsHealth> {
        BTreeMap::new()
    }

    /// How many events its sessions have yet to fetch. `None` if sessions of this tier fetch none.
    fn unread(&self) -> Option<&Level> {
        None
    }

    /// Called about once a second.
    fn tick(&self) {}
}

/// A tier as its server sees it: sessions and health.
#[derive(Debug)]
pub struct TierHandler<T, U> {
    sessions: Sessions<T>,
    health: HealthReporter,
    upkeep: U,
    link: LinkHandle,
}

impl<T: Tier, U: Upkeep> Handler for TierHandler<T, U> {
    fn serve<'a>(
        &'a self,
        socket: Socket,
        early: &[u8],
        client: ClientInfo,
        stop: &'a CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<'a, T, U> {
        self.sessions.serve(socket, early, client, stop)
    }

    fn health(&self) -> Health {
        let (unread, problems) = (self.upkeep.unread(), self.upkeep.problems());
        let contracts = self.upkeep.contracts();
        Health { contracts, ..self.health.report(self.link.status(), unread, problems) }
    }

    fn tick(&self) {
        self.health.sample();
        self.upkeep.tick();
    }
}

/// A tier that listens but does not serve yet.
pub struct BoundTier<H> {
    /// Where it listens.
    pub listeners: Listeners,
    /// The counters of its link.
    pub upstream: Arc<LinkMetrics>,
    /// The counters of its sessions.
    pub sessions: Arc<SessionMetrics>,
    /// The reload on SIGHUP.
    pub reload: Reload,
    server: Server<H>,
    budget: Arc<QueueBudget>,
    data: Pin<Box<dyn Future<Output = ()> + Send>>,
    data_stop: CancellationToken,
    /// How long the last session may take to begin to drain.
    drain_spread: Duration,
    /// How long the last session may take to end.
    drain_timeout: Duration,
}

impl<H: Handler> BoundTier<H> {
    /// Serves until `stop`, then until the last session has ended and the link is closed.
    pub async fn serve(mut self, stop: CancellationToken) {
        let (data_stop, spread, limit) = (self.data_stop, self.drain_spread, self.drain_timeout);
        let serving = async {
            tokio::join!(
                self.server.serve(self.listeners, stop.clone()),
                enforce_until(self.budget, stop.clone()),
            );
            data_stop.cancel();
        };
        // By the end of the spread every session drains, and takes no new data.
        let data = async {
            tokio::select! {
                () = &mut self.data => return,
                () = after(&stop, spread) => data_stop.cancel(),
            }
            tokio::select! {
                () = self.data => {}
                () = after(&stop, limit) => {}
            }
        };
        tokio::join!(serving, data);
    }
}

/// Waits for `stop`, and then this long.
async fn after(stop: &CancellationToken, time: Duration) {
    stop.cancelled().await;
    sleep(time).await;
}
