//! The server of a tier: accepts connections, serves HTTP, and hands WebSockets to a [`Handler`].

mod connection;
mod handler;
mod http;
mod status_routes;
mod target;

pub use self::{
    connection::{UpgradedConnection, serve_http},
    handler::Handler,
    http::{Answer, HttpService, PendingUpgrade, Response, SessionPermits},
};

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    time::{MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use self::connection::ConnectionServer;
use crate::{
    access::{Gate, Keys},
    metrics::Metrics,
    protocol::Market,
    transport::{Certificate, Listeners},
};

/// Connections beyond the limit of sessions, for probes and for answers that refuse a client.
const SPARE_CONNECTIONS: usize = 256;
/// Open files other than connections: listeners, the link, the log, the runtime's own.
const OTHER_FILES: usize = 64;
/// More open files than any system grants.
const MAX_FILES: usize = 1 << 30;

/// A server that is ready to start.
pub struct Server<H> {
    /// Takes over the WebSockets.
    pub handler: Arc<H>,
    /// The metrics that `/metrics` shows.
    pub metrics: Metrics,
    /// The markets served, at least one. `/` is the first.
    pub markets: Vec<Market>,
    /// Decides which clients get a session.
    pub gate: Arc<Gate>,
    /// The certificate of the data port, if it speaks TLS.
    pub certificate: Option<Arc<Certificate>>,
    /// The keys that open sessions.
    pub keys: Arc<Keys>,
    /// Most sessions at once.
    pub max_sessions: usize,
    /// Most time for each step before the session: PROXY header, TLS, a request.
    pub step_timeout: Duration,
}

impl<H: Handler> Server<H> {
    /// Serves until `stop`, then until the last connection has ended.
    pub async fn serve(self, listeners: Listeners, stop: CancellationToken) {
        let tracker = TaskTracker::new();
        let metrics = Arc::new(self.metrics);
        let session_permits = Arc::new(Semaphore::new(self.max_sessions));
        let connection_permits = Arc::new(Semaphore::new(self.max_sessions + SPARE_CONNECTIONS));
        let probes_on_data_port = listeners.admin.is_empty();
        let data = listeners.data.into_iter().map(|listener| (listener, true));
        let admin = listeners.admin.into_iter().map(|listener| (listener, false));
        for (listener, is_data) in data.chain(admin) {
            let certificate = self.certificate.clone().filter(|_| is_data);
            if let Ok(addr) = listener.local_addr() {
                let text = if is_data { "listening" } else { "admin listening" };
                info!(%addr, tls = certificate.is_some(), "{text}");
            }
            let server = ConnectionServer {
                http: HttpService {
                    handler: Arc::clone(&self.handler),
                    metrics: Arc::clone(&metrics),
                    markets: self.markets.clone(),
                    gate: Arc::clone(&self.gate),
                    keys: Arc::clone(&self.keys),
                    session_permits: Arc::clone(&session_permits),
                    probes: probes_on_data_port || !is_data,
                    upgrades: is_data,
                    stop: stop.clone(),
                },
                certificate,
                step_timeout: self.step_timeout,
                connection_permits: Arc::clone(&connection_permits),
                tracker: tracker.clone(),
                stop: stop.clone(),
            };
            tracker.spawn(server.accept(listener));
        }
        tracker.spawn(tick(self.handler, self.gate, stop.clone()));
        stop.cancelled().await;
        tracker.close();
        tracker.wait().await;
    }
}

/// How many sessions the system's limit on open files allows, at most `wanted`. Warns if these are
/// fewer.
pub fn affordable(wanted: usize) -> usize {
    let limit = rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let files = usize::try_from(limit).unwrap_or(usize::MAX).min(MAX_FILES);
    let affordable = files.saturating_sub(SPARE_CONNECTIONS + OTHER_FILES).max(1);
    if wanted > affordable {
        warn!(
            wanted,
            affordable, files, "fewer sessions than MAX_CONNECTIONS: raise the limit on open files"
        );
    }
    wanted.min(affordable)
}

async fn tick<H: Handler>(handler: Arc<H>, gate: Arc<Gate>, stop: CancellationToken) {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = seconds.tick() => {
                handler.tick();
                gate.tick();
            }
        }
    }
}
