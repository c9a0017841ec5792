//! The wiring that both tiers share: binds ports, registers counters, builds and serves a tier.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, SystemTime},
};

use humantime::format_duration;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, error_span};

use super::{program_metrics::ProgramMetrics, reload::Reload, service_manager::Heartbeat};
#[cfg(feature = "nats")]
use crate::peers::{AskedMarket, ask_and_answer};
use crate::{
    access::{AbuseLog, Gate, GateConfig, KeyMetrics},
    config::ConfigError,
    health::{
        ContractsHealth, Health, HealthDocument, HealthReporter, IntakeMetrics, Lag, LeaseHealth,
        PeerList, ProcessMetrics,
    },
    history::{History, HistoryMetrics},
    link::{LinkHandle, LinkMetrics, LinkState, LinkStatus},
    metrics::{Level, Metrics},
    nats::NatsConfig,
    protocol::{Market, TierName, millis},
    server::{Handler, Server, affordable},
    session::{
        ClientInfo, NamedSessions, OpenSessions, QueueBudget, QueueMetrics, SessionConfig,
        SessionLog, SessionMetrics, Sessions, Tier, enforce_until,
    },
    status::{Limits, MarketReporter, ProgramReporter, SessionsDocument, StatusDocument, TierView},
    transport::{Certificate, ListenConfig, Listeners, Socket},
};

/// The problem of a link that is up while clients are still in its outage.
const BEHIND: &str =
    "clients wait: the firehose has yet to send what was missed, or to answer for contracts";

/// The checked settings that both tiers have.
pub struct ServerConfig {
    /// The data port.
    pub listen: ListenConfig,
    /// The admin port. Default: none.
    pub admin: Option<ListenConfig>,
    /// The rules of the gate.
    pub gate: GateConfig,
    /// The certificate of the data port, if it speaks TLS.
    pub certificate: Option<Certificate>,
    /// The markets served, at least one. `/` is the first.
    pub markets: Vec<Market>,
    /// The settings of sessions. Its market is the first one.
    pub sessions: SessionConfig,
    /// Most sessions at once. Default: 10,000.
    pub max_sessions: usize,
    /// Most bytes queued for all sessions together. Default: 1 GiB.
    pub total_queue_bytes: usize,
}

impl ServerConfig {
    /// The addresses of the data port.
    ///
    /// # Errors
    ///
    /// The host is unknown. Or the port would be open to other machines while the account's key is
    /// the only key: that key must not travel there. The error names the variable.
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        let addresses = self.listen.resolve().await?;
        let keys = &self.sessions.keys;
        if let Some(open) = addresses.iter().find(|address| !address.ip().is_loopback())
            && keys.is_account()
        {
            let (host, ip) = (self.listen.host_variable, open.ip());
            let expected = format!("keys for the clients, as {host} opens {ip} to other machines");
            return Err(ConfigError::missing(keys.variable(), expected));
        }
        Ok(addresses)
    }

    /// The addresses of the admin port. Empty if there is none.
    ///
    /// # Errors
    ///
    /// Its host is unknown. The error names the variable.
    pub async fn admin_addresses(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        match &self.admin {
            Some(admin) => admin.resolve().await,
            None => Ok(Vec::new()),
        }
    }
}

/// The parts that both tiers have: ports bound, counters registered.
pub struct Foundation {
    /// All metrics. A tier registers counters of its own there.
    pub metrics: Metrics,
    /// The limits that the operator sees. A tier adds its own there.
    pub limits: Limits,
    /// NATS, where the programs of a market ask each other for their health. Default: none.
    pub nats: Option<NatsConfig>,
    name: TierName,
    listeners: Listeners,
    gate: Arc<Gate>,
    abuse: Arc<AbuseLog>,
    certificate: Option<Arc<Certificate>>,
    markets: Vec<Market>,
    sessions: SessionConfig,
    max_sessions: usize,
    total_queue_bytes: usize,
}

