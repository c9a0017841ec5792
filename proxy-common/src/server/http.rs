//! The HTTP face of a port: probes, metrics, and the upgrade to a WebSocket.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, UPGRADE},
};
use http_body_util::Full;
use hyper::{
    body::{Body, Incoming},
    upgrade::OnUpgrade,
};
use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{Span, field, warn};
use tungstenite::handshake::server::create_response_with_body;

use crate::{
    access::{
        abuse::Abuse,
        address_limits::Place,
        gate::{Doors, Entered, Refusal},
        keys::Keys,
    },
    health::Verdict,
    metrics::{Reason, SessionMetrics},
    protocol::market::Market,
    session::Tier,
};

/// The answer to every plain request that is no probe.
const USAGE: &str = "This port speaks WebSocket: connect with a WebSocket client, for example ws://HOST:PORT/stocks (wss:// where it has a certificate). \
                     GET /health tells how it is.\n";
/// The answer to plain HTTP where TLS is spoken.
const PLAIN: &str = "This port speaks TLS: connect with wss:// or https://\n";
/// After which time a client that found no room may come again.
const RETRY_AFTER_FULL: Duration = Duration::from_secs(5);
/// The refusal that nobody is to blame for.
const STOPPING: &str = "stopping";

/// Why a connection is turned away before the upgrade: the values of the metric label `reason`.
pub const REFUSALS: [&str; 10] = [
    STOPPING,
    Abuse::Full.label(),
    Abuse::Connections.label(),
    Abuse::AddressFull.label(),
    Abuse::HandshakeRate.label(),
    Abuse::Origin.label(),
    Abuse::ProxyHeader.label(),
    Abuse::Tls.label(),
    Abuse::Path.label(),
    Abuse::Handshake.label(),
];

/// Answers the requests of one port.
pub struct HttpFace<T> {
    /// Tells what `/health` says.
    pub tier: Arc<T>,
    /// What `/metrics` shows.
    pub registry: Arc<Registry>,
    /// The market served.
    pub market: Market,
    /// The keys whose sessions `/health` counts.
    pub keys: Arc<Keys>,
    /// Who gets a session.
    pub doors: Arc<Doors>,
    /// Where refusals are counted.
    pub metrics: Arc<SessionMetrics>,
    /// One permit for each session that may exist.
    pub room: Arc<Semaphore>,
    /// Whether `/livez`, `/readyz` and `/metrics` answer on this port.
    pub probes: bool,
    /// Whether WebSockets are accepted on this port.
    pub upgrades: bool,
    /// Once cancelled, no session begins any more.
    pub stop: CancellationToken,
}

/// An accepted upgrade, to be taken over once the response is written.
pub struct Accepted {
    /// The connection, once the response is written.
    pub upgrade: OnUpgrade,
    /// What the session holds.
    pub admitted: Admitted,
}

/// What a session holds while it lasts.
pub struct Admitted {
    pub(crate) permit: OwnedSemaphorePermit,
    pub(crate) place: Option<Place>,
    /// The client's address.
    pub(crate) client: IpAddr,
}

/// Where the service leaves an accepted upgrade for the task that owns the connection.
pub type AcceptedSlot = Mutex<Option<Accepted>>;

