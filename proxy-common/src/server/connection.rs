//! Accepts the connections of one listener and leads each to a session: through the gate, TLS where
//! the port speaks it, HTTP, and the upgrade.

use std::{
    convert::Infallible,
    future::ready,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{either::Either, sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug, error_span, field::Empty, warn};

use super::{
    handler::Handler,
    http::{Answer, HttpService, PendingUpgrade, SessionPermits},
};
use crate::{
    access::{Abuse, AcceptedConnection, Refusal},
    session::ClientInfo,
    transport::{
        Certificate, EarlySocket, Socket, TlsStream, concerns_one_connection, limit_early_bytes,
        prepare_accepted,
    },
};

/// How long a connection may speak HTTP before it ends or becomes a WebSocket.
const HTTP_LIFETIME: Duration = Duration::from_secs(60);
/// How long to wait when the system has no descriptor or memory for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);
/// How long a half-sent request or a handshake may take to end when the program stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// The first byte of a TLS connection: the type of a handshake record (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// Serves the connections of one listener.
pub(super) struct ConnectionServer<H> {
    pub(super) http: HttpService<H>,
    /// The port's certificate, if it speaks TLS.
    pub(super) certificate: Option<Arc<Certificate>>,
    /// Most time for each step before the session: PROXY header, TLS, a request.
    pub(super) step_timeout: Duration,
    /// One permit for each connection that may exist.
    pub(super) connection_permits: Arc<Semaphore>,
    pub(super) tracker: TaskTracker,
    pub(super) stop: CancellationToken,
}

/// How far a connection has come on its way in.
enum Phase {
    /// Accepted; its client is unknown.
    Accepted(TcpStream, SocketAddr),
    /// The gate knows its client.
    Identified(TcpStream, AcceptedConnection),
    /// It speaks HTTP, over TLS where the port has a certificate.
    Http(Either<TcpStream, Box<TlsStream<EarlySocket>>>, AcceptedConnection),
    /// It is a WebSocket.
    Upgraded(UpgradedConnection<Socket>),
}

/// A connection that became a WebSocket.
#[derive(Debug)]
pub struct UpgradedConnection<S> {
    /// The socket.
    pub socket: S,
    /// The bytes that arrived with the upgrade.
    pub early: Bytes,
    /// The client.
    pub client: ClientInfo,
    /// The permits that the session holds until it ends.
    pub permits: SessionPermits,
}

impl<H: Handler> ConnectionServer<H> {
    /// Accepts until `stop`. No error of a connection or of the system ends it.
    pub(super) async fn accept(self, listener: TcpListener) {
        let server = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                biased;
                () = server.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => {
                    let permits = Arc::clone(&server.connection_permits);
                    let Ok(permit) = permits.try_acquire_owned() else {
                        let client = peer.ip().to_canonical();
                        server.http.gate.refuse(&Refusal::new(Abuse::Connections, client));
                        continue;
                    };
                    server.tracker.spawn(Arc::clone(&server).serve(socket, peer, permit));
                }
                Err(error) if concerns_one_connection(&error) => {
                    debug!(%error, "connection lost before accept");
                }
                Err(error) => {
                    warn!(%error, "failed to accept; trying again shortly");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves a connection until it ends.
    fn serve(
        self: Arc<Self>,
        socket: TcpStream,
        peer: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send {
        // The span ends before the session begins, because it costs more memory than the rest of an
        // idle session. A session names its client in its log lines.
        let span = error_span!("connection", %peer, client = Empty);
        // Boxed: frees this memory before the session begins, because sessions live long.
        let entering = Box::pin(Arc::clone(&self).enter(socket, peer).instrument(span));
        // An `async fn` would keep its arguments beside what is made of them.
        async move {
            let (session, permits) = match entering.await {
                None => return,
                Some(UpgradedConnection { socket, early, client, permits }) => {
                    (self.http.handler.serve(socket, &early, client, &self.stop), permits)
                }
            };
            session.await;
            drop((permits, permit));
        }
    }

    /// Leads a connection from one phase to the next until it is a WebSocket. `None` if it ends
    /// before that.
    async fn enter(
        self: Arc<Self>,
        socket: TcpStream,
        peer: SocketAddr,
    ) -> Option<UpgradedConnection<Socket>> {
        if let Err(error) = prepare_accepted(&socket) {
            debug!(%error, "connection lost right after accept");
            return None;
        }
        let mut phase = Phase::Accepted(socket, peer);
        loop {
            phase = match phase {
                Phase::Accepted(socket, peer) => self.identify(socket, peer).await?,
                Phase::Identified(socket, accepted) => self.secure(socket, accepted).await?,
                Phase::Http(stream, accepted) => self.upgrade(stream, accepted).await?,
                Phase::Upgraded(upgraded) => return Some(upgraded),
            }
        }
    }

    /// Lets the gate identify the client, unless the port is the operator's own.
    async fn identify(&self, mut socket: TcpStream, peer: SocketAddr) -> Option<Phase> {
        let accepted = if self.http.upgrades {
            let identifying = self.http.gate.identify(&mut socket, peer, self.step_timeout);
            match self.unless_stopped(identifying).await? {
                Ok(accepted) => accepted,
                Err(refusal) => return self.drop_refused(&refusal),
            }
        } else {
            AcceptedConnection::operator(peer)
        };
        Some(Phase::Identified(socket, accepted))
    }

    /// Agrees on TLS if the port speaks it.
    async fn secure(&self, socket: TcpStream, mut accepted: AcceptedConnection) -> Option<Phase> {
        // Look at the first byte without reading it. A peer that sends none only probes the port.
        let mut first = [0];
        let peeking = timeout(self.step_timeout, socket.peek(&mut first));
        let Ok(Ok(1)) = self.unless_stopped(peeking).await? else { return None };
        let speaks_tls = first == [TLS_HANDSHAKE];
        let Some(certificate) = self.certificate.as_ref().filter(|_| speaks_tls) else {
            if speaks_tls {
                return self.drop_refused(&Refusal::new(Abuse::TlsOnPlainPort, accepted.peer));
            }
            accepted.plain_http_on_tls_port = self.certificate.is_some();
            return Some(Phase::Http(Either::Left(socket), accepted));
        };
        if let Err(refusal) = self.http.gate.count_tls_handshake(&mut accepted) {
            return self.drop_refused(&refusal);
        }
        let accepting = certificate.acceptor().accept(limit_early_bytes(socket));
        let failure = match self.unless_stopped(timeout(self.step_timeout, accepting)).await? {
            Ok(Ok(stream)) => return Some(Phase::Http(Either::Right(Box::new(stream)), accepted)),
            Ok(Err(error)) => error.to_string(),
            Err(elapsed) => elapsed.to_string(),
        };
        self.drop_refused(&Refusal::new(Abuse::Tls, accepted.peer).detail(failure))
    }

    /// Serves HTTP until the connection ends or becomes a WebSocket.
    async fn upgrade(
        &self,
        stream: Either<TcpStream, Box<TlsStream<EarlySocket>>>,
        accepted: AcceptedConnection,
    ) -> Option<Phase> {
        let answer = |request| self.http.answer(request, &accepted);
        let serving = serve_http(stream, answer, self.step_timeout, &self.stop);
        let UpgradedConnection { socket, early, client, mut permits } = serving.await?;
        // The address counts the connection or the session, never both.
        permits.address = permits.address.or(accepted.permit);
        let socket = match socket {
            Either::Left(socket) => socket.into(),
            Either::Right(stream) => (*stream).into(),
        };
        Some(Phase::Upgraded(UpgradedConnection { socket, early, client, permits }))
    }

    /// Drops a connection that the gate refused.
    fn drop_refused(&self, refusal: &Refusal) -> Option<Phase> {
        self.http.gate.refuse(refusal);
        None
    }

    /// Does one step, or ends it when the program stops.
    async fn unless_stopped<T>(&self, step: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = step => Some(done),
            () = self.stop.cancelled() => None,
        }
    }
}

/// Serves HTTP on one connection until `answer` turns it into a WebSocket. `None` if it ends before
/// that.
pub async fn serve_http<S>(
    stream: S,
    answer: impl Fn(Request<Incoming>) -> Answer,
    limit: Duration,
    stop: &CancellationToken,
) -> Option<UpgradedConnection<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // A mutex, because hyper owns the service while it serves. It is locked for one assignment.
    let pending = Mutex::<Option<PendingUpgrade>>::default();
    {
        let service = service_fn(|request| {
            let response = match answer(request) {
                Answer::Respond(response) => response,
                Answer::Upgrade(response, upgrade) => {
                    *pending.lock().unwrap_or_else(PoisonError::into_inner) = Some(upgrade);
                    response
                }
            };
            ready(Ok::<_, Infallible>(response))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limit)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::pin!(connection);
        let served = tokio::select! {
            served = timeout(HTTP_LIFETIME, &mut connection) => served,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                timeout(STOP_TIMEOUT, connection).await
            }
        };
        if let Err(error) = served.ok()? {
            debug!(%error, "HTTP connection ended");
        }
    }
    let pending = pending.into_inner().unwrap_or_else(PoisonError::into_inner);
    let PendingUpgrade { upgrade, client, permits } = pending?;
    let upgraded = timeout(limit, upgrade).await.ok()?.ok()?;
    let parts = upgraded.downcast::<TokioIo<S>>().ok()?;
    let (socket, early) = (parts.io.into_inner(), parts.read_buf);
    Some(UpgradedConnection { socket, early, client, permits })
}