/// The counters of one market.
#[derive(Debug, Clone)]
pub struct MarketCounters {
    /// The market.
    pub market: Market,
    /// Of its link.
    pub upstream: Arc<LinkMetrics>,
    /// Of events in frames.
    pub intake: IntakeMetrics,
    /// Of its sessions.
    pub sessions: Arc<SessionMetrics>,
    /// Of its history.
    pub history: HistoryMetrics,
}

/// One market of a tier: what its sessions subscribe to, and what moves its data.
pub struct MarketTier<T, U> {
    /// Its counters.
    pub counters: MarketCounters,
    /// What its sessions subscribe to.
    pub tier: T,
    /// Its work of every second.
    pub upkeep: U,
    /// Its links, at least one.
    pub links: Vec<LinkHandle>,
    /// Its last messages.
    pub history: History,
    /// Moves the links' data to the sessions until the token is cancelled, and then closes the
    /// links.
    pub data: Data,
}

/// A task that moves the data of a market. Its loop has to beat.
pub type Data = Box<dyn FnOnce(CancellationToken, Heartbeat) -> BoxFuture + Send>;
type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Foundation {
    /// Binds the ports and registers the counters.
    ///
    /// # Errors
    ///
    /// A port is in use. Or as for [`ServerConfig::addresses`].
    pub async fn bind(name: TierName, config: ServerConfig) -> Result<Self, ConfigError> {
        let data = config.listen.bind(&config.addresses().await?)?;
        let admin = match &config.admin {
            Some(admin) => admin.bind(&config.admin_addresses().await?)?,
            None => Vec::new(),
        };
        let keys = &config.sessions.keys;
        let mut metrics = Metrics::with_prefix(name.name());
        metrics.register_of_process(ProcessMetrics::new());
        metrics.register_collector(KeyMetrics(Arc::clone(keys)));
        let certificate = config.certificate.map(Arc::new);
        metrics.register_collector(ProgramMetrics { certificate: certificate.clone() });
        let abuse = Arc::new(AbuseLog::register(&mut metrics));
        let max_sessions = affordable(config.max_sessions);
        let limit: Level = metrics.register("sessions_limit", "Most sessions at once");
        limit.set(i64::try_from(max_sessions).unwrap_or(i64::MAX));
        let limits = Limits {
            sessions: max_sessions,
            slow: config.sessions.slow,
            named: BTreeMap::from([
                ("MAX_CONNECTIONS", max_sessions.to_string()),
                ("MAX_CONNECTIONS_PER_ADDRESS", config.gate.max_per_address.to_string()),
                ("HANDSHAKE_RATE", config.gate.request_rate.to_string()),
                ("MAX_SUBSCRIPTIONS", config.sessions.max_subscriptions.to_string()),
                ("CLIENT_QUEUE_BYTES", config.sessions.slow.queue_bytes.to_string()),
                ("CLIENT_MAX_LAG", format_duration(config.sessions.slow.max_lag).to_string()),
                ("TOTAL_QUEUE_BYTES", config.total_queue_bytes.to_string()),
            ]),
        };
        let gate = Arc::new(Gate::new(config.gate, Arc::clone(&abuse), &mut metrics));
        Ok(Self {
            listeners: Listeners { data, admin },
            metrics,
            limits,
            nats: None,
            name,
            gate,
            abuse,
            certificate,
            markets: config.markets,
            sessions: config.sessions,
            max_sessions,
            total_queue_bytes: config.total_queue_bytes,
        })
    }

    /// Registers the counters of a market. Counters of the tier that are registered afterwards
    /// belong to it as well. One market alone is no label.
    pub fn market(&mut self, market: Market) -> MarketCounters {
        self.metrics.in_market((self.markets.len() > 1).then_some(market));
        MarketCounters {
            market,
            upstream: LinkMetrics::register(&mut self.metrics),
            intake: IntakeMetrics::register(&mut self.metrics),
            sessions: SessionMetrics::register(&mut self.metrics),
            history: HistoryMetrics::register(&mut self.metrics),
        }
    }

    /// The whole tier.
    pub fn complete<T: Tier, U: Upkeep>(
        mut self,
        markets: Vec<MarketTier<T, U>>,
    ) -> BoundTier<TierHandler<T, U>> {
        let counters: Vec<_> = markets.iter().map(|market| market.counters.clone()).collect();
        let open = Arc::new(OpenSessions::default());
        let log = Arc::new(SessionLog::default());
        let budget = self.budget(&counters, Arc::clone(&open));
        self.metrics.register_collector(QueueMetrics(Arc::clone(&budget)));
        let (mut all_links, mut data) = (Vec::new(), Vec::new());
        let (several, has_peers) = (markets.len() > 1, self.nats.is_some());
        let served = markets.into_iter().map(|market| {
            let MarketTier { counters, tier, upkeep, links, history, data: moves } = market;
            all_links.extend(links.iter().cloned());
            let span = match several {
                true => error_span!("market", market = counters.market.name()),
                false => Span::none(),
            };
            let of_market = span.clone();
            let moves: Data =
                Box::new(|stop, heartbeat| Box::pin(moves(stop, heartbeat).instrument(of_market)));
            data.push(moves);
            ServedMarket {
                span,
                reporter: MarketReporter::new(
                    self.name,
                    Arc::clone(&counters.upstream),
                    counters.intake.clone(),
                    Arc::clone(&counters.sessions),
                ),
                health: HealthReporter::new(
                    counters.market,
                    Arc::clone(&self.sessions.keys),
                    counters.upstream,
                    counters.intake,
                    Arc::clone(&counters.sessions),
                ),
                sessions: Sessions {
                    tier,
                    config: SessionConfig { market: counters.market, ..self.sessions.clone() },
                    metrics: counters.sessions,
                    abuse: Arc::clone(&self.abuse),
                    open: Arc::clone(&open),
                    log: Arc::clone(&log),
                },
                upkeep,
                links,
                history,
                history_metrics: counters.history,
                peers: has_peers.then(Arc::default),
            }
        });
        let reporter = ProgramReporter {
            tier: self.name,
            open: Arc::clone(&open),
            limits: self.limits.clone(),
        };
        let markets = served.collect();
        let handler = TierHandler { markets, reporter, started: Instant::now() };
        #[cfg(feature = "nats")]
        let (name, nats) = (self.name, self.nats.clone());
        let bound = self.serve_by(handler, counters, budget, all_links, data);
        #[cfg(feature = "nats")]
        if let Some(nats) = nats {
            let handler = bound.handler();
            let asking = async move {
                let health = |market| handler.answer(market);
                ask_and_answer(nats, name, handler.asked(), health).await;
            };
            return BoundTier { asking: Some(Box::pin(asking)), ..bound };
        }
        bound
    }

    /// Bounds the bytes queued for the sessions of all markets together.
    pub fn budget(&self, counters: &[MarketCounters], open: Arc<OpenSessions>) -> Arc<QueueBudget> {
        let sessions = counters.iter().map(|counters| Arc::clone(&counters.sessions)).collect();
        Arc::new(QueueBudget::new(self.total_queue_bytes, sessions, open))
    }

    /// Does the same as [`complete`](Self::complete), with a handler of the caller.
    pub fn serve_by<H: Handler>(
        self,
        handler: H,
        counters: Vec<MarketCounters>,
        budget: Arc<QueueBudget>,
        links: Vec<LinkHandle>,
        data: Vec<Data>,
    ) -> BoundTier<H> {
        let data_stop = CancellationToken::new();
        let (keys, certificate) = (Arc::clone(&self.sessions.keys), self.certificate.clone());
        let heartbeats = Heartbeat::of(data.len());
        let data = data.into_iter().zip(heartbeats);
        BoundTier {
            listeners: self.listeners,
            counters,
            reload: Reload { links, keys, certificate },
            server: Server {
                handler: Arc::new(handler),
                metrics: self.metrics,
                markets: self.markets,
                gate: self.gate,
                keys: Arc::clone(&self.sessions.keys),
                certificate: self.certificate,
                max_sessions: self.max_sessions,
                step_timeout: self.sessions.auth_timeout,
            },
            budget,
            data: data.map(|(moves, heartbeat)| moves(data_stop.clone(), heartbeat)).collect(),
            data_stop,
            asking: None,
            drain_spread: self.sessions.drain_spread,
            drain_timeout: self.sessions.drain_timeout,
        }
    }
}

