//! The firehose as its server sees it: sessions, health, and what is due every second.

use std::{sync::Arc, time::SystemTime};

use proxy_common::{
    health::{Health, HealthReporter},
    link::LinkMetrics,
    server::Handler,
    session::{ClientInfo, Sessions},
    transport::Socket,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    demand::UpstreamDemand,
    entitlements::Entitlements,
    silence::monitor::{SilenceMonitor, UpstreamSnapshot},
    subscriber::Feed,
};

/// The firehose behind its server.
#[derive(Debug)]
pub struct FirehoseTier {
    pub(crate) upstream: Arc<LinkMetrics>,
    pub(crate) sessions: Sessions<Feed>,
    pub(crate) demand: Arc<UpstreamDemand>,
    pub(crate) entitlements: Arc<Entitlements>,
    pub(crate) silence: SilenceMonitor,
    pub(crate) health: HealthReporter,
}

impl Handler for FirehoseTier {
    fn serve<'a>(
        &'a self,
        socket: Socket,
        early: &[u8],
        client: ClientInfo,
        stop: &'a CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<'a> {
        self.sessions.serve(socket, early, client, stop)
    }

    fn health(&self) -> Health {
        self.health.report(self.silence.problems())
    }

    fn tick(&self) {
        self.health.sample();
        self.demand.expire(Instant::now());
        let wanted = self.demand.wanted();
        self.entitlements.retain(&wanted);
        let snapshot = UpstreamSnapshot {
            up: self.upstream.up.get() == 1,
            wanted: &wanted,
            refused: &self.entitlements.refused(),
            frames: self.upstream.frames.get(),
        };
        self.silence.tick(Instant::now().into_std(), SystemTime::now(), &snapshot);
    }
}
