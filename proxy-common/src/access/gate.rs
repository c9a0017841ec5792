//! The gate: decides which clients may connect. The server asks it twice: to identify a connection
//! that it has accepted, and to admit a request that wants to become a session. In between, the
//! gate counts TLS handshakes and requests.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderName,
    header::{HOST, ORIGIN},
};
use tokio::{io::AsyncRead, time::timeout};

use super::{
    abuse::{Abuse, AbuseLog},
    address_limits::{AddressLimit, AddressPermit, RequestRate},
    client_address::TrustedProxies,
    origin::Origins,
};
use crate::{
    metrics::{CountByReason, Metrics},
    transport::read_header,
};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The most characters shown of a text that a client sent.
const MAX_SHOWN: usize = 80;
/// The refusal because the program stops, as a value of the metric label `reason`. It is no abuse.
const STOPPING: &str = "stopping";

/// The rules of the gate.
#[derive(Debug, Clone)]
pub struct GateConfig {
    /// Origins whose web pages may connect. Default: none.
    pub origins: Origins,
    /// Proxies that may name the client they speak for. Default: none.
    pub trusted_proxies: TrustedProxies,
    /// Whether connections of trusted proxies begin with a PROXY header. Default: no.
    pub proxy_headers: bool,
    /// Most connections of one address; behind a trusted proxy, most sessions. Default: 1,000.
    pub max_per_address: usize,
    /// HTTP requests a second of one address. Default: 100.
    pub request_rate: u32,
}

/// Decides which clients may connect, and counts every refusal.
pub struct Gate {
    origins: Origins,
    trusted_proxies: TrustedProxies,
    proxy_headers: bool,
    addresses: Arc<AddressLimit>,
    requests: RequestRate,
    refused: CountByReason,
    abuse: Arc<AbuseLog>,
}

/// A connection whose peer is known.
#[derive(Debug)]
pub struct AcceptedConnection {
    /// The other end: the peer of the socket, or the client that its PROXY header names.
    pub peer: IpAddr,
    /// The port of the same.
    pub port: u16,
    /// Counts the connection for its address.
    pub permit: Option<AddressPermit>,
    /// Whether the client speaks plain HTTP to a port that speaks TLS.
    pub plain_http_on_tls_port: bool,
    /// Whether the peer is a trusted proxy, so that each request names its own client.
    via_trusted_proxy: bool,
    /// Whether the first request was counted already, with the TLS handshake.
    rate_counted: AtomicBool,
}

/// Why the gate turns a client away.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The rule that was broken.
    pub reason: Abuse,
    /// The client, as far as it is known.
    pub client: IpAddr,
    /// How long the client should wait before it tries again, if the gate knows.
    pub retry_after: Option<Duration>,
    /// What the client sent or what failed, for the log. Holds no secret.
    pub detail: Option<String>,
}

impl AcceptedConnection {
    /// A connection on a port that only the operator reaches.
    pub fn operator(peer: SocketAddr) -> Self {
        Self::new(peer, None, false)
    }

    fn new(peer: SocketAddr, permit: Option<AddressPermit>, via_trusted_proxy: bool) -> Self {
        Self {
            peer: peer.ip().to_canonical(),
            port: peer.port(),
            permit,
            via_trusted_proxy,
            rate_counted: AtomicBool::new(false),
            plain_http_on_tls_port: false,
        }
    }
}

impl Gate {
    /// A gate with these rules. Registers `connections_refused` under the prefix of `metrics`.
    pub fn new(config: GateConfig, abuse: Arc<AbuseLog>, metrics: &mut Metrics) -> Self {
        let reasons = Abuse::REFUSALS.iter().map(|abuse| abuse.label()).chain([STOPPING]);
        let help = "Connections turned away before the upgrade";
        let refused = metrics.register_by_reason("connections_refused", help, reasons);
        Self {
            origins: config.origins,
            trusted_proxies: config.trusted_proxies,
            proxy_headers: config.proxy_headers,
            addresses: AddressLimit::new(config.max_per_address),
            requests: RequestRate::per_second(config.request_rate),
            refused,
            abuse,
        }
    }