/// What a tier does each second, and the problems that it reports.
pub trait Upkeep: Send + Sync + 'static {
    /// What is wrong upstream, in sentences for `/health`.
    fn problems(&self) -> Vec<String>;

    /// What this program itself has failed to do beside the stream, in sentences for `/health` that
    /// say what to do.
    fn failures(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether clients wait for what came before the link was up.
    fn is_behind(&self) -> bool {
        false
    }

    /// The contracts on demand, by type.
    fn contracts(&self) -> BTreeMap<String, ContractsHealth> {
        BTreeMap::new()
    }

    /// How far it is from the end of the stream in NATS. Default: it reads none.
    fn lag(&self) -> Option<Lag> {
        None
    }

    /// How its lease stands. `None` without one.
    fn lease(&self) -> Option<LeaseHealth> {
        None
    }

    /// How many events its sessions have yet to fetch. `None` if sessions of this tier fetch none.
    fn unread(&self) -> Option<&Level> {
        None
    }

    /// What it knows of the market for the status.
    fn view(&self) -> TierView;

    /// The gaps that the upstream has reported since the last call.
    fn take_gaps(&self) -> Vec<String> {
        Vec::new()
    }

    /// Called about once a second.
    fn tick(&self) {}
}

/// A tier as its server sees it: sessions and health of each market.
#[derive(Debug)]
pub struct TierHandler<T, U> {
    /// In the order of the settings.
    markets: Vec<ServedMarket<T, U>>,
    reporter: ProgramReporter,
    started: Instant,
}

