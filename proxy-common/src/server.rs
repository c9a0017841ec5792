//! The port that clients connect to: bind, accept, hand over to HTTP, and from there to sessions.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug, error_span, field::Empty, info, warn};

use crate::{
    abuse::Abuse,
    admission::Place,
    budget::{self, Budget},
    doors::{Doors, Entered},
    http_face::{Accepted, AcceptedSlot, Admitted, HttpFace},
    metrics::{Reason, SessionMetrics},
    session::{self, Ground, SessionConfig, Tier, Visitor},
};

/// Connections beyond the sessions' limit, for probes and for telling others that there is no room.
const SPARE_CONNECTIONS: usize = 256;
/// Files open beside connections: listeners, the link, the log, the runtime's own.
const OTHER_FILES: usize = 64;
/// More open files than any system grants.
const MAX_FILES: usize = 1 << 30;
/// How long a connection may speak plain HTTP, whatever it asks.
const HTTP_LIFETIME: Duration = Duration::from_secs(60);
/// How long to wait when the system has no descriptor or memory for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);
/// How long a request that is half sent, or a handshake, may take to end when the program stops.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// Most bytes that the system takes for a peer who has no room for them: pongs stand behind them, and nobody sees their age.
const UNSENT_BYTES: u32 = 256 * 1024;
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
            if let Ok(addr) = listener.local_addr() {
                info!(%addr, "{announcement}");
            }
            let port = Port {
                face,
                sessions: Arc::clone(&sessions),
                connections: Arc::clone(&connections),
                budget: Arc::clone(&budget),
                tracker: tracker.clone(),
                stop: stop.clone(),
            };
            tracker.spawn(port.accept(listener));
        }
        tracker.spawn(tick(Arc::clone(&self.tier), self.doors, stop.clone()));
        tracker.spawn(budget::keep(budget, stop.clone()));
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

/// A connection that became a WebSocket.
struct Established {
    socket: TcpStream,
    /// What came with the upgrade.
    early: Bytes,
    permit: OwnedSemaphorePermit,
    place: Option<Place>,
    client: IpAddr,
}

/// What the tasks of one listener share.
struct Port<T> {
    face: Arc<HttpFace<T>>,
    sessions: Arc<SessionConfig>,
    connections: Arc<Semaphore>,
    budget: Arc<Budget>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl<T: Tier> Port<T> {
    /// Accepts until told to stop. No error of a connection or of the system ends it.
    async fn accept(self, listener: TcpListener) {
        let port = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                biased;
                () = port.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => {
                    let Ok(permit) = Arc::clone(&port.connections).try_acquire_owned() else {
                        port.face.turned_away(Abuse::Connections);
                        port.face.doors.abuse.note(Abuse::Connections, peer.ip().to_canonical());
                        continue;
                    };
                    port.tracker.spawn(Arc::clone(&port).serve(socket, peer, permit));
                }
                Err(error) if is_the_peers(&error) => {
                    debug!(%error, "connection lost before accept");
                }
                Err(error) => {
                    warn!(%error, "failed to accept; trying again shortly");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(
        self: Arc<Self>,
        socket: TcpStream,
        peer: SocketAddr,
        _permit: OwnedSemaphorePermit,
    ) {
        // Not for the whole session, which names its client where it logs: a span for each of many idle sessions costs more
        // than the rest that is kept of them.
        let span = error_span!("connection", %peer, client = Empty);
        // Boxed: all of this is gone before the session begins, and sessions live long.
        let establishing = Box::pin(self.establish(socket, peer).instrument(span));
        let Some(Established { socket, early, permit, place, client }) = establishing.await else {
            return;
        };
        self.face.metrics.opened.inc();
        self.face.metrics.sessions.inc();
        let session = {
            let ground = Ground {
                tier: &*self.face.tier,
                config: &self.sessions,
                metrics: &self.face.metrics,
                budget: &self.budget,
                stop: &self.stop,
            };
            let visitor = Visitor { client, abuse: &self.face.doors.abuse };
            session::serve(&ground, socket, &early, visitor)
        };
        drop(early);
        let reason = session.await;
        self.face.metrics.sessions.dec();
        self.face.metrics.closed.get_or_create(&Reason::new(reason.label())).inc();
        if let Some(kind) = Abuse::of(reason) {
            self.face.doors.abuse.note(kind, client);
        }
        drop((permit, place));
    }

    /// From an accepted connection to a WebSocket, if it becomes one.
    async fn establish(&self, mut socket: TcpStream, peer: SocketAddr) -> Option<Established> {
        // Small messages must not wait for acknowledgements of earlier ones, and what waits shall wait where it can be overtaken.
        if let Err(error) = socket.set_nodelay(true).and_then(|()| limit_unsent(&socket)) {
            debug!(%error, "connection lost at once");
            return None;
        }
        let entered = self.enter(&mut socket, peer).await?;
        let (socket, early, admitted) = self.handshake(socket, &entered).await?;
        let Admitted { permit, place, client } = admitted;
        // Counted with the connection or with the session, never with both.
        let place = place.or(entered.into_place());
        Some(Established { socket, early, permit, place, client })
    }

    /// Finds out whose the connection is, unless the port is the operator's own.
    async fn enter(&self, socket: &mut TcpStream, peer: SocketAddr) -> Option<Entered> {
        if !self.face.upgrades {
            return Some(Entered::operator(peer));
        }
        let entered = self.face.doors.enter(socket, peer, self.sessions.auth_timeout);
        let entered = tokio::select! {
            entered = entered => entered,
            () = self.stop.cancelled() => return None,
        };
        entered.inspect_err(|&abuse| self.face.turned_away(abuse)).ok()
    }

    /// Serves HTTP until the connection ends or becomes a WebSocket.
    async fn handshake(
        &self,
        socket: TcpStream,
        entered: &Entered,
    ) -> Option<(TcpStream, Bytes, Admitted)> {
        let slot = AcceptedSlot::default();
        let limit = self.sessions.auth_timeout;
        {
            let service = service_fn(|request| {
                std::future::ready(Ok::<_, std::convert::Infallible>(
                    self.face.respond(request, entered, &slot),
                ))
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limit)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(socket), service)
                .with_upgrades();
            tokio::pin!(connection);
            let served = tokio::select! {
                served = timeout(HTTP_LIFETIME, &mut connection) => match served {
                    Ok(served) => served,
                    Err(_) => return None,
                },
                () = self.stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    match timeout(STOP_PATIENCE, connection).await {
                        Ok(served) => served,
                        Err(_) => return None,
                    }
                }
            };
            if let Err(error) = served {
                debug!(%error, "HTTP connection ended");
            }
        }
        let Accepted { upgrade, admitted } =
            slot.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)?;
        let upgraded = match timeout(limit, upgrade).await {
            Ok(Ok(upgraded)) => upgraded,
            Ok(Err(_)) | Err(_) => return None,
        };
        let parts = upgraded.downcast::<TokioIo<TcpStream>>().ok()?;
        Some((parts.io.into_inner(), parts.read_buf, admitted))
    }
}

/// Bounds what the system takes for a peer who has no room for it, where the system can be asked to.
fn limit_unsent(socket: &TcpStream) -> io::Result<()> {
    #[cfg(any(target_os = "android", target_os = "linux"))]
    SockRef::from(socket).set_tcp_notsent_lowat(UNSENT_BYTES)?;
    Ok(())
}

/// Errors of one connection, which say nothing about the next.
fn is_the_peers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}
