//! The HTTP service of a port: probes, metrics, and the upgrade to a WebSocket.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode,
    header::{
        ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, SEC_WEBSOCKET_VERSION,
        UPGRADE, USER_AGENT,
    },
};
use http_body_util::Full;
use hyper::{
    body::{Body, Incoming},
    upgrade::OnUpgrade,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{Span, field, warn};
use tungstenite::handshake::server::create_response_with_body;

use super::{
    handler::Handler,
    target::{self, TargetError},
};
use crate::{
    access::{Abuse, AcceptedConnection, AddressPermit, Gate, Keys, Refusal, shorten},
    health::HealthStatus,
    metrics::Metrics,
    protocol::Market,
    session::{ClientInfo, user_agent},
};

/// The answer to a plain request that is no probe.
const USAGE: &str = "This port speaks WebSocket: connect with a WebSocket client, for example ws://HOST:PORT/stocks (wss:// where it has a certificate). \
                     GET /health shows the state of the proxy.\n";
/// How long a client should wait before it tries again, if the proxy was full or stopping.
const RETRY_AFTER_FULL: Duration = Duration::from_secs(5);
/// The answer to plain HTTP on a port that speaks TLS.
const USE_TLS: &str = "This port speaks TLS: connect with wss:// or https://\n";

/// A response, as this service writes it.
pub type Response = http::Response<Full<Bytes>>;

/// Why a request is turned away, and the response that says so.
type Refused = Box<(Refusal, Response)>;

/// Answers the requests of one port.
pub struct HttpService<H> {
    /// Builds the document of `/health`.
    pub handler: Arc<H>,
    /// The metrics that `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// The markets served, at least one. `/` is the first.
    pub markets: Vec<Market>,
    /// Decides which clients get a session.
    pub gate: Arc<Gate>,
    /// The keys, of which an operator's shows all sessions.
    pub keys: Arc<Keys>,
    /// One permit for each session that may exist.
    pub session_permits: Arc<Semaphore>,
    /// Whether `/livez`, `/readyz` and `/metrics` answer on this port.
    pub probes: bool,
    /// Whether WebSockets are accepted on this port.
    pub upgrades: bool,
    /// Once this is cancelled, no session begins.
    pub stop: CancellationToken,
}

/// The answer to one request.
#[derive(Debug)]
pub enum Answer {
    /// A response. The connection does not change.
    Respond(Response),
    /// A response that turns the connection into a WebSocket.
    Upgrade(Response, PendingUpgrade),
}

/// A connection that becomes a WebSocket once the response is written.
#[derive(Debug)]
pub struct PendingUpgrade {
    /// Resolves to the connection.
    pub upgrade: OnUpgrade,
    /// The client that sent the request.
    pub client: ClientInfo,
    /// The permits that the session holds until it ends.
    pub permits: SessionPermits,
}

/// The permits that a session holds until it ends.
#[derive(Debug)]
pub struct SessionPermits {
    _session: OwnedSemaphorePermit,
    /// Counts the session for its address, unless the connection is counted already.
    pub(super) address: Option<AddressPermit>,
}

impl<H: Handler> HttpService<H> {
    /// Answers one request.
    pub fn answer(&self, request: Request<Incoming>, accepted: &AcceptedConnection) -> Answer {
        match self.try_answer(request, accepted) {
            Ok(answer) => answer,
            Err(refused) => {
                let (refusal, response) = *refused;
                self.gate.refuse(&refusal);
                Answer::Respond(response)
            }
        }
    }

    fn try_answer(
        &self,
        request: Request<Incoming>,
        accepted: &AcceptedConnection,
    ) -> Result<Answer, Refused> {
        let mut client = accepted.peer;
        if self.upgrades {
            client = self.gate.client(accepted, request.headers());
            Span::current().record("client", field::display(client));
            self.gate.count_request(accepted, client).map_err(by_gate)?;
            if accepted.plain_http_on_tls_port {
                let response = text(StatusCode::BAD_REQUEST, USE_TLS);
                return Err(Box::new((Refusal::new(Abuse::Tls, client), response)));
            }
            if asks_for_websocket(request.headers()) {
                return self.upgrade(request, accepted, client);
            }
        }
        let status = self.status_answer(&request, client);
        Ok(Answer::Respond(status.unwrap_or_else(|| self.probe(&request))))
    }

    fn upgrade(
        &self,
        mut request: Request<Incoming>,
        accepted: &AcceptedConnection,
        client: IpAddr,
    ) -> Result<Answer, Refused> {
        let refuse = |reason, detail, response| {
            let refusal = Refusal { detail, ..Refusal::new(reason, client) };
            Err(Box::new((refusal, response)))
        };
        let address = self.gate.admit(accepted, client, request.headers()).map_err(by_gate)?;
        let (path, query) = (request.uri().path(), request.uri().query());
        let (market, options) = match target::read(path, query, &self.markets, H::NAMED_SESSIONS) {
            Ok(target) => target,
            Err(error) => {
                let (status, sentence) = match &error {
                    TargetError::NoSuchPath(sentence) => (StatusCode::NOT_FOUND, sentence),
                    TargetError::BadQuery(sentence) => (StatusCode::BAD_REQUEST, sentence),
                };
                return refuse(Abuse::Path, Some(shorten(path)), text(status, sentence));
            }
        };
        let Ok(session) = Arc::clone(&self.session_permits).try_acquire_owned() else {
            let sentence = "no room for another client: try again later\n";
            return refuse(Abuse::Full, None, retry_later(sentence, RETRY_AFTER_FULL));
        };
        if self.stop.is_cancelled() {
            self.gate.refuse_stopping();
            let sentence = "restarting: try again in a moment\n";
            return Ok(Answer::Respond(retry_later(sentence, RETRY_AFTER_FULL)));
        }
        // With a body, the first frames of the session would depend on how the bytes arrive.
        let handshake = if request.body().is_end_stream() {
            // The library reads one line of each header, and takes no list.
            if lists(request.headers(), CONNECTION, "upgrade") {
                let headers = request.headers_mut();
                headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            }
            create_response_with_body(&request, Full::default).map_err(|error| error.to_string())
        } else {
            Err("a request with a body".to_owned())
        };
        let response = match handshake {
            Ok(response) => response,
            Err(error) => {
                let sentence = format!("no WebSocket handshake: {error}\n");
                let mut response = text(StatusCode::BAD_REQUEST, &sentence);
                let version = HeaderValue::from_static("13");
                response.headers_mut().insert(SEC_WEBSOCKET_VERSION, version);
                return refuse(Abuse::Handshake, Some(error), response);
            }
        };
        let agent = request.headers().get(USER_AGENT).and_then(|value| value.to_str().ok());
        let user_agent = user_agent(agent.unwrap_or_default());
        let pending = PendingUpgrade {
            upgrade: hyper::upgrade::on(request),
            client: ClientInfo {
                address: client,
                // The port of a proxy is not the client's.
                port: (client == accepted.peer).then_some(accepted.port),
                user_agent,
                market,
                options,
            },
            permits: SessionPermits { _session: session, address },
        };
        Ok(Answer::Upgrade(response, pending))
    }

    fn probe(&self, request: &Request<Incoming>) -> Response {
        // HAProxy checks with `OPTIONS /` unless it is told otherwise.
        let options = *request.method() == Method::OPTIONS;
        if !options && !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, USAGE);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
            return response;
        }
        match request.uri().path().trim_end_matches('/') {
            "" | "*" if options => self.ready(),
            "/health" => self.health(),
            "/livez" | "/healthz" if self.probes => text(StatusCode::OK, "alive\n"),
            "/readyz" if self.probes => self.ready(),
            "/metrics" if self.probes => self.exposition(),
            _ if self.upgrades => {
                let mut response = text(StatusCode::UPGRADE_REQUIRED, USAGE);
                response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
                response
            }
            _ => text(
                StatusCode::NOT_FOUND,
                "expected /status, /status.json, /sessions, /health, /livez, /readyz or /metrics\n",
            ),
        }
    }

    fn health(&self) -> Response {
        let health = self.handler.health();
        let status = match health.status() {
            HealthStatus::Ok | HealthStatus::Degraded => StatusCode::OK,
            HealthStatus::Standby | HealthStatus::Down => StatusCode::SERVICE_UNAVAILABLE,
        };
        let body = serde_json::to_string(&health).unwrap_or_else(|error| {
            warn!(%error, "failed to write the health document");
            "{}".to_owned()
        });
        with_type(text(status, &(body + "\n")), "application/json")
    }

    fn ready(&self) -> Response {
        if self.stop.is_cancelled() {
            text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
        } else if self.session_permits.available_permits() == 0 {
            text(StatusCode::SERVICE_UNAVAILABLE, "full\n")
        } else if self.handler.health().stands_by() {
            text(StatusCode::SERVICE_UNAVAILABLE, "standby\n")
        } else {
            text(StatusCode::OK, "ready\n")
        }
    }

    fn exposition(&self) -> Response {
        let body = match self.metrics.encode() {
            Ok(body) => body,
            Err(error) => {
                warn!(%error, "failed to write the metrics");
                return text(StatusCode::INTERNAL_SERVER_ERROR, "failed to write the metrics\n");
            }
        };
        let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        with_type(text(StatusCode::OK, &body), content_type)
    }
}