/// One market of a tier, as its server sees it.
#[derive(Debug)]
struct ServedMarket<T, U> {
    /// Names the market in the log, if there are several.
    span: Span,
    sessions: Sessions<T>,
    health: HealthReporter,
    reporter: MarketReporter,
    upkeep: U,
    links: Vec<LinkHandle>,
    history: History,
    history_metrics: HistoryMetrics,
    /// The other programs of the market, if there is NATS.
    peers: Option<Arc<PeerList>>,
}

#[cfg(feature = "nats")]
impl<T, U: Upkeep> TierHandler<T, U> {
    /// The markets whose other programs are asked.
    fn asked(&self) -> Vec<AskedMarket> {
        let markets = self.markets.iter().filter_map(|served| {
            let (market, peers) = (served.sessions.config.market, served.peers.clone()?);
            Some(AskedMarket { market, peers })
        });
        markets.collect()
    }

    /// What this program answers for a market: its health without the others'.
    fn answer(&self, market: Market) -> Option<Health> {
        let served = self.markets.iter().find(|served| served.sessions.config.market == market)?;
        Some(Health { peers: None, ..served.health(&served.links()) })
    }
}

impl<T: Tier, U: Upkeep> Handler for TierHandler<T, U> {
    const NAMED_SESSIONS: NamedSessions = T::NAMED_SESSIONS;

    fn serve<'a>(
        &'a self,
        socket: Socket,
        early: &[u8],
        client: ClientInfo,
        stop: &'a CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<'a, T, U> {
        let named = |market: &&ServedMarket<T, U>| market.sessions.config.market == client.market;
        let market = self.markets.iter().find(named).expect("the server serves these markets");
        market.sessions.serve(socket, early, client, stop).instrument(market.span.clone())
    }

    fn health(&self) -> HealthDocument {
        let reports = self.markets.iter().map(|market| market.health(&market.links()));
        HealthDocument::of(reports.collect())
    }

    fn status(&self, for_operator: bool) -> Option<StatusDocument> {
        let reports = self.markets.iter().map(|market| {
            let links = market.links();
            let health = market.health(&links);
            (health.clone(), market.reporter.report(health, &links, market.view()))
        });
        let (health, markets): (Vec<_>, Vec<_>) = reports.unzip();
        let uptime = self.started.elapsed().as_secs();
        let health = HealthDocument::of(health);
        Some(self.reporter.status(&health, markets, uptime, for_operator))
    }

