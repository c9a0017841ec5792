//! One listener, and each connection's way from there: TLS where the port speaks it, HTTP, WebSocket, session.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug, error_span, field::Empty, warn};

use crate::{
    access::{abuse::Abuse, address_limits::Place, gate::Entered},
    metrics::Reason,
    server::http::{Accepted, AcceptedSlot, Admitted, HttpFace},
    session::{Ground, SessionConfig, Tier, Visitor, queue_budget::Budget},
    transport::{
        certificate::Certificate,
        socket::{Metered, Socket},
    },
};

/// How long a connection may speak plain HTTP, whatever it asks.
const HTTP_LIFETIME: Duration = Duration::from_secs(60);
/// How long to wait when the system has no descriptor or memory for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);
/// How long a request that is half sent, or a WebSocket handshake, may take to end when the program stops.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// Most bytes that the system takes for a peer who has no room for them: pongs stand behind them, and nobody sees their age.
const UNSENT_BYTES: u32 = 256 * 1024;
/// The first byte of a TLS connection: the type of a handshake record (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// A connection that became a WebSocket.
struct Established {
    socket: Socket,
    /// What came with the upgrade.
    early: Bytes,
    permit: OwnedSemaphorePermit,
    place: Option<Place>,
    client: IpAddr,
}

/// What the tasks of one listener share.
pub(super) struct Port<T> {
    pub(super) face: Arc<HttpFace<T>>,
    /// What it shows, if it speaks TLS.
    pub(super) certificate: Option<Arc<Certificate>>,
    pub(super) sessions: Arc<SessionConfig>,
    pub(super) connections: Arc<Semaphore>,
    pub(super) budget: Arc<Budget>,
    pub(super) tracker: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl<T: Tier> Port<T> {
    /// Accepts until told to stop. No error of a connection or of the system ends it.
    pub(super) async fn accept(self, listener: TcpListener) {
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
            T::serve(&ground, socket, &early, visitor)
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
        let mut entered = self.enter(&mut socket, peer).await?;
        let (socket, early, admitted) = match &self.certificate {
            None => self.handshake(socket, &entered).await?,
            Some(certificate) if self.begins_with_tls(&socket).await? => {
                let stream = self.encrypt(socket, certificate, &mut entered).await?;
                self.handshake(stream, &entered).await?
            }
            Some(_) => {
                entered.expect_tls();
                self.handshake(socket, &entered).await?
            }
        };
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

    /// Looks at the first byte, without taking it. Who sends none is gone or only looks whether the port is open.
    async fn begins_with_tls(&self, socket: &TcpStream) -> Option<bool> {
        let mut first = [0];
        let peeked = tokio::select! {
            peeked = timeout(self.sessions.auth_timeout, socket.peek(&mut first)) => peeked,
            () = self.stop.cancelled() => return None,
        };
        matches!(peeked, Ok(Ok(1))).then_some(first == [TLS_HANDSHAKE])
    }

    /// Agrees on keys, within the limits on how often and how long.
    async fn encrypt(
        &self,
        socket: TcpStream,
        certificate: &Certificate,
        entered: &mut Entered,
    ) -> Option<TlsStream<Metered>> {
        let doors = &self.face.doors;
        doors.pace_tls(entered).inspect_err(|&abuse| self.face.turned_away(abuse)).ok()?;
        let accepting = timeout(
            self.sessions.auth_timeout,
            certificate.acceptor().accept(Metered::new(socket)),
        );
        let failure = tokio::select! {
            accepted = accepting => match accepted {
                Ok(Ok(stream)) => return Some(stream),
                Ok(Err(error)) => error.to_string(),
                Err(elapsed) => elapsed.to_string(),
            },
            () = self.stop.cancelled() => return None,
        };
        doors.abuse.note_error(Abuse::Tls, entered.peer(), &failure);
        self.face.turned_away(Abuse::Tls);
        None
    }

    /// Serves HTTP until the connection ends or becomes a WebSocket.
    async fn handshake<S>(&self, stream: S, entered: &Entered) -> Option<(Socket, Bytes, Admitted)>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Into<Socket> + 'static,
    {
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
                .serve_connection(TokioIo::new(stream), service)
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
        let parts = upgraded.downcast::<TokioIo<S>>().ok()?;
        Some((parts.io.into_inner().into(), parts.read_buf, admitted))
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
