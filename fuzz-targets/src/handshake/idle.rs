//! A port of a tier that has nothing to do.

use std::{future::pending, sync::Arc, time::SystemTime};

use prometheus_client::registry::Registry;
use proxy_common::{
    access::{client_address::TrustedProxies, gate::Doors, keys::Keys, origin::Origins},
    config::{AdmissionArgs, Switch},
    health::{ChannelHealth, Health, HealthReporter},
    link::{LinkState, LinkStatus},
    metrics::{IntakeMetrics, LinkMetrics, SessionMetrics},
    protocol::{channel::Channel, channel_set::ChannelSet, coverage::Shortfall},
    server::http::HttpFace,
    session::{Change, Seat, Tier, close::CloseReason, outbound::Outbound},
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::model::{LISTED_ORIGIN, MARKET, TRUSTED_PROXIES};

/// A tier that is up.
pub(super) struct Idle {
    reporter: HealthReporter,
    link: LinkStatus,
    upstream: Arc<LinkMetrics>,
    intake: IntakeMetrics,
    sessions: Arc<SessionMetrics>,
}

/// A port with room for one session, of one address; a data port if it upgrades, an admin port otherwise.
pub(super) fn port(upgrades: bool, proxy_headers: bool) -> HttpFace<Idle> {
    let mut registry = Registry::default();
    let metrics = SessionMetrics::register(&mut registry);
    let tier = Idle {
        reporter: HealthReporter::new(MARKET),
        link: LinkStatus {
            state: LinkState::Up,
            since: SystemTime::UNIX_EPOCH,
            last_error: None,
            connects: 1,
            channels: ChannelHealth::default(),
        },
        upstream: LinkMetrics::register(&mut registry),
        intake: IntakeMetrics::register(&mut registry),
        sessions: Arc::clone(&metrics),
    };
    let admission = AdmissionArgs {
        max_connections_per_address: 1,
        // Faster than it can be asked here.
        handshake_rate: 1_000_000,
        command_rate: 1,
        allowed_origins: Some(Origins::parse(LISTED_ORIGIN).expect("an origin")),
        trusted_proxies: Some(TrustedProxies::parse(TRUSTED_PROXIES).expect("a network")),
        proxy_protocol: if proxy_headers { Switch::On } else { Switch::Off },
    };
    HttpFace {
        tier: Arc::new(tier),
        doors: Arc::new(Doors::new(&admission, &mut registry)),
        registry: Arc::new(registry),
        market: MARKET,
        keys: Arc::new(Keys::account("CLIENT_API_KEYS", &"key".into())),
        metrics,
        room: Arc::new(Semaphore::new(1)),
        probes: !upgrades,
        upgrades,
        stop: CancellationToken::new(),
    }
}

impl Tier for Idle {
    type Seat = Nobody;

    async fn admit(&self, _: &Arc<Outbound>) -> Nobody {
        pending().await
    }

    fn health(&self) -> Health {
        self.reporter.report(&self.link, &self.upstream, &self.intake, &self.sessions, Vec::new())
    }

    fn tick(&self) {}
}

/// No session comes so far.
pub(super) enum Nobody {}

impl Seat for Nobody {
    async fn change(&mut self, _: Change) -> Result<(), CloseReason> {
        match *self {}
    }

    fn held(&self) -> &ChannelSet {
        match *self {}
    }

    fn shortfall(&self, _: &Channel) -> Option<Shortfall> {
        match *self {}
    }

    async fn pull(&mut self) -> Result<(), CloseReason> {
        match *self {}
    }
}