impl<T: Tier> HttpFace<T> {
    /// Answers one request.
    pub fn respond(
        &self,
        request: Request<Incoming>,
        entered: &Entered,
        slot: &AcceptedSlot,
    ) -> Response<Full<Bytes>> {
        if self.upgrades {
            let client = self.doors.client(entered, request.headers());
            Span::current().record("client", field::display(client));
            if let Err(refusal) = self.doors.pace(entered, client) {
                return self.refuse(&refusal);
            }
            if entered.expects_tls() {
                self.blame(Abuse::Tls, client);
                return text(StatusCode::BAD_REQUEST, PLAIN);
            }
            if asks_for_websocket(&request) {
                return self.upgrade(request, entered, client, slot);
            }
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, USAGE);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/health" => self.health(),
            "/livez" if self.probes => text(StatusCode::OK, "alive\n"),
            "/readyz" if self.probes => self.ready(),
            "/metrics" if self.probes => self.exposition(),
            _ if self.upgrades => {
                let mut response = text(StatusCode::UPGRADE_REQUIRED, USAGE);
                response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
                response
            }
            _ => text(StatusCode::NOT_FOUND, "expected /health, /livez, /readyz or /metrics\n"),
        }
    }

    fn upgrade(
        &self,
        request: Request<Incoming>,
        entered: &Entered,
        client: IpAddr,
        slot: &AcceptedSlot,
    ) -> Response<Full<Bytes>> {
        if let Err(refusal) = self.doors.origin(client, request.headers()) {
            return self.refuse(&refusal);
        }
        let path = request.uri().path();
        if !self.serves(path) {
            self.blame(Abuse::Path, client);
            let market = self.market;
            let shown: String = path.chars().take(80).collect();
            return text(
                StatusCode::NOT_FOUND,
                &format!(
                    "no market at {shown:?}: this proxy serves {market}, at / and /{market}\n"
                ),
            );
        }
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            self.blame(Abuse::Full, client);
            let sentence = "no room for another client: try again later\n";
            return later(sentence, RETRY_AFTER_FULL);
        };
        if self.stop.is_cancelled() {
            self.count(STOPPING);
            return later("restarting: try again in a moment\n", RETRY_AFTER_FULL);
        }
        // How much of a body goes by before the session begins would depend on how it comes.
        let handshake = if request.body().is_end_stream() {
            create_response_with_body(&request, Full::default).map_err(|error| error.to_string())
        } else {
            Err("a request with a body".to_owned())
        };
        let response = match handshake {
            Ok(response) => response,
            Err(error) => {
                self.blame(Abuse::Handshake, client);
                return text(
                    StatusCode::BAD_REQUEST,
                    &format!("no WebSocket handshake: {error}\n"),
                );
            }
        };
        let place = match self.doors.admit(entered, client) {
            Ok(place) => place,
            Err(refusal) => return self.refuse(&refusal),
        };
        let admitted = Admitted { permit, place, client };
        let accepted = Accepted { upgrade: hyper::upgrade::on(request), admitted };
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(accepted);
        response
    }

    /// `/` and `/<market>` lead to the market; repeated and trailing slashes do not matter.
    fn serves(&self, path: &str) -> bool {
        let mut segments = path.split('/').filter(|segment| !segment.is_empty());
        let (first, second) = (segments.next(), segments.next());
        second.is_none() && first.is_none_or(|first| first == self.market.name())
    }

    /// Answers who did not pass the doors, which have noted it.
    fn refuse(&self, refusal: &Refusal) -> Response<Full<Bytes>> {
        self.turned_away(refusal.abuse);
        match refusal.retry_after {
            Some(wait) => later("too many connections from this address: try again later\n", wait),
            None => text(
                StatusCode::FORBIDDEN,
                "web pages of this origin may not connect: ALLOWED_ORIGINS lists those that may\n",
            ),
        }
    }

    fn blame(&self, abuse: Abuse, client: IpAddr) {
        self.doors.abuse.note(abuse, client);
        self.turned_away(abuse);
    }

    /// Counts a connection or request that becomes no session.
    pub(crate) fn turned_away(&self, abuse: Abuse) {
        self.count(abuse.label());
    }

    fn count(&self, reason: &'static str) {
        self.metrics.refused.get_or_create(&Reason::new(reason)).inc();
    }

    fn health(&self) -> Response<Full<Bytes>> {
        let mut health = self.tier.health();
        health.keys = self.keys.sessions();
        let status = match health.status {
            Verdict::Ok | Verdict::Degraded => StatusCode::OK,
            Verdict::Down => StatusCode::SERVICE_UNAVAILABLE,
        };
        let body = serde_json::to_string(&health).unwrap_or_else(|error| {
            warn!(%error, "failed to write the health document");
            "{}".to_owned()
        });
        let mut response = text(status, &(body + "\n"));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        if self.stop.is_cancelled() {
            text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
        } else if self.room.available_permits() == 0 {
            text(StatusCode::SERVICE_UNAVAILABLE, "full\n")
        } else {
            text(StatusCode::OK, "ready\n")
        }
    }

    fn exposition(&self) -> Response<Full<Bytes>> {
        let mut body = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut body, &self.registry) {
            warn!(%error, "failed to write the metrics");
            return text(StatusCode::INTERNAL_SERVER_ERROR, "failed to write the metrics\n");
        }
        let mut response = text(StatusCode::OK, &body);
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
        );
        response
    }
}

/// Other upgrades, such as to HTTP/2, may be passed over (RFC 9110).
fn asks_for_websocket(request: &Request<Incoming>) -> bool {
    let upgrade = request.headers().get(UPGRADE).and_then(|value| value.to_str().ok());
    upgrade
        .is_some_and(|value| value.split(',').any(|v| v.trim().eq_ignore_ascii_case("websocket")))
}

/// Status 503, at which the vendor's Python client comes again; at any status of 400 to 499 it gives up for good (read in its source).
fn later(sentence: &str, wait: Duration) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, sentence);
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    response.headers_mut().insert(RETRY_AFTER, seconds.max(1).into());
    response
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
