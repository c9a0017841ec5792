//! A port of a tier that serves no session.

use std::{future::ready, sync::Arc};

use proxy_common::{
    access::{AbuseLog, Gate, GateConfig, Keys, Origins, TrustedProxies},
    health::{HealthDocument, HealthReporter, IntakeMetrics},
    link::{LinkMetrics, LinkState, LinkStatus},
    metrics::Metrics,
    server::{Handler, HttpService},
    session::{ClientInfo, NamedSessions, SessionMetrics},
    transport::Socket,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::model::{LISTED_ORIGIN, MARKET, TRUSTED_PROXIES};

/// A tier that is up.
pub(super) struct Idle(HealthReporter);

/// A port that has room for one session: a data port if it upgrades, an admin port otherwise.
pub(super) fn port(upgrades: bool, proxy_headers: bool) -> HttpService<Idle> {
    let mut metrics = Metrics::default();
    let upstream = LinkMetrics::register(&mut metrics);
    let keys = Arc::new(Keys::account("CLIENT_API_KEYS", &"key".into()));
    let reporter = HealthReporter::new(
        MARKET,
        Arc::clone(&keys),
        upstream,
        IntakeMetrics::register(&mut metrics),
        SessionMetrics::register(&mut metrics),
    );
    let rules = GateConfig {
        origins: Origins::parse(LISTED_ORIGIN).expect("an origin"),
        trusted_proxies: TrustedProxies::parse(TRUSTED_PROXIES).expect("a network"),
        proxy_headers,
        max_per_address: 1,
        // More than the requests that can come here.
        request_rate: 1_000_000,
    };
    let abuse = Arc::new(AbuseLog::register(&mut metrics));
    HttpService {
        handler: Arc::new(Idle(reporter)),
        gate: Arc::new(Gate::new(rules, abuse, &mut metrics)),
        metrics: Arc::new(metrics),
        markets: vec![MARKET],
        keys,
        session_permits: Arc::new(Semaphore::new(1)),
        probes: !upgrades,
        upgrades,
        stop: CancellationToken::new(),
    }
}

impl Handler for Idle {
    const NAMED_SESSIONS: NamedSessions = NamedSessions::Accepted;

    /// No connection comes this far.
    fn serve<'a>(
        &'a self,
        _socket: Socket,
        _early: &[u8],
        _client: ClientInfo,
        _stop: &'a CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<'a> {
        ready(())
    }

    fn health(&self) -> HealthDocument {
        let up = LinkStatus { state: LinkState::Up, ..LinkStatus::new("Polygon", String::new()) };
        HealthDocument::of(vec![self.0.report(&[up], None, Vec::new())])
    }

    fn tick(&self) {}
}