    /// The first question: identifies the peer of a new connection within `limit`, and counts the
    /// connection for its address.
    ///
    /// # Errors
    ///
    /// The connection must be dropped without an answer.
    pub async fn identify(
        &self,
        socket: &mut (impl AsyncRead + Unpin),
        peer: SocketAddr,
        limit: Duration,
    ) -> Result<AcceptedConnection, Refusal> {
        let mut peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        if self.proxy_headers && self.trusted_proxies.contains(peer.ip()) {
            match timeout(limit, read_header(socket)).await {
                Ok(Ok(Some(client))) => {
                    peer = SocketAddr::new(client.ip().to_canonical(), client.port());
                }
                // The proxy speaks for itself, as in a health check.
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    let refusal = Refusal::new(Abuse::ProxyHeader, peer.ip());
                    return Err(refusal.detail(error.to_string()));
                }
                Err(_) => {
                    let late = "none in time".to_owned();
                    return Err(Refusal::new(Abuse::ProxyHeader, peer.ip()).detail(late));
                }
            }
        }
        if self.trusted_proxies.contains(peer.ip()) {
            return Ok(AcceptedConnection::new(peer, None, true));
        }
        match self.addresses.connect(peer.ip()) {
            Ok(permit) => Ok(AcceptedConnection::new(peer, permit, false)),
            Err(_) => Err(Refusal::new(Abuse::AddressFull, peer.ip())),
        }
    }

    /// The client that sends a request through this connection.
    pub fn client(&self, accepted: &AcceptedConnection, headers: &HeaderMap) -> IpAddr {
        let values = headers.get_all(X_FORWARDED_FOR).iter();
        // A value that is no text is no address either.
        let values = values.map(|value| value.to_str().unwrap_or_default());
        self.trusted_proxies.client(accepted.peer, values)
    }

    /// Counts a TLS handshake as the first request of its connection, because it costs more than
    /// the request. Counts nothing for a trusted proxy, because the client is not known yet.
    ///
    /// # Errors
    ///
    /// The client's handshakes come too fast.
    pub fn count_tls_handshake(&self, accepted: &mut AcceptedConnection) -> Result<(), Refusal> {
        if accepted.via_trusted_proxy {
            return Ok(());
        }
        *accepted.rate_counted.get_mut() = true;
        self.take_request(accepted.peer)
    }

    /// Counts a request of a client.
    ///
    /// # Errors
    ///
    /// The client's requests come too fast.
    pub fn count_request(
        &self,
        accepted: &AcceptedConnection,
        client: IpAddr,
    ) -> Result<(), Refusal> {
        if accepted.rate_counted.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        self.take_request(client)
    }

    fn take_request(&self, client: IpAddr) -> Result<(), Refusal> {
        self.requests.take(client).map_err(|wait| Refusal {
            retry_after: Some(wait),
            ..Refusal::new(Abuse::HandshakeRate, client)
        })
    }

    /// The second question: whether a request may become a session. Returns the permit that counts
    /// the session for its address, unless the connection has one already.
    ///
    /// # Errors
    ///
    /// The request comes from a web page that may not connect, or its address is full.
    pub fn admit(
        &self,
        accepted: &AcceptedConnection,
        client: IpAddr,
        headers: &HeaderMap,
    ) -> Result<Option<AddressPermit>, Refusal> {
        if !self.allows_origin(headers) {
            let origin = headers.get(ORIGIN).map_or(&[][..], |origin| origin.as_bytes());
            let shown = shorten(&String::from_utf8_lossy(origin));
            return Err(Refusal::new(Abuse::Origin, client).detail(shown));
        }
        let full = Refusal::new(Abuse::AddressFull, client);
        if accepted.via_trusted_proxy {
            return self.addresses.admit(client).map_err(|_| full);
        }
        match &accepted.permit {
            Some(permit) if permit.is_beyond_limit() => Err(full),
            Some(_) | None => Ok(None),
        }
    }

    /// A request without an `Origin` comes from a program that is no browser.
    fn allows_origin(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(ORIGIN) else { return true };
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        origin.to_str().is_ok_and(|origin| self.origins.allow(origin, host))
    }

    /// Counts and logs a connection or request that is turned away.
    pub fn refuse(&self, refusal: &Refusal) {
        self.count(refusal.reason.label());
        self.abuse.note(refusal.reason, refusal.client, refusal.detail.as_deref());
    }

    /// Counts and logs a wrong key of an operator.
    pub fn note_wrong_key(&self, client: IpAddr) {
        self.abuse.note(Abuse::AuthFailed, client, None);
    }

    /// Counts a request that is turned away because the program stops.
    pub fn refuse_stopping(&self) {
        self.count(STOPPING);
    }

    fn count(&self, reason: &'static str) {
        self.refused.of(reason).inc();
    }

    /// How many clients were turned away for this reason.
    pub fn refusals(&self, reason: Abuse) -> u64 {
        self.refused.of(reason.label()).get()
    }

    /// Forgets full budgets and logs suppressed abuse. Call it about once a second.
    pub fn tick(&self) {
        self.requests.tick();
        self.abuse.tick(Instant::now());
    }
}

impl Refusal {
    /// A refusal without a time to try again and without a detail.
    pub fn new(reason: Abuse, client: IpAddr) -> Self {
        Self { reason, client, retry_after: None, detail: None }
    }

    /// The same with this detail.
    #[must_use]
    pub fn detail(self, detail: String) -> Self {
        Self { detail: Some(detail), ..self }
    }
}

/// As much of a client's text as a log line or an answer shows.
pub fn shorten(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}