    fn sessions(&self) -> Option<SessionsDocument> {
        Some(self.reporter.sessions())
    }

    fn tick(&self) {
        for market in &self.markets {
            let _market = market.span.enter();
            market.health.tick(market.upkeep.unread());
            let (reported, gaps) = (market.upkeep.problems(), market.upkeep.take_gaps());
            market.reporter.tick(&market.links(), &reported, &gaps);
            let now = millis(SystemTime::now());
            market.history_metrics.show(&market.history.extent(), now);
            market.upkeep.tick();
            market.sessions.log.tick();
        }
        self.reporter.open.tick();
    }
}

impl<T, U: Upkeep> ServedMarket<T, U> {
    fn links(&self) -> Vec<LinkStatus> {
        self.links.iter().map(LinkHandle::status).collect()
    }

    fn view(&self) -> TierView {
        let (reported, failures) = (self.upkeep.problems(), self.upkeep.failures());
        TierView { reported, failures, ..self.upkeep.view() }
    }

    fn health(&self, links: &[LinkStatus]) -> Health {
        let is_up = links.iter().all(|link| link.state == LinkState::Up);
        let behind = (is_up && self.upkeep.is_behind()).then(|| BEHIND.to_owned());
        let problems = self.upkeep.problems().into_iter().chain(self.upkeep.failures());
        let problems = problems.chain(behind).collect();
        let report = self.health.report(links, self.upkeep.unread(), problems);
        let extent = || self.history.extent().health(millis(SystemTime::now()));
        let history = self.history.is_on().then(extent);
        let peers = self.peers.as_ref().map(|peers| peers.get());
        let (contracts, lease) = (self.upkeep.contracts(), self.upkeep.lease());
        Health { contracts, history, lag: self.upkeep.lag(), lease, peers, ..report }
    }
}

/// A tier that listens but does not serve yet.
pub struct BoundTier<H> {
    /// Where it listens.
    pub listeners: Listeners,
    /// The counters of each market.
    pub counters: Vec<MarketCounters>,
    /// The reload on SIGHUP.
    pub reload: Reload,
    server: Server<H>,
    budget: Arc<QueueBudget>,
    data: Vec<BoxFuture>,
    data_stop: CancellationToken,
    /// Asks the other programs for their health, if there is NATS.
    asking: Option<BoxFuture>,
    /// How long the last session may take to begin to drain.
    drain_spread: Duration,
    /// How long the last session may take to end.
    pub drain_timeout: Duration,
}

impl<H: Handler> BoundTier<H> {
    /// Its sessions and their health.
    pub fn handler(&self) -> Arc<H> {
        Arc::clone(&self.server.handler)
    }

    /// Serves until `stop`, then until the last session has ended and the link is closed.
    pub async fn serve(self, stop: CancellationToken) {
        let (data_stop, spread, limit) = (self.data_stop, self.drain_spread, self.drain_timeout);
        // Dropped, and so ended, with everything else.
        let mut asking = JoinSet::new();
        self.asking.map(|task| asking.spawn(task));
        let serving = async {
            tokio::join!(
                self.server.serve(self.listeners, stop.clone()),
                enforce_until(self.budget, stop.clone()),
            );
            data_stop.cancel();
        };
        // By the end of the spread every session drains, and takes no new data.
        let mut moving = pin!(move_all(self.data));
        let data = async {
            tokio::select! {
                () = &mut moving => return,
                () = after(&stop, spread) => data_stop.cancel(),
            }
            tokio::select! {
                () = moving => {}
                () = after(&stop, limit) => {}
            }
        };
        tokio::join!(serving, data);
    }
}

/// Moves the data of all markets, each in a task of its own: none waits for another, and the thread
/// that learns of new data may go on with it itself.
async fn move_all(data: Vec<BoxFuture>) {
    let mut tasks = JoinSet::new();
    for market in data {
        tasks.spawn(market);
    }
    tasks.join_all().await;
}

/// Waits for `stop`, and then this long.
async fn after(stop: &CancellationToken, time: Duration) {
    stop.cancelled().await;
    sleep(time).await;
}
