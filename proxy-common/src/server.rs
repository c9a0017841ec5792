//! The port that clients connect to: bind, accept, hand over to HTTP, and from there to sessions.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use prometheus_client::registry::Registry;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use crate::{
    access::gate::Doors,
    metrics::SessionMetrics,
    server::http::HttpFace,
    session::{
        SessionConfig, Tier,
        queue_budget::{self, Budget},
    },
    transport::certificate::Certificate,
};

mod connection;
pub mod http;

use self::connection::Port;

/// Connections beyond the sessions' limit, for probes and for telling others that there is no room.
const SPARE_CONNECTIONS: usize = 256;
/// Files open beside connections: listeners, the link, the log, the runtime's own.
const OTHER_FILES: usize = 64;
/// More open files than any system grants.
const MAX_FILES: usize = 1 << 30;
/// Connections the system holds for us while we are busy.
const BACKLOG: i32 = 4_096;

/// Listeners that are bound but not yet served.
#[derive(Debug)]
pub struct Bound {
    data: Vec<TcpListener>,
    admin: Option<TcpListener>,
}

impl Bound {
    /// Binds the data port on each of these addresses, all on one port if they ask for any free one, and the admin port.
    ///
    /// # Errors
    ///
    /// An address cannot be had; it is named beside the system's reason. An IPv6 address on a machine without IPv6 is left
    /// out if another address could be bound.
    pub fn bind(
        addresses: &[SocketAddr],
        admin: Option<SocketAddr>,
    ) -> Result<Self, (SocketAddr, io::Error)> {
        let mut data: Vec<TcpListener> = Vec::with_capacity(addresses.len());
        for &address in addresses {
            let mut address = address;
            if let (0, Some(first)) = (address.port(), data.first()) {
                address.set_port(first.local_addr().map_err(|error| (address, error))?.port());
            }
            match listen(address) {
                Ok(listener) => data.push(listener),
                Err(error) if lacks_ipv6(address, &error) && !data.is_empty() => {
                    debug!(%address, %error, "address left out");
                }
                Err(error) => return Err((address, error)),
            }
        }
        let admin = match admin {
            Some(address) => Some(listen(address).map_err(|error| (address, error))?),
            None => None,
        };
        Ok(Self { data, admin })
    }

    /// The addresses of the data port.
    ///
    /// # Errors
    ///
    /// The system does not tell.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.data.iter().map(TcpListener::local_addr).collect()
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // Each address of a host name is bound by itself; :: alone means both families.
        socket.set_only_v6(address.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    // A restart must not wait for old connections to be forgotten.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn lacks_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    address.is_ipv6()
        && !matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
}

/// A tier's server, ready to be served.
#[derive(Debug)]
pub struct Server<T> {
    /// The tier behind the port.
    pub tier: Arc<T>,
    /// What `/metrics` shows.
    pub registry: Registry,
    /// What is counted about sessions.
    pub metrics: Arc<SessionMetrics>,
    /// How sessions are served.
    pub sessions: SessionConfig,
    /// Most sessions at once.
    pub max_connections: usize,
    /// Who gets that far.
    pub doors: Arc<Doors>,
    /// What the data port shows, if it speaks TLS.
    pub certificate: Option<Arc<Certificate>>,
    /// Most bytes queued for all sessions together.
    pub total_queue_bytes: usize,
}

impl<T: Tier> Server<T> {
    /// Serves until `stop`, then lets the sessions say goodbye. Returns when the last one is gone.
    pub async fn serve(self, bound: Bound, stop: CancellationToken) {
        let tracker = TaskTracker::new();
        let registry = Arc::new(self.registry);
        let max_sessions = affordable(self.max_connections);
        let room = Arc::new(Semaphore::new(max_sessions));
        let connections = Arc::new(Semaphore::new(max_sessions + SPARE_CONNECTIONS));
        let sessions = Arc::new(self.sessions);
        let budget = Arc::new(Budget::new(self.total_queue_bytes, Arc::clone(&self.metrics)));
        let face = |upgrades, probes| {
            Arc::new(HttpFace {
                tier: Arc::clone(&self.tier),
                registry: Arc::clone(&registry),
                market: sessions.market,
                keys: Arc::clone(&sessions.keys),
                doors: Arc::clone(&self.doors),
                metrics: Arc::clone(&self.metrics),
                room: Arc::clone(&room),
                probes,
                upgrades,
                stop: stop.clone(),
            })
        };
        let faces =
            bound.data.into_iter().map(|l| (l, face(true, bound.admin.is_none()), "listening"));
        let faces: Vec<_> = faces.collect();
        let admin = bound.admin.map(|l| (l, face(false, true), "admin listening"));
        for (listener, face, announcement) in faces.into_iter().chain(admin) {
            let certificate = self.certificate.clone().filter(|_| face.upgrades);
            if let Ok(addr) = listener.local_addr() {
                info!(%addr, tls = certificate.is_some(), "{announcement}");
            }
            let port = Port {
                face,
                certificate,
                sessions: Arc::clone(&sessions),
                connections: Arc::clone(&connections),
                budget: Arc::clone(&budget),
                tracker: tracker.clone(),
                stop: stop.clone(),
            };
            tracker.spawn(port.accept(listener));
        }
        tracker.spawn(tick(Arc::clone(&self.tier), self.doors, stop.clone()));
        tracker.spawn(queue_budget::keep(budget, stop.clone()));
        stop.cancelled().await;
        tracker.close();
        tracker.wait().await;
    }
}

/// How many sessions the system's limit on open files leaves room for, at most `wanted`.
fn affordable(wanted: usize) -> usize {
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

async fn tick<T: Tier>(tier: Arc<T>, doors: Arc<Doors>, stop: CancellationToken) {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = seconds.tick() => {
                tier.tick();
                doors.tick();
            }
        }
    }
}