/// The response to a request that the gate refused.
fn by_gate(refusal: Refusal) -> Refused {
    let response = if refusal.reason == Abuse::Origin {
        let sentence =
            "web pages of this origin may not connect: ALLOWED_ORIGINS lists those that may\n";
        text(StatusCode::FORBIDDEN, sentence)
    } else {
        let wait = refusal.retry_after.unwrap_or(RETRY_AFTER_FULL);
        retry_later("too many connections from this address: try again later\n", wait)
    };
    Box::new((refusal, response))
}

/// Whether a request asks for a WebSocket. Other upgrades, such as to HTTP/2, may be ignored (RFC
/// 9110).
fn asks_for_websocket(headers: &HeaderMap) -> bool {
    lists(headers, UPGRADE, "websocket")
}

/// Whether a header that is a list names this item, on any of its lines (RFC 9110, section 5.3).
fn lists(headers: &HeaderMap, name: HeaderName, item: &str) -> bool {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|found| found.trim().eq_ignore_ascii_case(item))
}

/// A response with status 503. The vendor's Python client tries again after it, but gives up for
/// good after any status from 400 to 499 (read in its source).
fn retry_later(sentence: &str, wait: Duration) -> Response {
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, sentence);
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    response.headers_mut().insert(RETRY_AFTER, seconds.max(1).into());
    response
}

pub(super) fn text(status: StatusCode, body: &str) -> Response {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    with_type(response, "text/plain; charset=utf-8")
}

pub(super) fn with_type(mut response: Response, content_type: &'static str) -> Response {
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
